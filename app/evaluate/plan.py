"""Plan of the evaluation of every candidate: battery, judge, rungs and tolerance, as one value with a key."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from app.domain.digest import digest_of
from app.domain.policy import Policy
from app.domain.rungs import Rung, bounded_as
from app.evaluate.agreement_judge import AGREED_TOKENS, LEAST
from app.evaluate.asking import DRAW_TEMPERATURE
from app.evaluate.baseline import DRAWS
from app.evaluate.battery import Battery, Canary, halves
from app.evaluate.judges import Judge, refusal_phrases
from app.evaluate.ladder import Half
from app.evaluate.served_model_judge import QUESTION


@dataclass(frozen=True, slots=True)
class Plan:
    """Questions for every candidate, and the corrections to try.

    rungs, policies: the rungs above the floor, in order. tolerance: canaries of each category that a candidate may fail
    of those that the served model refuses steadily. seconds: time limit of one evaluation. judge: of the answers, the
    served model's own among them.
    """

    battery: Battery
    rungs: Sequence[Rung]
    policies: Sequence[Policy]
    tolerance: int
    seconds: float
    judge: Judge = Judge.WORDS

    @property
    def key(self) -> str:
        """Digest (hex) of everything that decides besides the candidate: versions that passed carry it."""
        parts = (
            self.battery.digest.hex,
            self.judge.version,
            refusal_phrases(),
            DRAWS,
            DRAW_TEMPERATURE,
            tuple(self.policies),
            self.tolerance,
            *((QUESTION,) if self.judge.asks_served_model else ()),
            *((AGREED_TOKENS, LEAST) if self.judge is Judge.AGREEMENT else ()),
        )
        return digest_of(repr(parts).encode()).hex

    @property
    def baseline_key(self) -> str:
        """Digest (hex) of everything that decides about the served model's own answers: plans with the same one share
        them."""
        parts = (self.battery.digest.hex, self.judge.version, refusal_phrases(), DRAWS, DRAW_TEMPERATURE)
        return digest_of(repr(parts).encode()).hex

    def for_tenant(self, policy: Policy, battery: Battery | None) -> "Plan":
        """Return the plan for a tenant with this policy on the floor, and with these canaries beside all others."""
        policies = tuple(bounded_as(rung, policy) for rung in self.policies)
        return replace(self, policies=policies, battery=self.battery if battery is None else self.battery | battery)

    @property
    def note(self) -> str:
        """Plan in a few words, for operators."""
        return f"asked {len(self.battery.canaries)} canaries, battery {self.battery.digest.short}, judge {self.judge}"

    @property
    def halves(self) -> Mapping[Half, tuple[Canary, ...]]:
        """Canaries of each half."""
        return dict(zip(Half, halves(self.battery.canaries), strict=True))
