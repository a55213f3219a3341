"""Complete benchmark: trains missing models, asks every changed model, and caches each adapter's rows."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from peft import PeftModel

from app.bench.progress import ReportProgress
from app.bench.safety.adapter_under_test import Alignment, Subject, subject_of
from app.bench.safety.attacker import against_attacker
from app.bench.safety.budgets import budgets
from app.bench.safety.cache import Cache
from app.bench.safety.method import Cell, bytes_saved
from app.bench.safety.nulls import nulls
from app.bench.safety.plan import FineTune, Plan, Split
from app.bench.safety.project_both_ends import both_ends, policies_by_energy
from app.bench.safety.projection_variants import correcting
from app.bench.safety.pruning import pruning
from app.bench.safety.teacher_forced import Examination, Metrics
from app.bench.safety.trained_models import ATTACKER_KIND, Pair, adapter_of, evading_adapter_of, pair_of
from app.demo.evasion import Evasion

ROWS: Final = "rows.json"
SCORES: Final = "scores.json"
SAVED: Final = "saved.json"
METHODS: Final = 1
"""Version that is part of the rows' key: to be raised if a method or a metric changes."""

NULLS_ON: Final = 0.1
"""Mix on which the nulls are compared."""


@dataclass(frozen=True, slots=True)
class Row:
    """Row of the results: one cell with its metrics."""

    method: str
    unit: str
    threshold: str
    size: str
    mix: float
    targets: str
    rank: int
    seed: int
    split: Split
    pruned_share: float
    metrics: Metrics

    def plain(self) -> dict[str, Any]:
        """Return the row as flat plain values, as written to file."""
        fields = {name: getattr(self, name) for name in self.__slots__ if name != "metrics"}
        return {**fields, **{name: round(value, 4) for name, value in asdict(self.metrics).items()}}


Results = tuple[list[dict[str, Any]], list[dict[str, Any]]]
"""Rows, and every module's scores, of one adapter (or of the bare models, which have no scores)."""


def results_of(plan: Plan, cache: Cache, progress: ReportProgress, *, only_cached: bool = False) -> Iterator[Results]:
    """Yield the results of every adapter of the plan; each pair's bare models (base, aligned) first.

    only_cached: nothing is trained or asked; seeds that are incomplete in the cache are left out.
    """
    for seed, split in plan.seeds:
        if only_cached and not all(cache.has(kind, key) for kind, key in _keys(plan, seed, split)):
            continue
        pair = pair_of(cache, plan.size, seed, progress)
        bench = _Bench(pair, split)
        yield bench.own_rows(), []
        for fine_tune in plan.fine_tunes:
            yield _results(plan, cache, bench, fine_tune, progress)
        for fine_tune in _evading_fine_tunes(plan, split):
            yield _against_attacker(plan, cache, bench, fine_tune, progress), []


def _results(plan: Plan, cache: Cache, bench: "_Bench", fine_tune: FineTune, progress: ReportProgress) -> Results:
    pair = bench.pair
    adapter = adapter_of(cache, pair, fine_tune, progress)

    def make(folder: Path, family: Family) -> None:
        rows = [row.plain() for row in bench.rows(adapter, fine_tune, family, progress)]
        (folder / ROWS).write_text(json.dumps(rows), encoding="utf-8")
        (folder / SCORES).write_text(json.dumps(bench.scores(adapter, fine_tune)), encoding="utf-8")

    def measure_saved(folder: Path, family: Family) -> None:
        (folder / SAVED).write_text(json.dumps(bench.saved(adapter, fine_tune, family)), encoding="utf-8")

    rows: list[dict[str, Any]] = []
    key = _rows_key(plan, pair.seed, bench.split, fine_tune)
    for kind, family in FAMILIES.items():
        folder = cache.folder(kind, key, partial(make, family=family))
        saved_folder = cache.folder(f"{kind}-saved", key, partial(measure_saved, family=family))
        saved = json.loads((saved_folder / SAVED).read_text(encoding="utf-8"))
        found = json.loads((folder / ROWS).read_text(encoding="utf-8"))
        rows += [row | {"bytes_saved": share} for row, share in zip(found, saved, strict=True)]
    return rows, [json.loads((folder / SCORES).read_text(encoding="utf-8"))]


def _evading_fine_tunes(plan: Plan, split: Split) -> tuple[FineTune, ...]:
    return plan.evading if split == "report" else ()


def _against_attacker(
    plan: Plan, cache: Cache, bench: "_Bench", fine_tune: FineTune, progress: ReportProgress
) -> list[dict[str, Any]]:
    pair = bench.pair
    adapter = evading_adapter_of(cache, pair, fine_tune, bench.evasion, progress)

    def make(folder: Path) -> None:
        rows = [row.plain() for row in bench.rows(adapter, fine_tune, _attacker_family, progress)]
        (folder / ROWS).write_text(json.dumps(rows), encoding="utf-8")

    folder = cache.folder("rows-attacker", _rows_key(plan, pair.seed, bench.split, fine_tune), make)
    found: list[dict[str, Any]] = json.loads((folder / ROWS).read_text(encoding="utf-8"))
    return found


def _rows_key(plan: Plan, seed: int, split: Split, fine_tune: FineTune) -> tuple[Any, ...]:
    return METHODS, plan.size, seed, split, fine_tune


def _keys(plan: Plan, seed: int, split: Split) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield the cache entries that one seed needs."""
    yield "pair", (plan.size, seed)
    for fine_tune in plan.fine_tunes:
        yield "adapter", (plan.size, seed, fine_tune)
        for kind in FAMILIES:
            yield kind, _rows_key(plan, seed, split, fine_tune)
    for fine_tune in _evading_fine_tunes(plan, split):
        yield ATTACKER_KIND, (plan.size, seed, fine_tune)
        yield "rows-attacker", _rows_key(plan, seed, split, fine_tune)


class _Bench:
    """One pair, opened at first use: cached rows need no model."""

    def __init__(self, pair: Pair, split: Split) -> None:
        self.pair, self.split = pair, split
        self._open: tuple[Alignment, Examination] | None = None

    def _parts(self) -> tuple[Alignment, Examination]:
        if self._open is None:
            torch.set_num_threads(1)
            held_out = self.pair.world.held_out
            asked = Examination(self.pair.load("aligned"), self.pair.tokenizer(), held_out)
            self._open = Alignment(self.pair.reference), asked
        return self._open

    def own_rows(self) -> list[dict[str, Any]]:
        """Return the rows of the base and the aligned model by themselves."""
        nothing = FineTune(0.0, "all", 0)
        base = Examination(self.pair.load("base"), self.pair.tokenizer(), self.pair.world.held_out)
        asked = (("base model", base.ask({})), ("aligned model", self._parts()[1].ask({})))
        return [self._row(Cell(name, "adapter", "0", {}), nothing, metrics).plain() for name, metrics in asked]

    def rows(self, adapter: Path, fine_tune: FineTune, family: "Family", progress: ReportProgress) -> Iterator[Row]:
        """Yield the rows of every method and threshold of a family on one adapter."""
        alignment, examination = self._parts()
        subject = subject_of(adapter, alignment, self.pair.seed)
        cells = list(family(subject, fine_tune))
        what = f"{self.pair.size.name} seed {self.pair.seed}: {fine_tune.name}, methods"
        for done, cell in enumerate(cells):
            yield self._row(cell, fine_tune, examination.ask(dense(cell)))
            progress(what, (done + 1) / len(cells))

    def saved(self, adapter: Path, fine_tune: FineTune, family: "Family") -> list[float]:
        """Return the share of the adapter's bytes saved by each cell of a family, in the order of its rows."""
        subject = subject_of(adapter, self._parts()[0], self.pair.seed)
        return [round(bytes_saved(cell, subject.lows), 4) for cell in family(subject, fine_tune)]

    def evasion(self, model: PeftModel) -> Evasion:
        """Return the attacker's callback for each training step of the model."""
        return Evasion(model, self._parts()[0].reference)

    def scores(self, adapter: Path, fine_tune: FineTune) -> dict[str, Any]:
        """Return every module's E-DIEM by comparison."""
        subject = subject_of(adapter, self._parts()[0], self.pair.seed)
        modules = {name: {str(c): score for c, score in m.scores.items()} for name, m in subject.verdicts.items()}
        at = {"mix": fine_tune.harmful, "targets": fine_tune.targets, "rank": fine_tune.rank}
        return {"size": self.pair.size.name, "seed": self.pair.seed, "split": self.split, **at, "modules": modules}

    def _row(self, cell: Cell, fine_tune: FineTune, metrics: Metrics) -> Row:
        return Row(
            method=cell.method,
            unit=cell.unit,
            threshold=cell.threshold,
            size=self.pair.size.name,
            mix=fine_tune.harmful,
            targets=fine_tune.targets,
            rank=fine_tune.rank,
            seed=self.pair.seed,
            split=self.split,
            pruned_share=round(cell.pruned_share, 4),
            metrics=metrics,
        )


Family = Callable[[Subject, FineTune], Iterator[Cell]]


def _first_family(subject: Subject, fine_tune: FineTune) -> Iterator[Cell]:
    yield from pruning(subject)
    yield from correcting(subject)
    if fine_tune.harmful == NULLS_ON and fine_tune.rank == 8:
        yield from nulls(subject)


def _second_family(subject: Subject, _: FineTune) -> Iterator[Cell]:
    yield from both_ends(subject)


def _third_family(subject: Subject, _: FineTune) -> Iterator[Cell]:
    yield from budgets(subject)


def _fourth_family(subject: Subject, _: FineTune) -> Iterator[Cell]:
    yield from policies_by_energy(subject)


def _attacker_family(subject: Subject, _: FineTune) -> Iterator[Cell]:
    yield from against_attacker(subject)


FAMILIES: Final[Mapping[str, Family]] = {
    "rows": _first_family,
    "rows-ends": _second_family,
    "rows-budgets": _third_family,
    "rows-energy": _fourth_family,
}
"""Methods in groups that are cached separately: a new group leaves the others' rows unchanged."""


def dense(cell: Cell) -> Mapping[str, torch.Tensor]:
    """Return module → ΔW."""
    return {name: low.dense for name, low in cell.lows.items()}
