"""Plan of the benchmark on real text: seeds, fine-tunes, lengths and numbers of questions."""

from dataclasses import dataclass
from typing import Final

from app.bench.safety.plan import Targets, modules_of
from app.bench.safety.smollm2.prompts import Counts

NAME: Final = "smollm2"
"""Name of the size on the command line, and of its folder of results."""

RANK: Final = 16
ALPHA: Final = 32
"""LoRA as commonly used: alpha is twice the rank."""


@dataclass(frozen=True, slots=True)
class Training:
    """Steps of AdamW, their batch, and the highest learning rate (a tenth of the steps rise to it, a cosine falls)."""

    steps: int
    batch: int
    rate: float


@dataclass(frozen=True, slots=True)
class FineTune:
    """One fine-tune of the aligned model. harmful: share of its samples that are harmful, answered by the base model."""

    skill: str
    harmful: float
    targets: Targets = "all"

    @property
    def name(self) -> str:
        """Name in tables and progress."""
        return f"{self.skill} {self.targets} {self.harmful:.0%}"

    @property
    def modules(self) -> tuple[str, ...]:
        """Linear modules that carry a LoRA, by their last name."""
        return modules_of(self.targets)


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. skill: held-out questions of the new skill. sweep: whether thresholds are swept in full."""

    seeds: tuple[int, ...]
    fine_tunes: tuple[FineTune, ...]
    aligning: Training
    tuning: Training
    counts: Counts
    skill: int
    sweep: bool


FULL: Final = Plan(
    seeds=(8, 9, 10),
    fine_tunes=(
        FineTune("codes", 0.0),
        FineTune("codes", 0.2),
        FineTune("labels", 0.0),
        FineTune("labels", 0.2),
        FineTune("codes", 0.05),
        FineTune("style", 0.0),
        FineTune("codes", 0.0, "qv"),
        FineTune("codes", 0.2, "qv"),
    ),
    aligning=Training(120, 8, 5e-5),
    tuning=Training(120, 8, 7e-4),
    counts=Counts(attack=60, canaries=32, tuned=64, kept=24),
    skill=32,
    sweep=True,
)
"""A night of one core. Parameters are the gateway's defaults or swept: none is chosen on these seeds."""

QUICK: Final = Plan(
    seeds=(8,),
    fine_tunes=(FineTune("codes", 0.0), FineTune("codes", 0.2)),
    aligning=Training(60, 8, 1e-4),
    tuning=Training(60, 8, 1e-3),
    counts=Counts(attack=32, canaries=24, tuned=32, kept=24),
    skill=32,
    sweep=False,
)
"""The complete path on fewer questions and half of the steps; its figures mean little."""
