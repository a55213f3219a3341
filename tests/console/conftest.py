"""A browser, and gateways on loopback ports for it to visit."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from app.server.app import build_app
from app.server.settings import Settings
from app.server.wiring import wire_gateway
from tests.console.chromium import FLAGS, chromium
from tests.support.gateway import SERVED, form
from tests.support.simulator import Simulator

PATIENCE_MS = 30_000
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium. Of one module only: playwright's loop must have ended before other tests run theirs."""
    path = chromium()
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield launched
        launched.close()


@contextmanager
def serving(directory: Path, reference: Path, says: Any = None, **settings: Any) -> Iterator[str]:
    """A gateway over the engine's simulator, in a thread, on a free port of loopback: its URL.

    says: as of the simulator.
    """
    started, stop = threading.Event(), threading.Event()
    found: list[str] = []

    async def serve() -> None:
        simulator = Simulator(directory / "e.sock", SERVED)
        simulator.says = says
        await simulator.start()
        values: dict[str, Any] = {
            "model": SERVED,
            "reference": reference,
            "data": directory / "data",
            "engine_url": simulator.url,
            "dtype": "float32",
            "max_lora_rank": 16,
            "min_free_disk_mib": 0,
            "reconcile_seconds": 0.05,
            "max_update_ratio": 1e9,
            "action": "prune",  # what is cut out is shown in more ways than what is projected
            "tau": 0.5,
            "top_k": 4,
            "energy": 1.0,
            "max_pruned_share": 1.0,
            **settings,
        }
        with socket.create_server(("127.0.0.1", settings.get("port", 0))) as listener:
            app = build_app(wire_gateway(Settings(**values)))
            server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
            running = asyncio.ensure_future(server.serve([listener]))
            while not server.started and not running.done():
                await asyncio.sleep(0.02)
            found.append(f"http://127.0.0.1:{listener.getsockname()[1]}")
            started.set()
            while not stop.is_set() and not running.done():
                await asyncio.sleep(0.05)
            server.should_exit = True
            await running
        await simulator.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert started.wait(60)
        yield found[0]
    finally:
        stop.set()
        thread.join()


Serve = Callable[..., str]


@pytest.fixture(scope="module")
def serve(tiny_reference_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """`serve(open=True)` → a URL, until the module is done."""
    with ExitStack() as stack:

        def one(reference: Path = tiny_reference_dir, **settings: Any) -> str:
            return stack.enter_context(serving(tmp_path_factory.mktemp("console"), reference, **settings))

        yield one


@dataclass(frozen=True)
class Files:
    """An adapter's two files on this machine's disk."""

    config: Path
    weights: Path


@pytest.fixture(scope="session")
def adapter_files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Files]:
    """`adapter_files(seed)`: a valid adapter for the gateways here; another seed, other bytes."""

    def made(seed: int) -> Files:
        folder = tmp_path_factory.mktemp("adapter")
        for part in ("config", "weights"):
            name, data = form("any", seed=seed)[part]
            (folder / name).write_bytes(data)
        return Files(folder / "adapter_config.json", folder / "adapter_model.safetensors")

    return made


@pytest.fixture(scope="session")
def screens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go, to be looked at."""
    return tmp_path_factory.mktemp("console-screens")


@dataclass
class Visitor:
    """A browser of one's own, and what its pages complained of."""

    context: BrowserContext
    complaints: list[str]

    def page(self) -> Page:
        """Another tab."""
        opened = self.context.new_page()
        opened.set_default_timeout(PATIENCE_MS)
        opened.on("pageerror", lambda error: self.complaints.append(str(error)))
        opened.on("console", lambda message: self.complaints.append(message.text) if _matters(message.text) else None)
        return opened


def _matters(text: str) -> bool:
    return "Content Security Policy" in text or "Uncaught" in text


@pytest.fixture
def visitor(browser: Browser) -> Iterator[Visitor]:
    """A visitor whose pages must not complain of a script's error or of a broken content policy."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    visiting = Visitor(context, [])
    yield visiting
    context.close()
    assert not visiting.complaints
