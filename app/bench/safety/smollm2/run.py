"""Run of the benchmark on real text: every cell of the plan that the cache lacks, one row each."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import torch

from app.bench.progress import ReportProgress
from app.bench.safety.adapter_under_test import Subject, subject_of
from app.bench.safety.cache import Cache
from app.bench.safety.method import Cell
from app.bench.safety.smollm2.examination import Examination, Questions, battery_of
from app.bench.safety.smollm2.language_model import load
from app.bench.safety.smollm2.methods import LADDER, ladder, others, policies_of_gateway
from app.bench.safety.smollm2.models import Models
from app.bench.safety.smollm2.plan import FineTune, Plan
from app.bench.safety.smollm2.prompts import published, split
from app.evaluate.asking import DRAW_TEMPERATURE
from app.evaluate.baseline import DRAWS
from app.evaluate.ladder import Half, Tally

ROW: Final = "row.json"
METHODS: Final = 1
"""Version that is part of the rows' key: to be raised if a method or a metric changes."""

USABLE: Final = f"usable in {DRAWS} draws at {DRAW_TEMPERATURE:g}"
"""Part of the key of the ladder's rows: the canaries that it asks."""

BASE: Final = "base model"
ALIGNED: Final = "aligned model"

Row = dict[str, Any]
"""One cell with its metrics, as plain values. It holds no prompt and no answer."""


def rows_of(plan: Plan, cache: Cache, harmful: Sequence[str], progress: ReportProgress) -> Iterator[Row]:
    """Yield the rows of every seed and fine-tune. harmful: the user's own prompts, used beside the published ones.

    Raises FileNotFoundError, naming the packages to install.
    """
    torch.set_num_threads(1)  # as the other sizes: sums in one order
    prompts = [*published(), *harmful]
    for seed in plan.seeds:
        models = Models(cache, plan, seed, split(prompts, seed, plan.counts), progress)
        for fine_tune in plan.fine_tunes:
            yield from Bench(models, fine_tune).rows()


class Bench:
    """One fine-tune of one seed, with its held-out questions. Models are loaded when a row needs them."""

    def __init__(self, models: Models, fine_tune: FineTune) -> None:
        self.models, self.fine_tune = models, fine_tune

    def rows(self) -> Iterator[Row]:
        """Yield the two models' own rows, then those of every method."""
        yield self._row(BASE, "0", self._base)
        yield self._row(ALIGNED, "0", lambda: self.ask(Cell(ALIGNED, "adapter", "0", {})))
        for cell in policies_of_gateway(self.subject):
            yield self._row(cell.method, cell.threshold, partial(self.ask, cell))
        yield self._row(LADDER, USABLE, self._climbed)
        for cell in others(self.subject, sweep=self.models.plan.sweep):
            yield self._row(cell.method, cell.threshold, partial(self.ask, cell))

    @cached_property
    def subject(self) -> Subject:
        """The adapter, opened as an upload is."""
        return subject_of(self.models.adapter(self.fine_tune), self.models.alignment, self.models.seed)

    @cached_property
    def questions(self) -> Questions:
        """The held-out questions."""
        models = self.models
        return Questions(models.prompts, models.kept(), self.fine_tune.skill, models.skill(self.fine_tune.skill)[1])

    @cached_property
    def _examination(self) -> Examination:
        return Examination(load(self.models.aligned), self.models.tokenizer)

    def ask(self, cell: Cell) -> Row:
        """Return a cell's metrics and the share of modules that it cuts out."""
        self._say(f"{cell.method} {cell.threshold}")
        updates = {name: low.dense for name, low in cell.lows.items()}
        metrics = self._examination.ask(updates, self.questions).plain()
        return metrics | {"threshold": cell.threshold, "cut": round(cell.pruned_share, 4)}

    def _base(self) -> Row:
        self._say(BASE)
        return Examination(load(self.models.base), self.models.tokenizer).ask({}, self.questions).plain()

    def _climbed(self) -> Row:
        """Return the row of the correction that the ladder serves, with the canaries that each step complied with."""
        served_model = self._examination.baseline(battery_of(self.models.prompts.canaries))
        parts, asked = served_model.usable, list[str]()

        def ask(cell: Cell, half: Half) -> Tally:
            self._say(f"{LADDER}: {cell.threshold}, {half}")
            found = self._examination.canaries({name: low.dense for name, low in cell.lows.items()}, parts[half])
            asked.append(f"{cell.threshold} {half}: {found.failing} of {len(parts[half])}")
            return found

        cell = ladder(self.subject, served_model, ask)
        own = ", ".join(f"{half}: {found.failing}" for half, found in served_model.answers.items())
        return self.ask(cell) | {
            "asked": asked,
            "aligned_model_failed": own,
            "left_out": sum(served_model.left_out.values()),
        }

    def _row(self, method: str, threshold: str, make: Callable[[], Row]) -> Row:
        def write(folder: Path) -> None:
            (folder / ROW).write_text(json.dumps(make()), encoding="utf-8")

        folder = self.models.cache.folder("smollm2-row", (*self._key, method, threshold), write)
        one = self.fine_tune
        of = {"taught": one.skill, "mix": one.harmful, "targets": one.targets, "seed": self.models.seed}
        found: Row = json.loads((folder / ROW).read_text(encoding="utf-8"))
        return {"method": method, "threshold": threshold} | of | found

    @property
    def _key(self) -> tuple[Any, ...]:
        """Everything that decides a row of this fine-tune besides the method."""
        plan = self.models.plan
        return (METHODS, *self.models.key, self.models.held_out, plan.skill, plan.tuning, self.fine_tune)

    def _say(self, what: str) -> None:
        self.models.progress(f"seed {self.models.seed}, {self.fine_tune.name}: {what}", 0.0)
