"""Command `bench safety`: runs the plan and writes results, tables and figures."""

import json
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Group, RenderableType
from rich.text import Text

from app import __version__
from app.bench.progress import ReportProgress
from app.bench.safety.cache import Cache
from app.bench.safety.plan import SIZES, WANTS_GPU, full
from app.bench.safety.plan import quick as quick_plan
from app.bench.safety.run import results_of
from app.bench.safety.summary import lines
from app.bench.safety.tables import markdown, table
from app.bench.screening.machine import this_machine

ROWS_FILE: Final = "safety.json"
SCORES_FILE: Final = "scores.json"
TABLE_FILE: Final = "results.md"
MADE_FILE: Final = "made.json"

RESULTS: Final = Path(__file__).parents[1] / "results"
"""Directory of the committed results of the small models; those of another size are in a folder of its name."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a run.

    size: a name in SIZES. cache: directory of trained models and finished rows. output: directory of the results.
    only_cached: train and ask nothing new; report on the complete seeds in the cache. canaries: the benchmark of the
    gateway with canaries (bench/canaries).
    """

    size: str
    cache: Path
    output: Path
    quick: bool = False
    only_cached: bool = False
    canaries: bool = False


def run(options: Options, progress: ReportProgress) -> RenderableType:
    """Run everything in the plan that is missing in the cache; return the tables, also written to `output`."""
    started = time.monotonic()
    notes: list[str] = []
    plan = (quick_plan if options.quick else full)(SIZES[options.size])
    if plan.size.name == WANTS_GPU and plan.size.device == "cpu":
        notes.append("no GPU here: the large models are trained on the CPU, which takes days")
    store = Cache(options.cache, lambda path: notes.append(f"{path.name} in the cache was damaged and was made again"))
    rows: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    for some, found in results_of(plan, store, progress, only_cached=options.only_cached):
        rows += some
        scores += found
    best = lines(rows, None if plan.tune else _rows_to_choose_on())
    made = provenance(options, time.monotonic() - started)
    _write(options.output, rows, scores, made)
    (options.output / TABLE_FILE).write_text(markdown(plan, rows, best, provenance_sentence(made)), encoding="utf-8")
    notes += _draw(rows, scores, options.output)
    return Group(table(plan, rows, best), *(Text(note) for note in notes), Text(f"written to {options.output}"))


def _rows_to_choose_on() -> list[dict[str, Any]]:
    """Return the committed rows of the small models: their tuning seeds choose parameters for the larger ones."""
    found: list[dict[str, Any]] = json.loads((RESULTS / ROWS_FILE).read_text(encoding="utf-8"))
    return found


def _write(output: Path, rows: list[dict[str, Any]], scores: list[dict[str, Any]], made: dict[str, Any]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for name, items in ((ROWS_FILE, rows), (SCORES_FILE, scores)):
        (output / name).write_text(json_rows(items), encoding="utf-8")
    (output / MADE_FILE).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def json_rows(items: Iterable[Mapping[str, Any]]) -> str:
    """Return a JSON list with one item a line, so that a diff between runs stays readable."""
    body = ",\n".join(json.dumps(item, separators=(",", ":")) for item in items)
    return f"[\n{body}\n]\n"


def provenance(options: Options, seconds: float) -> dict[str, Any]:
    """Return the command, the versions and the machine that made results."""
    given = {"--canaries": options.canaries, "--quick": options.quick, "--only-cached": options.only_cached}
    flags = "".join(f" {flag}" for flag, on in given.items() if on)
    return {
        "command": f"python -m app bench safety --size {options.size}{flags}",
        "version": __version__,
        "commit": commit(),
        "torch": torch.__version__,
        "machine": asdict(this_machine()),
        "seconds_of_the_last_run": round(seconds),
    }


def commit() -> str | None:
    """Return the commit of the working tree that holds the code, or None outside one."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, check=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def provenance_sentence(made: dict[str, Any]) -> str:
    """Return the same in a sentence for the tables."""
    return f"Made by `{made['command']}` at commit {made['commit'] or 'unknown'}, torch {made['torch']}."


def _draw(rows: list[dict[str, Any]], scores: list[dict[str, Any]], output: Path) -> list[str]:
    try:
        from app.bench.safety.figures import draw
    except ImportError as error:
        return [f"no figures: {error.name} is missing; install the extra `bench`"]
    return [f"figure: {path.name}" for path in draw(rows, scores, output)]
