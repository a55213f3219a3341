"""Fixtures with a real vLLM: one for the whole test session, started when the first test asks for it.

`engine` runs the gateway's own supervisor (app/load/embedded/supervisor.py) in a thread with an event loop of its own, so
that tests with loops of theirs, or with none, share it. Tests may kill it; the supervisor brings it back.
"""

import asyncio
import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_asyncio

from app.load.client.engine import HttpEngine
from app.load.embedded import orphans as session
from app.load.embedded.command import EngineSpec
from app.load.embedded.supervisor import EmbeddedEngine, socket_home
from tests.support import tiny_model
from tests.support.simulator import Simulator

T = TypeVar("T")

START_S = 300.0  # seconds a start may take on a busy machine; 22 s on two idle cores
EAGER = ("--enforce-eager",)  # 6 s faster to start than compiling; the model is too small for it to matter
SERVER = "vllm.entrypoints"  # in the command line of the process that answers HTTP; the core has no name of its own
COMPILER = "g++"  # what torch looks for
TOOL_PARSER = "hermes"
LONG_CONTEXT = 16384  # tokens, where a test needs an answer that is certainly not over yet; the model does not mind
MAX_LORAS = 3
MAX_CPU_LORAS = 6


@dataclass
class LiveEngine:
    """A supervised vLLM serving `tests.support.tiny_model`.

    adapter: seed → directory of a random adapter, written once.
    """

    embedded: EmbeddedEngine
    model_dir: Path
    adapter: Callable[[int], Path]
    loop: asyncio.AbstractEventLoop
    said: list[str]

    @property
    def url(self) -> str:
        """For an HttpEngine of one's own."""
        return self.embedded.url

    @property
    def model(self) -> str:
        """The served model's name."""
        return self.embedded.spec.served_name

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = START_S) -> T:
        """Run a coroutine on the supervisor's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def processes(self, word: str = "") -> list[int]:
        """Process ids of the engine's family whose command line contains `word`."""
        leader = self.embedded.pid
        found = session.members(leader) if leader is not None else []
        return [pid for pid in found if word in _command_line(pid)]

    @contextlib.contextmanager
    def stopped(self, *, but_the_server: bool = False) -> Iterator[None]:
        """Its processes neither run nor end, until the block is left; then those that still are go on."""
        spared = {self.embedded.pid, *(self.processes(SERVER) if but_the_server else ())}
        held = set(self.processes()) - spared
        assert held, "nothing was stopped"
        for pid in held:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in held:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def restart(self) -> None:
        """Kill it, and wait until it is ready again, without adapters."""
        generation = self.embedded.generation
        leader = self.embedded.pid
        for pid in self.processes():
            if pid != leader:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.wait_for_generation(generation + 1)

    def wait_for_generation(self, generation: int) -> None:
        """Until it has become ready that often."""
        deadline = time.monotonic() + START_S
        while self.embedded.generation < generation:
            assert time.monotonic() < deadline, self.said
            time.sleep(0.1)


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def tiny_spec(model_dir: Path, context: int = tiny_model.MAX_LENGTH) -> EngineSpec:
    """The tests' engine: two threads, three adapters in a batch, six in memory. context: tokens."""
    longer = ("--hf-overrides", json.dumps({"max_position_embeddings": context}))
    return EngineSpec(
        model_dir,
        tiny_model.MODEL_NAME,
        dtype="float32",
        max_loras=MAX_LORAS,
        max_lora_rank=8,
        max_cpu_loras=MAX_CPU_LORAS,
        max_model_len=context,
        threads=2,
        tool_call_parser=TOOL_PARSER,
        extra=EAGER if context == tiny_model.MAX_LENGTH else (*EAGER, *longer),
    )


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, written once."""
    return tiny_model.write_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """seed → directory of a random adapter; seed 0 is one that changes nothing."""
    root = tmp_path_factory.mktemp("tiny-adapters")

    def adapter(seed: int) -> Path:
        directory = root / str(seed)
        if not directory.exists():
            tiny_model.write_adapter(directory, seed, scale=0.0 if seed == 0 else 0.5)
        return directory

    return adapter


@pytest.fixture(scope="session")
def engine(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, tiny_adapter: Callable[[int], Path]
) -> Iterator[LiveEngine]:
    """The session's real vLLM, ready. As on a fresh machine, it finds no C++ compiler that works."""
    with live_engine(tmp_path_factory.mktemp("engine"), tiny_model_dir, tiny_adapter) as live:
        yield live


@contextlib.contextmanager
def live_engine(
    root: Path, model_dir: Path, adapter: Callable[[int], Path], context: int = tiny_model.MAX_LENGTH, **changes: Any
) -> Iterator[LiveEngine]:
    """A real vLLM whose files lie under `root`, ready. context: tokens. changes: to `tiny_spec`, by field."""
    broken = root / "bin" / COMPILER
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    patch = pytest.MonkeyPatch()
    patch.setenv("PATH", str(broken.parent), prepend=os.pathsep)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="engine-loop", daemon=True)
    thread.start()
    said: list[str] = []
    spec = replace(tiny_spec(model_dir, context), **changes)
    embedded = EmbeddedEngine(spec, socket_home(root / "run"), root / "engine.log", report=said.append)
    live = LiveEngine(embedded, model_dir, adapter, loop, said)
    try:
        live.run(embedded.start())
        live.run(embedded.ready())
        yield live
    finally:
        patch.undo()
        live.run(embedded.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@dataclass
class AnyEngine:
    """What a contract test needs of an engine, real or simulated."""

    client: HttpEngine
    model: str
    adapter: Callable[[int], Path]


@pytest_asyncio.fixture
async def simulator(tmp_path: Path) -> AsyncIterator[Simulator]:
    """A simulated engine, listening."""
    simulated = Simulator(socket_home(tmp_path) / "engine.sock")
    simulated.socket.parent.mkdir(exist_ok=True)
    await simulated.start()
    yield simulated
    await simulated.stop()


@pytest_asyncio.fixture
async def simulated_client(simulator: Simulator) -> AsyncIterator[HttpEngine]:
    """A client of the simulated engine."""
    client = HttpEngine(simulator.url)
    yield client
    await client.close()


@pytest.fixture(params=["simulator", pytest.param("vllm", marks=pytest.mark.engine)])
def engine_source(request: pytest.FixtureRequest) -> Simulator | LiveEngine:
    """The simulator, then the real thing."""
    found = request.getfixturevalue("simulator" if request.param == "simulator" else "engine")
    assert isinstance(found, Simulator | LiveEngine)
    return found


@pytest_asyncio.fixture
async def any_engine(
    engine_source: Simulator | LiveEngine, tiny_adapter: Callable[[int], Path]
) -> AsyncIterator[AnyEngine]:
    """What holds of the one must hold of the other. Both end without adapters."""
    client = HttpEngine(engine_source.url)
    yield AnyEngine(client, engine_source.model, tiny_adapter)
    for name in await client.models() - {engine_source.model}:
        await client.unload(name)
    await client.close()
