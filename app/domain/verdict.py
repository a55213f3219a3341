"""Verdict of screening: measurements and decision of every module, and the outcome for the adapter."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from app.domain.digest import Digest
from app.domain.policy import Comparison, Policy

METRIC_VERSION: Final = "e-diem/3"
"""Version of the metric: changes whenever the same bytes and policy could score differently; part of every verdict's id."""


class Decision(StrEnum):
    """Decision about one module."""

    KEEP = "keep"
    PRUNE = "prune"
    PROJECT = "project"
    REJECT = "reject"


class Reason(StrEnum):
    """Reason of a decision about one module."""

    BELOW_TAU = "below_tau"
    ABOVE_TAU = "above_tau"
    ZERO_UPDATE = "zero_update"
    UNSCORABLE = "unscorable"
    SPARED_BY_CAP = "spared_by_cap"
    NORM_TOO_LARGE = "norm_too_large"
    NOT_FINITE = "not_finite"
    OVER_BUDGET = "over_budget"
    NOTHING_LEFT = "nothing_left"
    TOWER = "tower"


class Outcome(StrEnum):
    """Outcome for the whole adapter."""

    CLEAN = "clean"
    PRUNED = "pruned"
    PROJECTED = "projected"
    EMPTIED = "emptied"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class ModuleVerdict:
    """One module's measurements and the decision about it.

    scores: E-DIEM by comparison (interquartile ranges from the median of a random update's distance), None if the
        module cannot be scored under it or the comparison was not measured. cosine: Safe LoRA's cos(C·ΔW, ΔW), None
        without V. update_norm, v_norm: ‖ΔW‖_F (None if a value is not finite) and ‖V‖_F. lambda_max: largest eigenvalue
        of C = V·Vᵀ/‖V‖_F. input_share: share of ‖ΔW‖² on the inputs the policy uses (0..1), None without V's triples.
        removed_share: share of ‖ΔW‖² that projecting would take out. inputs: number of V's right singular vectors the
        policy uses here.
    """

    name: str
    rank: int
    scaling: float
    scores: Mapping[Comparison, float | None]
    cosine: float | None
    update_norm: float | None
    v_norm: float
    lambda_max: float
    decision: Decision
    reason: Reason
    input_share: float | None = None
    removed_share: float | None = None
    inputs: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The whole report: one entry per module, sorted by name.

    id: digest over metric version, policy, reference digest and every module's decision inputs; equal ids mean the
    same measurement with the same parameters. measured: the comparisons that were measured; the others have no scores.
    """

    id: Digest
    metric: str
    policy: Policy
    reference: Digest
    outcome: Outcome
    reason: str
    modules: tuple[ModuleVerdict, ...]
    measured: tuple[Comparison, ...] = tuple(Comparison)

    @property
    def pruned(self) -> tuple[str, ...]:
        """Names of the modules that are cut out."""
        return tuple(m.name for m in self.modules if m.decision is Decision.PRUNE)

    @property
    def projected(self) -> tuple[str, ...]:
        """Names of the modules whose inputs are projected."""
        return tuple(m.name for m in self.modules if m.decision is Decision.PROJECT)

    @property
    def served(self) -> tuple[str, ...]:
        """Names of the modules that are written: kept or projected."""
        return tuple(m.name for m in self.modules if m.decision in (Decision.KEEP, Decision.PROJECT))

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the modules that stay as they are."""
        return tuple(m.name for m in self.modules if m.decision is Decision.KEEP)
