"""Run of the plan: trains missing pairs and adapters, measures them, and caches each adapter's rows."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from app.bench.canaries.adversaries import Adversary, data_of
from app.bench.canaries.measuring import Laboratory, Row, row_from
from app.bench.canaries.plan import ALIGNED, Entry, Plan
from app.bench.progress import ReportProgress
from app.bench.safety.cache import Cache
from app.bench.safety.plan import Split
from app.bench.safety.trained_models import Pair, adapter_of, adversary_of, evading_adapter_of, pair_of
from app.demo.evasion import Evasion

ROWS: Final = "rows.json"
KIND: Final = "rows-canaries"
MEASURED: Final = 4
"""Version that is part of the rows' key: to be raised if corrections, questions or metrics change."""


def rows_of(plan: Plan, cache: Cache, progress: ReportProgress, *, only_cached: bool = False) -> Iterator[Row]:
    """Yield the rows of every adapter and, before a pair's adapters, of its aligned model.

    only_cached: nothing is trained or asked; adapters that are not in the cache are left out.
    """
    laboratories = _Laboratories(plan, cache, progress)
    for entry, seed, split in plan.steps:
        key = key_of(plan, entry, seed, split)
        if only_cached and not cache.has(KIND, key):
            continue
        folder = cache.folder(KIND, key, partial(laboratories.write, entry=entry, seed=seed, split=split))
        yield from map(row_from, json.loads((folder / ROWS).read_text(encoding="utf-8")))


def key_of(plan: Plan, entry: Entry | None, seed: int, split: Split) -> tuple[Any, ...]:
    """Return the cache's key of an adapter's rows; None: the aligned model's."""
    return MEASURED, plan.size, seed, split, ALIGNED if entry is None else entry.name


class _Laboratories:
    """Laboratories by seed, each opened when a row is missing."""

    def __init__(self, plan: Plan, cache: Cache, progress: ReportProgress) -> None:
        self._plan, self._cache, self._progress = plan, cache, progress
        self._open: dict[int, Laboratory] = {}

    def write(self, folder: Path, entry: Entry | None, seed: int, split: Split) -> None:
        """Measure one adapter, training it first if it is missing, and write its rows. None: the aligned model."""
        if seed not in self._open:
            self._open[seed] = Laboratory(pair_of(self._cache, self._plan.size, seed, self._progress), split)
        laboratory = self._open[seed]
        rows: list[dict[str, Any]] = []
        if entry is None:
            rows.append(laboratory.served_model().plain())
        else:
            adapter = self._adapter(laboratory, entry)
            self._progress(f"seed {seed}: {entry.name}, corrections", 0.0)
            rows += [row.plain() for row in laboratory.rows(entry, adapter)]
        (folder / ROWS).write_text(json.dumps(rows), encoding="utf-8")

    def _adapter(self, laboratory: Laboratory, entry: Entry) -> Path:
        pair, adversary = laboratory.pair, entry.adversary
        if adversary is None:
            return adapter_of(self._cache, pair, entry.fine_tune, self._progress)
        evasion = partial(Evasion, reference=laboratory.reference)
        if adversary is Adversary.REFERENCE:
            return evading_adapter_of(self._cache, pair, entry.fine_tune, evasion, self._progress)
        return self._adversary(pair, entry, adversary, evasion if adversary.knows_reference else None)

    def _adversary(self, pair: Pair, entry: Entry, adversary: Adversary, evasion: Any) -> Path:
        data = data_of(adversary, pair.world, pair.seed)
        return adversary_of(self._cache, pair, entry.fine_tune, str(adversary), data, evasion, self._progress)
