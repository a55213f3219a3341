"""Screening benchmark: the time to screen one adapter, compared with the time to read V from memory once.

The floor of a screening is the bytes of V divided by the measured bandwidth. Bandwidth and screenings are measured
alternately in one run, so that other load on the machine affects both.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from app.bench.screening.baselines import alignment_matrix, released_score, safe_lora_cosine
from app.bench.screening.machine import (
    Machine,
    bytes_from_disk,
    drop_from_cache,
    read_bandwidth,
    this_machine,
    watch_memory,
    watch_others,
)
from app.bench.screening.synthetic import llama_modules, random_adapter, write_synthetic
from app.domain.lora import Adapter, Shape
from app.domain.policy import Comparison, Policy
from app.screen.balance import balance_all
from app.screen.compiled.warm import warm
from app.screen.reference.open import Reference, open_reference
from app.screen.screen import screen

POLICY: Final = Policy(comparison=Comparison.INPUT)
"""Policy of the benchmark. Every comparison is measured in any case; `input` is the one a compact reference supports."""

RANKS: Final = (8, 16)
REPEATS: Final = 5
"""Number of repetitions, of which the best counts, after one uncounted one (it maps the pages)."""

ROOM: Final = 1.2
"""Free disk space required, relative to the bytes written: file systems keep a reserve."""

COMPACT: Final = "q, v, compact"
BALANCING: Final = "balancing"
BALANCED_RANKS: Final = (*RANKS, 64)
ALL_KINDS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TINY: Final = {f"model.layers.{i}.self_attn.{kind}": Shape(512, 256) for i in range(2) for kind in ("q_proj", "v_proj")}

Progress = Callable[[str, float], None]
"""Callback (current step, share of the run that is done, 0..1)."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a run.

    layers: of q and v at Llama-2-7B's size (32: the full model). all_layers: of all seven kinds. tiny: a few small modules,
    for tests. directory: location of the references during the run, 2.9 GB at full size (None: the system's temporary one).
    """

    layers: int = 32
    all_layers: int = 2
    tiny: bool = False
    directory: Path | None = None

    @classmethod
    def quick(cls, directory: Path | None = None) -> "Options":
        """Return options for an eighth of the modules."""
        return cls(layers=4, all_layers=1, directory=directory)

    def shapes(self) -> tuple[Mapping[str, Shape], Mapping[str, Shape]]:
        """Return the modules of the q,v reference and of the one with all kinds."""
        if self.tiny:
            return TINY, dict(list(TINY.items())[:2])
        return llama_modules(self.layers), llama_modules(self.all_layers, ALL_KINDS)


@dataclass(frozen=True, slots=True)
class Timing:
    """One line of the table.

    seconds: per adapter, wall clock. cpu_seconds: per adapter, of all cores together; unlike wall-clock time it excludes
    other processes. floor_seconds: reading every V once, None if no V is read. disk_bytes: read from the disk.
    """

    what: str
    modules: int
    rank: int
    seconds: float
    cpu_seconds: float
    floor_seconds: float | None
    disk_bytes: int

    @property
    def ratio(self) -> float | None:
        """Ratio of seconds to the floor."""
        return None if self.floor_seconds is None else self.seconds / self.floor_seconds


@dataclass(frozen=True, slots=True)
class Baseline:
    """Seconds of the published algorithms on one module (d_out, d_in, rank 8): building C, one score, one cosine."""

    shape: Shape
    build_c_seconds: float
    released_seconds: float
    safe_lora_seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """All measurements.

    read_bytes_per_s: best of all bandwidth measurements. warm_up_seconds: compilation, once. others: share of the cores
    used by other processes while one adapter was screened warm; 0 on an idle machine.
    """

    machine: Machine
    read_bytes_per_s: float
    reference_bytes: int
    compact_bytes: int
    warm_up_seconds: float
    peak_extra_mib: float
    others: float
    timings: tuple[Timing, ...]
    baseline: Baseline

    @property
    def warm(self) -> Timing:
        """Timing of one adapter of rank 8 on q and v."""
        return self.timings[0]

    @property
    def speedup_vs_released(self) -> float:
        """Ratio of the released algorithm's time to ours, per module; its C counts as already built."""
        return self.baseline.released_seconds / (self.warm.seconds / self.warm.modules)


def run(options: Options, progress: Progress = lambda what, share: None) -> Result:
    """Run the benchmark. Blocking, minutes at full size. Raises OSError if the disk has too little space."""
    shapes, all_shapes = options.shapes()
    with tempfile.TemporaryDirectory(prefix="bench-screening-", dir=options.directory) as temporary:
        where = Path(temporary)
        _check_room(where, 2 * sum(s.d_out * s.d_in for of in (shapes, all_shapes) for s in of.values()))
        total = len(shapes) + len(all_shapes)
        write_synthetic(where / "qv", shapes, lambda done: progress("writing q, v", 0.5 * done / total))
        write_synthetic(
            where / "all", all_shapes, lambda done: progress("writing all kinds", 0.5 * (len(shapes) + done) / total)
        )
        return _measure(where, shapes, all_shapes, progress)


def _check_room(where: Path, needed: int) -> None:
    free = shutil.disk_usage(where).free
    if free < ROOM * needed:
        raise OSError(f"{where}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; choose a directory")


@contextmanager
def _opened(directory: Path) -> Iterator[Reference]:
    """Open a reference mapped, not copied, whatever its size; not hashed, because it was written just before."""
    reference = open_reference(directory, None, verify_files=False, hold_bytes=0)
    try:
        yield reference
    finally:
        reference.close()


def _measure(where: Path, shapes: Mapping[str, Shape], all_shapes: Mapping[str, Shape], progress: Progress) -> Result:
    progress("compiling", 0.5)
    warm_up = warm()
    speeds = [read_bandwidth()]
    adapter = random_adapter(shapes, RANKS[0], 0)
    found: list[_Line] = []
    progress("q and v, warm", 0.55)
    with _opened(where / "qv") as reference:
        screen(adapter, reference, POLICY)
        with watch_memory() as peak:
            screen(adapter, reference, POLICY)
        with watch_others() as others:
            for rank in RANKS:
                one = adapter if rank == RANKS[0] else random_adapter(shapes, rank, 0)
                found.append(_Line("q, v", shapes, rank, _best(one, reference, speeds)))
        progress("the released algorithm", 0.7)
        baseline = _baseline(reference)
    progress("q and v, cold", 0.9)
    found.append(_Line("q, v, cold", shapes, RANKS[0], *_cold(where / "qv", adapter)))
    progress("all kinds", 0.92)
    with _opened(where / "all") as reference:
        for rank in RANKS:
            one = random_adapter(all_shapes, rank, 0)
            found.append(_Line("all seven", all_shapes, rank, _best(one, reference, speeds)))
    progress("compact", 0.97)
    with _opened(where / "qv-compact") as reference:
        found.append(_Line(COMPACT, shapes, RANKS[0], _best(adapter, reference, speeds)))
    progress(BALANCING, 0.98)
    for what, of in (("q, v", shapes), ("all seven", all_shapes)):
        found += [_Line(f"{what}, {BALANCING}", of, rank, _balancing(of, rank)) for rank in BALANCED_RANKS]
    progress("done", 1.0)
    return Result(
        machine=this_machine(),
        read_bytes_per_s=max(speeds),
        reference_bytes=_bytes_in(where / "qv"),
        compact_bytes=_bytes_in(where / "qv-compact"),
        warm_up_seconds=warm_up,
        peak_extra_mib=peak.extra_mib,
        others=others.share,
        timings=tuple(_timing(line, max(speeds)) for line in found),
        baseline=baseline,
    )


@dataclass(frozen=True, slots=True)
class _Line:
    """A measurement before the best bandwidth is known. seconds: wall clock and processor, per adapter."""

    what: str
    shapes: Mapping[str, Shape]
    rank: int
    seconds: tuple[float, float]
    disk_bytes: int = 0


def _timing(line: _Line, bandwidth: float) -> Timing:
    reads = line.what != COMPACT and not line.what.endswith(BALANCING)
    floor = _v_bytes(line.shapes) / bandwidth if reads else None
    return Timing(line.what, len(line.shapes), line.rank, *line.seconds, floor, line.disk_bytes)


def _v_bytes(shapes: Mapping[str, Shape]) -> int:
    return sum(2 * s.d_out * s.d_in for s in shapes.values())


def _bytes_in(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.iterdir())


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return seconds of wall-clock time and of processor time."""
    begun, spent = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begun, time.process_time() - spent


def _best(adapter: Adapter, reference: Reference, speeds: list[float]) -> tuple[float, float]:
    """Return the times of a complete screening, best of REPEATS; the bandwidth is measured again in between."""
    times = _repeated(lambda: screen(adapter, reference, POLICY))
    speeds.append(read_bandwidth())
    return times


def _balancing(shapes: Mapping[str, Shape], rank: int) -> tuple[float, float]:
    """Time the conversion of one adapter into the form that is screened."""
    adapter = random_adapter(shapes, rank, 0)
    return _repeated(lambda: balance_all(adapter))


def _repeated(work: Callable[[], object]) -> tuple[float, float]:
    """Return the best of REPEATS, wall clock and processor time."""
    work()
    clock, processor = zip(*(_timed(work) for _ in range(REPEATS)), strict=True)
    return min(clock), min(processor)


def _cold(directory: Path, adapter: Adapter) -> tuple[tuple[float, float], int]:
    """Time the first screening after the page cache was dropped; also return the bytes read from the disk."""
    drop_from_cache(directory)
    with _opened(directory) as reference:
        before = bytes_from_disk()
        seconds = _timed(lambda: screen(adapter, reference, POLICY))
        return seconds, bytes_from_disk() - before


def _baseline(reference: Reference) -> Baseline:
    """Time the published algorithms in float32 on one module, with torch's default number of threads."""
    name, shape = next(iter(reference.modules.items()))
    v = reference.v(name)
    assert v is not None
    g = torch.Generator().manual_seed(0)
    b, a = (torch.randn(size, generator=g) for size in ((shape.d_out, RANKS[0]), (RANKS[0], shape.d_in)))
    wide = v.float()
    begun = time.perf_counter()
    c = alignment_matrix(wide)
    build = time.perf_counter() - begun
    released, _ = _timed(lambda: released_score(c, b, a))
    safe, _ = _timed(lambda: safe_lora_cosine(c, b, a))
    return Baseline(shape, build, released, safe)
