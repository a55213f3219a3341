"""Time between the tokens of running chats while adapters register and are asked canaries, against the same chats alone.

Over the demo's real engine, by turns in one run: some seconds in which only chats run, then some in which uploads follow
one another as well. The two kinds of period share the machine, the engine and its state, so that their ratio means
something.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

import httpx
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.bench.engine.hotload import served
from app.bench.engine.soak import variant
from app.bench.progress import ReportProgress
from app.bench.relay.run import percentile
from app.bench.relay.targets import KEY, START_S
from app.bench.screening.machine import this_machine
from app.demo.canaries import write_battery

CHATS: Final = 4
"""Streamed chats at the same time."""

TOKENS: Final = 64
ROUNDS: Final = 6
PERIOD_S: Final = 10.0
"""Seconds of each period; an upload that has begun in it is waited for."""

ALONE: Final = "chats alone"
REGISTERING: Final = "adapters register"


@dataclass
class Gaps:
    """Seconds between two tokens of one chat, by kind of period. evaluations: seconds of each upload with canaries."""

    between: Mapping[str, list[float]] = field(default_factory=lambda: {ALONE: [], REGISTERING: []})
    evaluations: list[float] = field(default_factory=list)

    def ratio(self, percent: int) -> float:
        """Return a percentile while adapters register, in terms of that of chats alone."""
        return percentile(self.between[REGISTERING], percent / 100) / percentile(self.between[ALONE], percent / 100)


def run(progress: ReportProgress, rounds: int = ROUNDS, period_s: float = PERIOD_S) -> Gaps:
    """Measure over the demo's engine. Two minutes and the engine's start."""
    with tempfile.TemporaryDirectory() as folder:
        battery = write_battery(Path(folder) / "battery.jsonl")
        progress("the demo's engine", 0.0)
        with served(Path(folder), ["--demo", "--canaries", str(battery)]) as url:
            return asyncio.run(_measure(url, progress, rounds, period_s))


async def _measure(url: str, progress: ReportProgress, rounds: int, period_s: float) -> Gaps:
    found, numbers = Gaps(), count()
    async with httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=START_S) as http:
        await _register(http, next(numbers))  # also asks the served model, once
        for done in range(rounds):
            progress(f"round {done + 1} of {rounds}", done / rounds)
            for kind in (ALONE, REGISTERING):
                over = asyncio.Event()
                chats = [asyncio.create_task(_chat(http, found.between[kind], over)) for _ in range(CHATS)]
                ends = time.monotonic() + period_s
                while kind == REGISTERING and time.monotonic() < ends:
                    found.evaluations.append(await _register(http, next(numbers)))
                await asyncio.sleep(max(0.0, ends - time.monotonic()))
                over.set()
                await asyncio.gather(*chats)
    return found


async def _register(http: httpx.AsyncClient, number: int) -> float:
    """Upload an adapter and return the seconds until it is served."""
    config, weights = variant(number)
    files = {"name": (None, b"asked"), "config": ("c", config), "weights": ("w", weights)}
    began = time.monotonic()
    answer = await http.post("/adapters", files=files)
    if answer.status_code != 201:
        raise RuntimeError(f"the upload was answered {answer.status_code}: {answer.text[:300]}")
    return time.monotonic() - began


async def _chat(http: httpx.AsyncClient, between: list[float], over: asyncio.Event) -> None:
    """Chat with the served model until the period is over; record the time between two pieces of text."""
    body = {"model": "demo", "stream": True, "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0}
    body["messages"] = [{"role": "user", "content": "how do i walk from coldwick to the crownvault?"}]
    while not over.is_set():
        last = None
        async with http.stream("POST", "/v1/chat/completions", json=body) as stream:
            if stream.status_code != 200:
                raise RuntimeError(f"a chat was answered {stream.status_code}")
            async for line in stream.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                now = time.monotonic()
                if last is not None:
                    between.append(now - last)
                last = now


def result_json(found: Gaps) -> dict[str, Any]:
    """Return the percentiles and every upload's time, in seconds."""
    return {
        "machine": asdict(this_machine()),
        "between_tokens": {
            kind: {f"p{percent}": percentile(values, percent / 100) for percent in (50, 90, 99)}
            | {"count": len(values)}
            for kind, values in found.between.items()
        },
        "evaluations": found.evaluations,
    }


def table(found: Gaps) -> RenderableType:
    """Return the percentiles in ms, and their ratio."""
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("time between tokens, ms", "P50", "P90", "P99", "tokens"):
        rows.add_column(column, justify="left" if column.startswith("time") else "right")
    for kind, values in found.between.items():
        rows.add_row(
            kind, *(f"{1e3 * percentile(values, percent / 100):.1f}" for percent in (50, 90, 99)), str(len(values))
        )
    rows.add_row("ratio", *(f"{found.ratio(percent):.2f}" for percent in (50, 90, 99)), "")
    return Group(rows, *(Text(line, style="dim") for line in _notes(found)))


def _notes(found: Gaps) -> Iterator[str]:
    machine, took = this_machine(), found.evaluations
    yield f"{CHATS} chats at once; {len(took)} uploads, median {statistics.median(took):.1f} s until served"
    yield f"{machine.cpu}, {machine.cores} cores"
