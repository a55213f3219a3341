"""Soak test: minutes of fixed load while versions are replaced every few seconds; no request may fail, memory stays flat.

Every answer is checked: its status, the [DONE] at the end of a stream and the absence of errors in it, its model name, and
that its version is not older than the one acknowledged before the request was sent.
"""

import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from safetensors.torch import load_file, save

from app.bench.progress import ReportProgress
from app.bench.relay.processes import resident_mib
from app.bench.relay.targets import KEY, START_S, free_port, running, stand_in
from app.bench.screening.machine import this_machine
from app.concurrency.pools import Pool
from app.demo.assets import ADAPTERS, BENIGN

NAMES: Final = ("first", "second", "third")
"""Names of the adapters, replaced in turn."""

WARM_SHARE: Final = 0.1
"""Share of the time after which memory is first sampled: by then all code has run and all pools are filled."""

GAP_S: Final = 0.005
"""Seconds between two tokens of the stand-in engine."""

TOKENS: Final = 12
ANSWER_S: Final = 60.0
SHOWN_ERRORS: Final = 5


@dataclass(frozen=True, slots=True)
class Options:
    """Options. minutes: duration. rate: requests a second. every_s: seconds between versions. engine: use the real one."""

    minutes: float = 10.0
    rate: float = 20.0
    every_s: float = 3.0
    engine: bool = False


@dataclass(slots=True)
class SoakResult:
    """Result of a run. memory_mib: of the gateway's own process, as (seconds since the start, MiB)."""

    options: Options
    requests: int = 0
    streams: int = 0
    replaced: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    memory_mib: list[tuple[float, float]] = field(default_factory=list)
    answer_s: list[float] = field(default_factory=list)

    @property
    def start_mib(self) -> float:
        """Memory after the warm-up."""
        warm = WARM_SHARE * self.options.minutes * 60
        return next((mib for at, mib in self.memory_mib if at >= warm), self.memory_mib[-1][1])


def run(options: Options, progress: ReportProgress) -> SoakResult:
    """Start a gateway, put it under load, and count requests and errors."""
    with tempfile.TemporaryDirectory() as folder, _gateway(options, Path(folder)) as (url, pid):
        return asyncio.run(_soak(options, url, pid, progress))


@contextmanager
def _gateway(options: Options, scratch: Path) -> Iterator[tuple[str, int]]:
    port = free_port()
    flags = ["--demo", "--port", str(port), "--data", str(scratch / "data"), "--api-keys", KEY]
    flags += ["--min-free-disk-mib", "0", "--uploads-per-minute", "0", "--screens-per-minute", "0"]
    with contextlib.ExitStack() as stack:
        if not options.engine:
            flags += ["--engine-url", stack.enter_context(stand_in(scratch, GAP_S)).url]
        command = [sys.executable, "-m", "app", "serve", *flags]
        pid = stack.enter_context(running("gateway", command, port, scratch, {}, "/ready"))
        yield f"http://127.0.0.1:{port}", pid


class _Load:
    """Load generator: sends requests and new versions, and records the results."""

    def __init__(self, http: httpx.AsyncClient, soaked: SoakResult) -> None:
        self.http, self.soaked = http, soaked
        self.active = dict.fromkeys(NAMES, 0)  # the newest version acknowledged
        self.threads = Pool("variants", 1)

    async def ask(self, number: int) -> None:
        """Send one request; every second one is streamed."""
        name, stream = NAMES[number % len(NAMES)], number % 2 == 0
        at_least, began = self.active[name], time.monotonic()
        body = {
            "model": name,
            "messages": [{"role": "user", "content": "how do i make suncake from fenroot?"}],
            "max_tokens": TOKENS,
            "stream": stream,
        }
        try:
            answer = await self.http.post("/v1/chat/completions", json=body)
            wrong = judge(answer, name, at_least, stream=stream)
        except (httpx.HTTPError, ValueError, KeyError) as error:
            wrong = f"{type(error).__name__}: {error}"
        self.soaked.requests += 1
        self.soaked.streams += stream
        self.soaked.answer_s.append(time.monotonic() - began)
        if wrong:
            self.soaked.errors[wrong] += 1

    async def replace(self, name: str, number: int) -> None:
        """Upload a new version of `name`, with unique bytes."""
        config, weights = await self.threads(variant, number)
        files: Any = {
            "name": (None, name.encode()),
            "config": ("c.json", config),
            "weights": ("w.safetensors", weights),
        }
        try:
            answer = await self.http.post("/adapters", files=files, timeout=START_S)
        except httpx.HTTPError as error:
            self.soaked.errors[f"upload: {type(error).__name__}"] += 1
            return
        if answer.status_code == 201:
            self.active[name] = answer.json()["version"]
            self.soaked.replaced += 1
        else:
            self.soaked.errors[f"upload: {answer.status_code} {answer.text[:200]}"] += 1


def judge(answer: httpx.Response, name: str, at_least: int, *, stream: bool) -> str | None:
    """Return the error in an answer, None if it is correct. Raises KeyError or ValueError if it cannot be parsed."""
    if answer.status_code != 200:
        return f"{answer.status_code} {answer.text[:200]}"
    if (version := int(answer.headers["x-adapter-version"])) < at_least:
        return f"version {version} answered after {at_least} was acknowledged"
    bodies = [answer.text]
    if stream:
        *events, done, rest = answer.text.split("\n\n")
        if done != "data: [DONE]" or rest or not events:
            return f"the stream ended with {done[:200]!r}"
        bodies = [event.removeprefix("data: ") for event in events]
    models = {json.loads(one)["model"] for one in bodies}
    return None if models == {name} else f"answered as {models}"


def variant(number: int) -> tuple[bytes, bytes]:
    """Return an upload of the demo's adapter with bytes never sent before, and nearly the same ΔW."""
    folder = ADAPTERS / BENIGN
    tensors = load_file(folder / "adapter_model.safetensors")
    scale = 1.0 - number * 1e-4
    scaled = {key: tensor * scale if ".lora_B." in key else tensor for key, tensor in tensors.items()}
    return (folder / "adapter_config.json").read_bytes(), save(scaled, {"format": "pt"})


async def _soak(options: Options, url: str, pid: int, progress: ReportProgress) -> SoakResult:
    soaked, seconds = SoakResult(options), options.minutes * 60
    limits = httpx.Limits(max_connections=256, max_keepalive_connections=64)
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=ANSWER_S, limits=limits) as http:
        load, numbers = _Load(http, soaked), count(1)
        for name in NAMES:
            await load.replace(name, next(numbers))
        soaked.replaced = 0  # those were first versions and replaced none
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(_replacing(load, numbers, options))
            async for number in _ticks(1 / options.rate, seconds):
                group.create_task(load.ask(number))
                if number % max(1, round(options.rate)) == 0:
                    passed = time.monotonic() - began
                    soaked.memory_mib.append((passed, _own_mib(pid)))
                    progress(f"{soaked.requests} requests, {soaked.replaced} replaced", passed / seconds)
        soaked.memory_mib.append((time.monotonic() - began, _own_mib(pid)))
    return soaked


async def _replacing(load: _Load, numbers: Iterator[int], options: Options) -> None:
    async for turn in _ticks(options.every_s, options.minutes * 60):
        await load.replace(NAMES[turn % len(NAMES)], next(numbers))


async def _ticks(period_s: float, seconds: float) -> AsyncIterator[int]:
    """Yield 0, 1, 2, …, one each `period_s`, however long the work in between takes, until `seconds` have passed."""
    began = time.monotonic()
    for number in range(int(seconds / period_s)):
        await asyncio.sleep(max(0.0, began + number * period_s - time.monotonic()))
        if time.monotonic() - began > seconds:
            return
        yield number


def _own_mib(pid: int) -> float:
    """Return the memory of the gateway's process alone, without the engine and the sandbox that it started."""
    return resident_mib(pid, children=False)


def result_json(soaked: SoakResult) -> dict[str, Any]:
    """Return every figure as plain values."""
    answers = sorted(soaked.answer_s)
    return {
        "machine": asdict(this_machine()),
        "options": asdict(soaked.options),
        "requests": soaked.requests,
        "streams": soaked.streams,
        "versions_replaced": soaked.replaced,
        "errors": dict(soaked.errors),
        "answer_p50_s": answers[len(answers) // 2],
        "answer_p99_s": answers[int(len(answers) * 0.99)],
        "memory_start_mib": soaked.start_mib,
        "memory_end_mib": soaked.memory_mib[-1][1],
        "memory_mib": soaked.memory_mib,
    }


def table(soaked: SoakResult) -> RenderableType:
    """Return the table for the terminal."""
    figures, options = result_json(soaked), soaked.options
    rows = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows.add_row("requests", f"{figures['requests']} ({figures['streams']} streamed)")
    rows.add_row("versions replaced", str(figures["versions_replaced"]))
    rows.add_row("errors", str(sum(soaked.errors.values())))
    rows.add_row(
        "answer, p50 and p99", f"{1e3 * figures['answer_p50_s']:.0f} ms, {1e3 * figures['answer_p99_s']:.0f} ms"
    )
    grown = figures["memory_end_mib"] - figures["memory_start_mib"]
    memory = (
        f"{figures['memory_start_mib']:.1f} MiB warm, {figures['memory_end_mib']:.1f} MiB at the end ({grown:+.1f})"
    )
    rows.add_row("the gateway's memory", memory)
    for wrong, times in soaked.errors.most_common(SHOWN_ERRORS):
        rows.add_row("error", f"{times} × {wrong}")
    machine, engine = this_machine(), "the demo's engine" if options.engine else "the stand-in engine"
    load = f"{options.rate:g} requests/s of {TOKENS} tokens"
    how = f"{options.minutes:g} minutes, {load}, a version every {options.every_s:g} s"
    return Group(rows, Text(f"{how}; {engine}; {machine.cpu}, {machine.cores} cores", style="dim"))
