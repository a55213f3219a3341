"""Cost of a relay: the same load directly to a stand-in engine and through each target, in interleaved rounds.

Every round measures every target at every concurrency, in an order that shifts by one each round, so that other load on
the machine affects all of them alike. The time a target adds is its percentile less the direct one *of the same round*; the
median over the rounds is shown.
"""

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from app.bench.relay.load import LONGEST_S, Job
from app.bench.relay.processes import cpu_seconds, resident_mib
from app.bench.relay.targets import KEY, PEERS, Missing, Target, stand_in
from app.bench.screening.machine import Machine, this_machine, watch_others

GAP_S: Final = 0.05
"""Seconds between two tokens of a stream: 20 tokens a second each."""

TOKENS: Final = 21
"""Tokens of a stream: one second."""

WHOLE_TOKENS: Final = 3
"""Tokens of an answer that is not streamed: 100 ms, so that its latency is not dominated by queueing."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options. concurrency: simultaneous streams, each a row. seconds: per measurement. only: targets, empty for all."""

    concurrency: tuple[int, ...] = (1, 16, 64, 256)
    seconds: float = 3.0
    rounds: int = 3
    only: tuple[str, ...] = ()

    @classmethod
    def quick(cls, only: tuple[str, ...] = ()) -> "Options":
        """Return options for a run of a minute or two."""
        return cls((1, 16), 1.5, 2, only)


@dataclass(frozen=True, slots=True)
class Row:
    """One target at one concurrency. Added times in ms, relative to the direct connection; None if not applicable.

    added: to a whole request, first byte sent to last byte received. first: to a stream's first token. chunk: to a token's
    transit time from the engine. requests_per_core_s: requests (streamed: streams) per second of the target's processor
    time. flat_out_*: answers without any delay, at full throughput. memory_mib: resident, at the end. stream_kb: memory per
    open stream, above the amount held before.
    """

    target: str
    concurrency: int
    streaming: bool
    requests: int
    errors: int
    added_p50_ms: float
    added_p95_ms: float
    added_p99_ms: float
    first_p50_ms: float | None
    first_p99_ms: float | None
    chunk_p50_ms: float | None
    chunk_p95_ms: float | None
    chunk_p99_ms: float | None
    tokens_share: float | None
    requests_per_core_s: float
    flat_out_per_s: float | None
    flat_out_per_core_s: float | None
    memory_mib: float
    stream_kb: float | None


@dataclass(frozen=True, slots=True)
class Result:
    """Result of `run`. skipped: target → reason. versions: target → version."""

    machine: Machine
    others: float
    rows: tuple[Row, ...]
    skipped: dict[str, str]
    versions: dict[str, str]


@dataclass(slots=True)
class Seen:
    """One measurement of one target. said: the first wrong answer."""

    requests: int
    errors: int
    said: str
    tokens_per_s: float
    requests_per_s: float
    cpu_s: float
    before_mib: float
    during_mib: float
    request: Sequence[float]
    first: Sequence[float]
    under_way: Sequence[float]


def run(options: Options, progress: Callable[[str, float], None]) -> Result:
    """Run the benchmark. `tell` is called with the current step and the share done."""
    skipped: dict[str, str] = {}
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="bench-gateway-") as made, watch_others() as others:
        scratch = Path(made)
        direct = stack.enter_context(stand_in(scratch, GAP_S))
        targets = [direct]
        for name, opened in PEERS.items():
            if options.only and name not in options.only:
                continue
            progress(f"starting {name}", 0.0)
            try:
                targets.append(stack.enter_context(opened(scratch, direct.url)))
            except Missing as why:
                skipped[name] = str(why)
        rows = tuple(_rounds(options, targets, progress))
        stack.close()  # before the directory is removed
    return Result(this_machine(), others.share, rows, skipped, {t.name: t.version for t in targets})


def _rounds(options: Options, targets: list[Target], progress: Callable[[str, float], None]) -> list[Row]:
    modes = ("flat out", "whole", "stream")
    seen: dict[tuple[str, int, str], list[Seen]] = {}
    total, done = options.rounds * len(options.concurrency) * len(modes) * len(targets), 0
    for turn in range(-1, options.rounds):  # turn −1 is a warm-up and is discarded
        for connections in options.concurrency if turn >= 0 else options.concurrency[-1:]:
            for mode in modes:
                for index in range(len(targets)):
                    target = targets[(index + turn) % len(targets)]
                    progress(f"{target.name}, {mode}, {connections} at once", max(done / total, 0.0))
                    found = measure(target, mode, connections, options.seconds if turn >= 0 else 1.0)
                    if turn >= 0:
                        seen.setdefault((target.name, connections, mode), []).append(found)
                        done += 1
    return [
        _row(seen, target.name, connections, streaming=streaming)
        for streaming in (False, True)
        for connections in options.concurrency
        for target in targets
    ]


def measure(target: Target, mode: str, connections: int, seconds: float) -> Seen:
    """Run one load on one target."""
    tokens = {"flat out": 1, "whole": WHOLE_TOKENS, "stream": TOKENS}[mode]
    job = Job(target.url, target.model, KEY, mode == "stream", connections, seconds, tokens, GAP_S)
    memory, cpu = resident_mib(target.pid), cpu_seconds(target.pid)
    during: list[float] = []
    sampling = threading.Timer(seconds * 0.7, lambda: during.append(resident_mib(target.pid)))
    sampling.start()
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as file:
        command = [sys.executable, "-m", "app.bench.relay.load", json.dumps(asdict(job)), file.name]
        subprocess.run(command, check=True, timeout=seconds + LONGEST_S + 30)
        sampling.join()
        sample: dict[str, Any] = json.load(file)
    return Seen(
        requests=sample["requests"],
        errors=sample["errors"],
        said=sample["said"],
        tokens_per_s=sample["tokens"] / sample["elapsed"],
        requests_per_s=sample["requests"] / sample["elapsed"],
        cpu_s=cpu_seconds(target.pid) - cpu,
        before_mib=memory,
        during_mib=during[0],
        request=sample["request"],
        first=sample["first"],
        under_way=sample["under_way"],
    )


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of `values` lie; NaN if there are none."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


def _row(seen: dict[tuple[str, int, str], list[Seen]], name: str, connections: int, *, streaming: bool) -> Row:
    mode = "stream" if streaming else "whole"
    mine, direct = seen[name, connections, mode], seen["direct", connections, mode]
    flat = None if streaming else seen[name, connections, "flat out"]

    def added(field: str, share: float) -> float | None:
        """Return the median over the rounds of the target's increase of this percentile, ms."""
        pairs = [(getattr(m, field), getattr(d, field)) for m, d in zip(mine, direct, strict=True)]
        found = [(percentile(m, share) - percentile(d, share)) * 1e3 for m, d in pairs if m and d]
        return median(found) if found else None

    whole = [added("request", share) for share in (0.5, 0.95, 0.99)]
    grown = [(m.during_mib - m.before_mib) * 1024 / connections for m in mine]
    return Row(
        target=name,
        concurrency=connections,
        streaming=streaming,
        requests=sum(m.requests for m in mine),
        errors=sum(m.errors for m in (*mine, *(flat or ()))),
        added_p50_ms=whole[0] if whole[0] is not None else float("nan"),
        added_p95_ms=whole[1] if whole[1] is not None else float("nan"),
        added_p99_ms=whole[2] if whole[2] is not None else float("nan"),
        first_p50_ms=added("first", 0.5),
        first_p99_ms=added("first", 0.99),
        chunk_p50_ms=added("under_way", 0.5),
        chunk_p95_ms=added("under_way", 0.95),
        chunk_p99_ms=added("under_way", 0.99),
        tokens_share=_share([m.tokens_per_s for m in mine], [d.tokens_per_s for d in direct]) if streaming else None,
        requests_per_core_s=_per_core(mine),
        flat_out_per_s=median(f.requests_per_s for f in flat) if flat else None,
        flat_out_per_core_s=_per_core(flat) if flat else None,
        memory_mib=mine[-1].during_mib,
        stream_kb=max(median(grown), 0.0) if streaming else None,
    )


def _share(mine: list[float], direct: list[float]) -> float:
    return median(m / d if d else 0.0 for m, d in zip(mine, direct, strict=True))


def _per_core(found: list[Seen]) -> float:
    """Return requests per second of the target's processor time, over all rounds (its clock ticks at 10 ms)."""
    return sum(f.requests for f in found) / max(sum(f.cpu_s for f in found), 0.01)
