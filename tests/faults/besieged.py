"""A healthy adapter's chat latency while hostile uploads come in, against idle: both measured by turns in one run.

Four processes: the engine (the simulator), the gateway with its screening processes behind a real socket, the attackers,
and this one, which chats. All share the machine's processors: what the attackers take of them, though they are polite
(`nice`), slows the chat too, so the figure is an upper bound. The attackers' key has no rate limit, as it would have by
default.
"""

import asyncio
import contextlib
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import httpx

from app.screen.reference.build import BuildOptions, build_reference
from tests.faults.attacking import CAP_MIB, LAYERS, RANK, SHAPES, attack, shaped
from tests.support.adapters import Upload
from tests.support.gateway import KEY, SERVED, gateway
from tests.support.references import aligned_from, weights, write_checkpoint
from tests.support.served import on_a_port
from tests.support.simulator import Simulator

PAUSE_S: Final = 0.02
"""Seconds between one chat's end and the next one's start."""

SETTLE_S: Final = 1.0
"""Seconds after the attack was switched that are not measured."""

START_S: Final = 120.0


@dataclass
class Measured:
    """Seconds of each chat, idle and under attack; `told`: how the attackers were answered, by kind and status."""

    idle: list[float] = field(default_factory=list)
    attacked: list[float] = field(default_factory=list)
    told: Counter[str] = field(default_factory=Counter)

    def lines(self) -> Iterator[str]:
        """For a person."""
        for kind in sorted({one.rpartition(" ")[0] for one in self.told}):
            by_status = {one.rpartition(" ")[2]: n for one, n in self.told.items() if one.rpartition(" ")[0] == kind}
            answered = ", ".join(f"{n} × {_status(status)}" for status, n in sorted(by_status.items()))
            yield f"  {kind.replace('_', ' '):16} {answered}"
        for name, seconds in (("idle", self.idle), ("under attack", self.attacked)):
            p50, p99 = percentile(seconds, 50), percentile(seconds, 99)
            yield f"chat {name:12} {len(seconds):6} answers  p50 {p50 * 1e3:6.1f} ms  p99 {p99 * 1e3:6.1f} ms"
        ratios = (percentile(self.attacked, q) / percentile(self.idle, q) for q in (50, 99))
        yield "under attack / idle: p50 × {:.1f}, p99 × {:.1f}".format(*ratios)


def _status(status: str) -> str:
    return {"0": "hung up", "-1": "given up"}.get(status, status)


def percentile(seconds: Sequence[float], q: int) -> float:
    """The q-th percentile."""
    return statistics.quantiles(seconds, n=100, method="inclusive")[q - 1]


# ---- the other processes -----------------------------------------------------------------------------------------------


def engine(socket: Path, tell: Connection) -> None:
    """The simulator, for ever."""

    async def run() -> None:
        await Simulator(socket, SERVED).start()
        tell.send(True)
        await asyncio.sleep(1e6)

    asyncio.run(run())


def defend(data: Path, reference: Path, socket: Path, tell: Connection) -> None:
    """The gateway, for ever; tells its port. What it says goes to gateway.log."""

    log = os.open(data.with_name("gateway.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)

    async def run() -> None:
        there: Any = SimpleNamespace(url=f"unix:{socket}")
        limits = {"max_weights_mib": CAP_MIB, "max_lora_rank": RANK, "screen_sandbox": True, "reconcile_seconds": 5.0}
        async with gateway(data, reference, there, tau=1e9, **limits) as running, on_a_port(running) as port:
            tell.send(port)
            await asyncio.sleep(1e6)

    asyncio.run(run())


def _reference(at: Path) -> Path:
    base = weights(0, layers=LAYERS, shapes=SHAPES, hidden=512)
    pair = write_checkpoint(at / "base", base), write_checkpoint(at / "aligned", aligned_from(base))
    build_reference(*pair, at / "reference", BuildOptions())
    return at / "reference"


@contextlib.contextmanager
def _process(context: SpawnContext, target: Any, *args: Any) -> Iterator[Any]:
    """A process that tells things over a pipe: yields where to hear them."""
    hear, tell = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*args, tell), daemon=target is not defend)
    process.start()
    tell.close()
    try:
        yield hear
    finally:
        process.kill()
        process.join()
        hear.close()


def _heard(hear: Any) -> Any:
    assert hear.poll(START_S), "a process did not start in time"
    return hear.recv()


# ---- measuring ---------------------------------------------------------------------------------------------------------


def besiege(home: Path, rounds: int, seconds: float) -> Measured:
    """`rounds` times: `seconds` of chat while nothing else comes, then as many while everything does."""
    context = multiprocessing.get_context("spawn")
    on, end, socket = context.Event(), context.Event(), home / "e.sock"
    with contextlib.ExitStack() as stack:
        _heard(stack.enter_context(_process(context, engine, socket)))
        port = _heard(stack.enter_context(_process(context, defend, home / "data", _reference(home), socket)))
        headers = {"Authorization": f"Bearer {KEY}"}
        http = stack.enter_context(
            httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60.0, trust_env=False)
        )
        _publish(http)
        foes = stack.enter_context(_process(context, attack, port, SERVED, on, end))
        _heard(foes)
        found = Measured()
        for _ in range(rounds):
            on.clear()
            _chat(http, SETTLE_S)
            found.idle += _chat(http, seconds)
            on.set()
            _chat(http, SETTLE_S)
            found.attacked += _chat(http, seconds)
        end.set()
        found.told = _heard(foes)
        assert http.get("/adapters/style").json()["active_version"] == 1
    return found


def _publish(http: httpx.Client) -> None:
    sent = Upload.valid(shaped(SERVED), rank=4, alpha=4, seed=1)
    parts: Any = {"name": (None, b"style"), "config": ("c", sent.config_bytes), "weights": ("w", sent.weights_bytes)}
    answer = http.post("/adapters", files=parts)
    assert answer.status_code == 201, answer.text


def _chat(http: httpx.Client, seconds: float) -> list[float]:
    """One streamed chat after the other; how long each took to its last byte. Each must be the adapter's, and whole."""
    body = {"model": "style", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
    took, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.perf_counter()
        answer = http.post("/v1/chat/completions", json=body)
        took.append(time.perf_counter() - began)
        assert answer.status_code == 200, answer.text
        assert answer.text.endswith("data: [DONE]\n\n"), answer.text[-300:]
        time.sleep(PAUSE_S)
    return took


def main(rounds: int, seconds: float) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="besieged-") as home:
        for line in besiege(Path(home), rounds, seconds).lines():
            print(line)
