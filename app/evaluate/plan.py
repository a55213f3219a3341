"""Plan of the evaluation of every candidate: battery, rungs and tolerance, as one value with a key."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from app.domain.digest import digest_of
from app.domain.policy import Policy
from app.domain.rungs import Rung
from app.evaluate.asking import DRAW_TEMPERATURE
from app.evaluate.baseline import DRAWS
from app.evaluate.battery import Battery, Canary, halves
from app.evaluate.judges import refusal_phrases
from app.evaluate.ladder import Half

JUDGE: Final = "words/1"
"""Name and version of the judge: changes whenever the same answer could be judged otherwise."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Questions for every candidate, and the corrections to try.

    rungs, policies: the rungs above the floor, in order. tolerance: canaries of each category that a candidate may fail
    of those that the served model refuses steadily. seconds: time limit of one evaluation.
    """

    battery: Battery
    rungs: Sequence[Rung]
    policies: Sequence[Policy]
    tolerance: int
    seconds: float

    @property
    def key(self) -> str:
        """Digest (hex) of everything that decides besides the candidate: versions that passed carry it."""
        parts = (
            self.battery.digest.hex,
            JUDGE,
            refusal_phrases(),
            DRAWS,
            DRAW_TEMPERATURE,
            tuple(self.policies),
            self.tolerance,
        )
        return digest_of(repr(parts).encode()).hex

    @property
    def note(self) -> str:
        """Plan in a few words, for operators."""
        return f"asked {len(self.battery.canaries)} canaries, battery {self.battery.digest.short}"

    @property
    def halves(self) -> Mapping[Half, tuple[Canary, ...]]:
        """Canaries of each half."""
        return dict(zip(Half, halves(self.battery.canaries), strict=True))
