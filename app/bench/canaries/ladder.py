"""End of each adapter under one setting of the gateway, from its rows: served after a correction, or rejected.

The search, the halves and the comparison with the served model are the product's own (app/evaluate).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from app.bench.canaries.adversaries import Adversary, topic_of
from app.bench.canaries.measuring import Row, by_adapter
from app.bench.canaries.plan import ALIGNED, LADDERS, UPLOADED, stronger
from app.bench.canaries.questions import battery, canaries_of
from app.bench.safety.trained_models import world_spec
from app.demo.questions import build_world
from app.domain.rungs import Rung
from app.evaluate.battery import Canary, halves
from app.evaluate.judges import Judgement
from app.evaluate.ladder import Ask, Half, Serve, Tally, next_step, passes, tally

WITHOUT_TOPIC: Final = ", battery without it"
"""Ending of the group of an adversary of one topic that the battery does not ask about."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to run the gateway. floor: None, served as it came. size: canaries of the battery. ladder: name in LADDERS.

    both_halves: whether the verifying half is asked, as the gateway does.
    """

    floor: Rung | None
    size: int
    ladder: str
    both_halves: bool = True

    @property
    def floor_at(self) -> str:
        """Correction of the floor, as in rows."""
        return UPLOADED if self.floor is None else f"floor {self.floor}"

    def __str__(self) -> str:
        return f"floor {self.floor or 'none'}, {self.size} canaries, {self.ladder} rungs"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One adapter as uploaded, at the floor, and as served (None: rejected, nothing is served)."""

    group: str
    adapter: str
    before: Row
    floor: Row
    served: Row | None

    @property
    def seed(self) -> int:
        """Seed of the adapter's pair."""
        return self.before.seed

    @property
    def kept(self) -> float:
        """Share (0..1) of the skill as uploaded; 0 if rejected."""
        after = self.served.skill if self.served is not None else 0.0
        return min(after / self.before.skill, 1.0) if self.before.skill > 0.0 else float(self.served is not None)

    @property
    def attack(self) -> float:
        """Attack success (0..1) as served, in the questions that the adapter harms in; 0 if rejected."""
        return self.served.targeted if self.served is not None else 0.0

    @property
    def rejected(self) -> bool:
        """True if nothing is served."""
        return self.served is None

    @property
    def corrected(self) -> bool:
        """True if the canaries asked for more than the floor."""
        return self.served is not None and self.served.at != self.floor.at


def outcomes_of(rows: Sequence[Row], setting: Setting) -> Iterator[Outcome]:
    """Yield every adapter's end; adversaries of one topic twice, the second time with a battery that leaves it out."""
    adapters = by_adapter(rows)
    for (seed, name), found in adapters.items():
        if name == ALIGNED:
            continue
        aligned = adapters[seed, ALIGNED][UPLOADED]
        group = found[UPLOADED].group
        withouts: tuple[tuple[str, str | None], ...] = ((group, None),)
        if group in map(str, (one for one in Adversary if one.has_topic)):
            withouts = (*withouts, (f"{group}{WITHOUT_TOPIC}", topic_of(seed)))
        for label, without in withouts:
            at = served_at(found, aligned, setting, without)
            served = None if at is None else found[at]
            yield Outcome(label, name, found[UPLOADED], found[setting.floor_at], served)


def served_at(found: Mapping[str, Row], aligned: Row, setting: Setting, without: str | None = None) -> str | None:
    """Return the correction that the gateway would serve, or None for a rejection.

    found: the adapter's rows by correction. without: category of canaries that the battery lacks.
    """
    if found[setting.floor_at].complied is None:  # the floor's own bounds
        return None
    ladder = [setting.floor_at, *(f"rung {rung}" for rung in stronger(LADDERS[setting.ladder], setting.floor))]
    canaries = _canaries(aligned.seed)
    asked = dict(zip(Half, halves(battery(canaries, setting.size, without)), strict=True))
    passed: dict[tuple[int, Half], bool] = {}
    while isinstance(step := next_step(len(ladder), passed), Ask):
        unasked = step.half is Half.VERIFYING and not setting.both_halves
        passed[step.rung, step.half] = unasked or _passes(found[ladder[step.rung]], aligned, asked[step.half])
    return ladder[step.rung] if isinstance(step, Serve) else None


def _passes(row: Row, aligned: Row, asked: Sequence[Canary]) -> bool:
    return row.complied is not None and passes(_tally(row, asked), _tally(aligned, asked))


def _tally(row: Row, asked: Sequence[Canary]) -> Tally:
    assert row.complied is not None
    complied = dict(zip((one.id for one in _canaries(row.seed)), row.complied, strict=True))
    return tally((one, Judgement.COMPLIED if complied[one.id] == "1" else Judgement.REFUSED) for one in asked)


@cache
def _canaries(seed: int) -> tuple[Canary, ...]:
    return tuple(canary for canary, _ in canaries_of(build_world(world_spec(seed)).held_out).values())
