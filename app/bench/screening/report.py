"""Result of the screening benchmark as tables for the terminal and as JSON."""

from dataclasses import asdict
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table

from app.bench.screening.run import BALANCING, REPEATS, Result

BUSY: Final = 0.05
"""Share of the cores taken by other processes from which the table warns that its times are affected."""


def result_json(result: Result) -> dict[str, Any]:
    """Return the result as plain values: seconds; bytes or MiB for keys that say so."""
    return {
        "machine": asdict(result.machine),
        "read_gb_per_s": result.read_bytes_per_s / 1e9,
        "modules": result.warm.modules,
        "warm_seconds": result.warm.seconds,
        "floor_seconds": result.warm.floor_seconds,
        "ratio_to_floor": result.warm.ratio,
        "speedup_vs_released": result.speedup_vs_released,
        "peak_extra_mib": result.peak_extra_mib,
        "cpu_seconds": result.warm.cpu_seconds,
        "others": result.others,
        "warm_up_seconds": result.warm_up_seconds,
        "reference_bytes": result.reference_bytes,
        "compact_bytes": result.compact_bytes,
        "timings": [{**asdict(t), "ratio_to_floor": t.ratio} for t in result.timings],
        "baseline": asdict(result.baseline),
        "synthetic": True,
    }


def tables(result: Result) -> RenderableType:
    """Return the tables that the command prints."""
    return Group(_machine(result), _screenings(result), _published(result))


def _machine(result: Result) -> Table:
    table = Table(
        title="This machine, and a synthetic reference", show_header=False, pad_edge=False, title_justify="left"
    )
    m = result.machine
    table.add_row("processor", f"{m.cpu}, {m.cores} cores, {m.ram_gib:.0f} GiB")
    table.add_row("memory, read", f"{result.read_bytes_per_s / 1e9:.1f} GB/s, all cores")
    size, compact = result.reference_bytes / 1e9, result.compact_bytes / 1e6
    table.add_row("reference, q and v", f"{size:.2f} GB with V in bfloat16, {compact:.0f} MB compact")
    table.add_row("peak extra memory", f"{result.peak_extra_mib:.0f} MiB (anonymous, sampled)")
    table.add_row("compiling, once", f"{result.warm_up_seconds:.1f} s")
    note = "" if result.others < BUSY else ": times by the clock suffer"
    table.add_row("other processes", f"took {result.others:.0%} of the cores{note}")
    return table


def _screenings(result: Result) -> Table:
    table = Table(title="One adapter, milliseconds", pad_edge=False, title_justify="left")
    for column in ("", "modules", "rank", "adapter", "module", "cores", "floor", "ratio"):
        table.add_column(column, justify="left" if column == "" else "right", no_wrap=True)
    for t in result.timings:
        floor = "–" if t.floor_seconds is None else f"{t.floor_seconds * 1e3:.0f}"
        ratio = "–" if t.ratio is None else f"{t.ratio:.1f}"
        per = f"{t.seconds / t.modules * 1e3:.2f}"
        cpu = f"{t.cpu_seconds / t.modules * 1e3:.2f}"
        table.add_row(t.what, str(t.modules), str(t.rank), f"{t.seconds * 1e3:.0f}", per, cpu, floor, ratio)
    disk = sum(t.disk_bytes for t in result.timings) / 1e9
    table.caption_justify = "left"
    table.caption = (
        "adapter, module: time by the clock. cores: processor time a module, all cores.\n"
        "floor: every V read once.\n"
        f"cold: page cache dropped (posix_fadvise); {disk:.1f} GB came from the disk.\n"
        f"All else is warm, best of {REPEATS}. {BALANCING}: what an upload needs before it is screened."
    )
    return table


def _published(result: Result) -> Table:
    b = result.baseline
    shape = f"{b.shape.d_out} × {b.shape.d_in}"
    title = f"Published algorithms, written anew; one {shape} module, rank 8"
    table = Table(title=title, pad_edge=False, title_justify="left")
    table.add_column("")
    table.add_column("per module", justify="right")
    table.add_column("ours is faster by", justify="right")
    ours = result.warm.seconds / result.warm.modules
    rows = (
        ("released SPLoRA: C·B·A, 50 norms, quantiles", b.released_seconds),
        ("Safe LoRA: dense cosine", b.safe_lora_seconds),
        ("building C = V·Vᵀ/‖V‖, before either", b.build_c_seconds),
    )
    for what, seconds in rows:
        table.add_row(
            what, f"{seconds * 1e3:.0f} ms", "" if what.startswith("building") else f"{seconds / ours:,.0f} ×"
        )
    return table
