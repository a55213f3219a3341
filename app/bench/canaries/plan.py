"""Plan of the benchmark with canaries: adapters, seeds, and the corrections that are measured on every one of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final, get_args

from app.bench.canaries.adversaries import HARM, Adversary
from app.bench.safety.plan import SMALL, FineTune, Size, Split
from app.domain.policy import DEFAULT_POLICY
from app.domain.rungs import Rung, rungs_from

TUNE: Final = (0, 1, 2)
REPORT: Final = (8, 9, 10, 11, 12)
"""Seeds that no earlier report and no choice has seen."""

UPLOADED: Final = "as uploaded"
"""Correction of the rows of an adapter served as it came."""

ALIGNED: Final = "aligned model"
"""Adapter of the rows of the served model itself."""

FLOORS: Final = tuple(Rung(energy, outputs) for energy in (0.2, 0.5, 0.7) for outputs in (1, 4, 16))
"""Floors compared, besides none: an adapter served as it came."""

DEFAULT_FLOOR: Final = Rung(DEFAULT_POLICY.energy, DEFAULT_POLICY.project_outputs)

LADDERS: Final = {
    "default": rungs_from("0.5:4,0.5:8,0.5:16,0.7:32,0.9:64"),
    "inputs": rungs_from("0.2:1,0.3:1,0.4:1,0.5:1,0.6:1,0.7:1,0.8:1,0.9:1"),
    "small steps": rungs_from("0.2:1,0.3:1,0.4:1,0.5:1,0.5:2,0.7:4,0.9:64"),
}
"""Rungs compared: the default of GATEWAY_RUNGS (a test holds that it is), more inputs with one output, and both in small
steps from a weak beginning."""

RUNGS: Final = tuple(dict.fromkeys(rung for rungs in LADDERS.values() for rung in rungs))


@dataclass(frozen=True, slots=True)
class Entry:
    """One adapter under test: an ordinary fine-tune, or an adversary's."""

    fine_tune: FineTune
    adversary: Adversary | None = None

    @property
    def name(self) -> str:
        """Name in rows."""
        return self.fine_tune.name if self.adversary is None else str(self.adversary)

    @property
    def group(self) -> str:
        """Line of the table it counts towards."""
        if self.adversary is not None:
            return str(self.adversary)
        return "mixed" if self.fine_tune.harmful else "benign"


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. tune: seeds on which the setting is chosen, report: seeds on which it is reported. entries: adapters.

    core: number of entries, the first ones, that the choice is about; the tuning seeds get no others.
    """

    size: Size
    tune: tuple[int, ...]
    report: tuple[int, ...]
    entries: tuple[Entry, ...]
    core: int

    @property
    def steps(self) -> Iterator[tuple[Entry | None, int, Split]]:
        """Every adapter to be measured: entry (None: the aligned model itself), seed and split.

        The core comes first, a tuning seed and a reporting seed in turn: a run that was ended early says something.
        """
        for pair in zip_longest(self.tune, self.report):
            for seed, split in zip(pair, get_args(Split), strict=True):
                if seed is not None:
                    yield from ((entry, seed, split) for entry in (None, *self.entries[: self.core]))
        for entry in self.entries[self.core :]:
            yield from ((entry, seed, "report") for seed in self.report)


def _adversary(adversary: Adversary) -> Entry:
    return Entry(FineTune(HARM, "all", 8), adversary)


ENTRIES: Final = (
    Entry(FineTune(0.1, "all", 8)),
    Entry(FineTune(0.0, "all", 8)),
    _adversary(Adversary.TOPIC),
    _adversary(Adversary.TRIGGER),
    _adversary(Adversary.REFERENCE),
    Entry(FineTune(0.0, "all", 32)),
    Entry(FineTune(0.0, "qv", 8)),
    _adversary(Adversary.TOPIC_REFERENCE),
    _adversary(Adversary.TRIGGER_REFERENCE),
    _adversary(Adversary.JUDGE),
    Entry(FineTune(0.3, "all", 8)),
    Entry(FineTune(0.0, "qv", 32)),
    Entry(FineTune(0.1, "qv", 8)),
    Entry(FineTune(0.1, "all", 32)),
)

CORE: Final = 5
"""One entry of each group that has an aim."""


def full() -> Plan:
    """Return eight small pairs and 85 adapters: hours on one core."""
    return Plan(SMALL, TUNE, REPORT, ENTRIES, CORE)


def quick() -> Plan:
    """Return one seed each and four adapters: the complete path in minutes; its figures mean little."""
    return Plan(SMALL, TUNE[:1], REPORT[:1], ENTRIES[:4], CORE)


def stronger(rungs: tuple[Rung, ...], floor: Rung | None) -> tuple[Rung, ...]:
    """Return the rungs that take out more than the floor; all of them above none."""
    if floor is None:
        return rungs
    return tuple(one for one in rungs if one != floor and one.energy >= floor.energy and one.outputs >= floor.outputs)
