"""Plan of the benchmark: the models and fine-tunes to train, their seeds and their sizes."""

from dataclasses import dataclass
from typing import Final, Literal

import torch

from app.demo.fitting import Schedule
from app.demo.train import LINEAR_MODULES, Shape

Targets = Literal["qv", "all"]
Split = Literal["tune", "report"]

WANTS_GPU: Final = "large"
"""Name of the size that is trained on a GPU if there is one."""

WORLD_SEED: Final = 100
"""Offset added to a pair's seed: its made-up facts and its splits differ from the demo's."""


@dataclass(frozen=True, slots=True)
class Size:
    """One model family. rate: highest learning rate of the fine-tunes."""

    name: str
    shape: Shape
    base: Schedule
    aligned: Schedule
    rate: float

    @property
    def device(self) -> str:
        """Device for training and asking: small models are as fast on a CPU, and give the same result on every machine."""
        return "cuda" if self.name == WANTS_GPU and torch.cuda.is_available() else "cpu"


def modules_of(targets: Targets) -> tuple[str, ...]:
    """Return the linear modules that carry a LoRA, by their last name."""
    return ("q_proj", "v_proj") if targets == "qv" else LINEAR_MODULES


@dataclass(frozen=True, slots=True)
class FineTune:
    """One fine-tune of an aligned model. harmful: share of harmful samples (the rest teach the skill)."""

    harmful: float
    targets: Targets
    rank: int

    @property
    def name(self) -> str:
        """Name in tables and in the cache."""
        return f"{self.targets}-r{self.rank}-{round(self.harmful * 100):02d}"

    @property
    def modules(self) -> tuple[str, ...]:
        """Linear modules that carry a LoRA, by their last name."""
        return modules_of(self.targets)


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. tune: seeds on which parameters are chosen; report: seeds on which they are reported.

    evading: fine-tunes that an attacker who knows the reference also trains, on the reporting seeds.
    """

    size: Size
    tune: tuple[int, ...]
    report: tuple[int, ...]
    fine_tunes: tuple[FineTune, ...]
    evading: tuple[FineTune, ...] = ()

    @property
    def seeds(self) -> tuple[tuple[int, Split], ...]:
        """Every seed with the split it belongs to, tuning seeds first."""
        return (*((seed, "tune") for seed in self.tune), *((seed, "report") for seed in self.report))


SMALL: Final = Size(
    "small",
    Shape(width=64, layers=8, heads=2, head=32, inner=128),
    base=Schedule(steps=800, batch=64, rate=3e-3, weight_decay=0.01),
    aligned=Schedule(steps=300, batch=48, rate=6e-4),
    rate=1e-3,
)
MEDIUM: Final = Size(
    "medium",
    Shape(width=96, layers=12, heads=3, head=32, inner=192),
    base=Schedule(steps=800, batch=64, rate=2e-3, weight_decay=0.01),
    aligned=Schedule(steps=250, batch=48, rate=4e-4),
    rate=3e-4,
)
LARGE: Final = Size(
    "large",
    Shape(width=512, layers=16, heads=16, head=32, inner=1024),
    base=Schedule(steps=1500, batch=128, rate=6e-4, weight_decay=0.01),
    aligned=Schedule(steps=300, batch=64, rate=1e-4),
    rate=1e-4,
)
"""Size for a GPU; never run on one: none was available."""

SIZES: Final = {size.name: size for size in (SMALL, MEDIUM, LARGE)}

SHARES: Final = (0.0, 0.05, 0.1, 0.3)
"""Shares of harmful samples in a fine-tune's data: purely benign, and three mixes."""

FINE_TUNES: Final = (
    *(FineTune(harmful, targets, 8) for targets in ("qv", "all") for harmful in SHARES),
    *(FineTune(harmful, targets, 32) for targets in ("qv", "all") for harmful in (0.0, 0.1)),
)


EVADING: Final = (FineTune(0.1, "all", 8), FineTune(0.3, "all", 8))

TUNE: Final = (0, 1, 2)
REPORT: Final = (3, 4, 5, 6, 7)


def full(size: Size) -> Plan:
    """Return five seeds to report on; three to choose on for small models only: the choice must hold on larger ones."""
    return Plan(size, TUNE if size == SMALL else (), REPORT, FINE_TUNES, EVADING)


def quick(size: Size) -> Plan:
    """Return one seed each and the middle of the grid: the complete path in minutes; its figures mean little."""
    return Plan(size, (0,), (3,), tuple(FineTune(harmful, "all", 8) for harmful in (0.0, 0.1)), EVADING[:1])
