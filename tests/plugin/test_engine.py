"""The plugin in a real vLLM, beside a gateway whose own engine is another: no load is ever asked for."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file, save_file

from app.load import session
from app.load.command import arguments, environment
from app.load.embedded import socket_home
from app.screen.build import build_reference
from tests.support import tiny_model
from tests.support.engine import START_S, tiny_spec
from tests.support.house import KEY, Running, gateway
from tests.support.served import on_a_port
from tests.support.simulator import Simulator

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.long]

PLUGIN = Path(__file__).resolve().parents[2] / "plugin"
SAY = {"messages": [{"role": "user", "content": "w1 w2"}], "max_tokens": 5, "temperature": 0}


class PluginEngine:
    """A vLLM with the plugin installed, on a socket."""

    def __init__(self, root: Path, model_dir: Path, gateway_url: str) -> None:
        self.root, self.model_dir, self.gateway_url = root, model_dir, gateway_url
        self.cache, self.log = root / "cache", root / "engine.log"
        self.socket = socket_home(root / "run") / "plugin.sock"
        self.socket.parent.mkdir(parents=True, exist_ok=True)
        self.site = root / "site"
        source = shutil.copytree(PLUGIN, root / "plugin", ignore=shutil.ignore_patterns("__pycache__", "build"))
        pip: list[str | Path] = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--no-build-isolation",
            "--target",
            self.site,
        ]
        subprocess.run([sys.executable, *pip, source], check=True, capture_output=True)
        self.http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.socket)), base_url="http://engine", timeout=60.0
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        spec = tiny_spec(self.model_dir)
        command = [*arguments(spec, self.socket), "--middleware", "lora_gateway_vllm.closed.OnlyScreened"]
        env = environment(spec, os.environ) | {
            "PYTHONPATH": str(self.site),
            "VLLM_PLUGINS": "lora_gateway",
            "LORA_GATEWAY_URL": self.gateway_url,
            "LORA_GATEWAY_KEY": KEY,
            "LORA_GATEWAY_CACHE": str(self.cache),
            "LORA_GATEWAY_FORGET_S": "1",
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-4000:]
            if self._listens() and self.http.get("/health").status_code == 200:
                return
            time.sleep(0.2)
        raise AssertionError(self.log.read_text(errors="replace")[-4000:])

    def _listens(self) -> bool:
        """Asked first: httpx leaks the socket of a connection that nobody takes, and vLLM binds long before it listens."""
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(str(self.socket))
            return True
        return False

    def kill(self) -> None:
        if self.process is None:
            return
        for pid in session.members(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.socket.unlink(missing_ok=True)

    def ask(self, model: str) -> httpx.Response:
        return self.http.post("/v1/chat/completions", json={"model": model, **SAY})

    def says(self, model: str) -> Any:
        answer = self.ask(model)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["message"]["content"]

    def names(self) -> set[str]:
        return {card["id"] for card in self.http.get("/v1/models").json()["data"]}


@pytest.fixture(scope="module")
def reference(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model against a base that differs from it a little everywhere."""
    root = tmp_path_factory.mktemp("plugin-reference")
    base = Path(shutil.copytree(tiny_model_dir, root / "base"))
    generator = torch.Generator().manual_seed(1)
    tensors = load_file(base / "model.safetensors")
    moved = {name: t + 0.02 * torch.randn(t.shape, generator=generator) for name, t in tensors.items()}
    save_file(moved, base / "model.safetensors", metadata={"format": "pt"})
    build_reference(base, tiny_model_dir, root / "reference")
    return root / "reference"


@pytest_asyncio.fixture
async def house(reference: Path, tmp_path: Path) -> AsyncIterator[Running]:
    """A gateway whose own engine is simulated."""
    simulator = Simulator(tmp_path / "e.sock", tiny_model.MODEL_NAME)
    await simulator.start()
    served = {
        "model": tiny_model.MODEL_NAME,
        "max_lora_rank": 8,
        "max_pruned_share": 1.0,
        "tau": 1e9,
        "reject_tau": 1e9,
    }
    async with gateway(tmp_path / "data", reference, simulator, **served) as running:
        yield running
    await simulator.stop()


@pytest.fixture
def started(tmp_path: Path, tiny_model_dir: Path) -> Iterator[Callable[[str], PluginEngine]]:
    engines: list[PluginEngine] = []

    def start(url: str) -> PluginEngine:
        engines.append(PluginEngine(tmp_path / f"engine-{len(engines)}", tiny_model_dir, url))
        engines[-1].start()
        return engines[-1]

    (tmp_path / "engine-0").mkdir()
    yield start
    for engine in engines:
        engine.kill()
        engine.http.close()


def files(name: str, folder: Path) -> Any:
    return {
        "name": (None, name.encode()),
        "config": ("c", (folder / "adapter_config.json").read_bytes()),
        "weights": ("w", (folder / "adapter_model.safetensors").read_bytes()),
    }


async def test_an_engine_serves_what_the_gateway_screened_and_nothing_else(
    house: Running, started: Callable[[str], PluginEngine], tiny_adapter: Callable[[int], Path]
) -> None:
    digests = {}
    for name, seed in (("bard", 1), ("other", 2)):
        pushed = await house.http.post("/adapters", files=files(name, tiny_adapter(seed)))
        assert pushed.status_code == 201, pushed.text
        digests[name] = pushed.json()["digest"]
    async with on_a_port(house) as port:
        engine = await asyncio.to_thread(started, f"http://127.0.0.1:{port}")
        await asyncio.to_thread(_serves_the_screened_only, engine, digests, tiny_adapter(1))
        await asyncio.to_thread(_refuses_what_was_tampered_with, engine, digests, house.data / "artefacts")
        await asyncio.to_thread(_survives_a_restart, engine, digests)


def _serves_the_screened_only(engine: PluginEngine, digests: dict[str, str], folder: Path) -> None:
    said = {model: engine.says(model) for model in ("bard@1", f"bard@{digests['bard'][:12]}", tiny_model.MODEL_NAME)}
    assert said["bard@1"] == said[f"bard@{digests['bard'][:12]}"] != said[tiny_model.MODEL_NAME]
    for unknown in ("bard", "bard@2", "nobody@1", "../../bard@1", f"bard@{'0' * 12}", str(folder)):
        assert engine.ask(unknown).status_code == 404, unknown
    refused = engine.http.post("/v1/load_lora_adapter", json={"lora_name": "mine", "lora_path": str(folder)})
    assert refused.status_code == 404
    assert engine.ask("mine").status_code == 404
    assert engine.names() >= {f"bard@{digests['bard'][:12]}"}
    assert not {name for name in engine.names() if "mine" in name or "nobody" in name}


def _refuses_what_was_tampered_with(engine: PluginEngine, digests: dict[str, str], store: Path) -> None:
    weights = store / digests["other"] / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused = engine.ask("other@1")
    assert refused.status_code == 502, refused.text
    assert engine.http.get("/health").status_code == 200
    weights.write_bytes(whole)
    assert engine.says("other@1") != engine.says("bard@1")


def _survives_a_restart(engine: PluginEngine, digests: dict[str, str]) -> None:
    before = engine.says("bard@1")
    kept = (engine.cache / digests["bard"] / "adapter_model.safetensors").stat().st_ino
    engine.kill()
    engine.start()
    assert engine.names() == {tiny_model.MODEL_NAME}
    assert engine.says("bard@1") == before
    assert (engine.cache / digests["bard"] / "adapter_model.safetensors").stat().st_ino == kept
