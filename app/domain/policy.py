"""What the operator decided about screening; part of every verdict's id."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final


class Comparison(StrEnum):
    """Which distance E-DIEM is taken of (method: the table of comparisons)."""

    PROJECTION = "projection"
    ALIGNMENT = "alignment"
    INPUT = "input"


class Action(StrEnum):
    """What is done with a condemned module: cut it out, or take out of it what reads or writes where alignment does."""

    PRUNE = "prune"
    PROJECT = "project"


class Unscorable(StrEnum):
    """What becomes of a module whose score cannot be measured (no alignment vector, degenerate null)."""

    REJECT = "reject"
    PRUNE = "prune"
    KEEP = "keep"


def default_action(comparison: Comparison) -> Action:
    """Projecting goes with the comparison `input` only."""
    return Action.PROJECT if comparison is Comparison.INPUT else Action.PRUNE


DEFAULT_TAU: Final[Mapping[Action, float]] = {Action.PROJECT: 0.0, Action.PRUNE: 4.0}
DEFAULT_ENERGY: Final = 0.5
DEFAULT_TOP_K: Final = 16
"""What a gateway does unless told otherwise: chosen on the tuning seeds of `python -m app bench safety`, reported on others
(docs/evaluation.md)."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Thresholds and bounds of one screening.

    tau: a module is condemned when its E-DIEM is not ≤ tau (interquartile ranges; larger is worse).
    action: what a condemned module suffers. `project` goes with the `input` comparison and a tau of at least 0: what it
        leaves scores far below a random update, so only then does the result pass, and a second time change nothing.
    max_pruned: prune at most this many modules, the worst first (None: no cap). What the cap spares and tau condemns
        makes the adapter rejected, unless `cap_keeps` says that the operator accepts the rest.
    max_pruned_share: an adapter is rejected outright when a larger share (0..1) of its modules is cut out, or, with
        `reject_tau`, scores above that.
    reject_tau: what scores above this counts towards max_pruned_share, whatever the action; None: what is cut out does.
    max_update_ratio: reject when a module's ‖ΔW‖_F exceeds this many times ‖V‖_F (a norm no honest fine-tune has).
    max_removed_share: reject when projecting would take more than this share (0..1) of the whole update's ‖ΔW‖².
    energy: share (0..1) of a module's ‖V‖² which the inputs that the `input` comparison looks at, and projecting takes out,
        must hold: the fewest right singular vectors that do (ours). 1: always top_k of them.
    top_k: at most that many, and, with an energy below 1, at most what the reference keeps.
    project_outputs: left singular vectors of V (outputs) projecting takes out besides.
    max_block_score, max_adapter_score: budgets. Reject when what would be served scores more than this when a block's, or
        all, modules are taken together (totals.py); None: reported, not judged.
    """

    comparison: Comparison = Comparison.INPUT
    tau: float = 3.0
    max_pruned: int | None = None
    cap_keeps: bool = False
    max_pruned_share: float = 0.5
    max_update_ratio: float = 100.0
    unscorable: Unscorable = Unscorable.REJECT
    top_k: int = 4
    max_block_score: float | None = None
    max_adapter_score: float | None = None
    action: Action = Action.PRUNE
    max_removed_share: float = 0.5
    project_outputs: int = 1
    reject_tau: float | None = None
    energy: float = 1.0

    def __post_init__(self) -> None:
        self._check_finite()
        for name in ("max_pruned_share", "max_removed_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"policy {name} must lie in 0..1, not {getattr(self, name)}")
        if self.max_update_ratio <= 0.0:
            raise ValueError(f"policy max_update_ratio must be above 0, not {self.max_update_ratio}")
        if self.max_pruned is not None and self.max_pruned < 0:
            raise ValueError(f"policy max_pruned must be 0 or more, not {self.max_pruned}")
        if self.top_k < 1 or self.project_outputs < 0:
            raise ValueError("policy top_k must be 1 or more and project_outputs 0 or more")
        if not 0.0 < self.energy <= 1.0:
            raise ValueError(f"policy energy must lie above 0 and at most at 1, not {self.energy}")
        if self.action is Action.PROJECT and not (self.comparison is Comparison.INPUT and self.tau >= 0.0):
            raise ValueError("policy action project goes with the comparison input and a tau of 0 or more")

    def _check_finite(self) -> None:
        for name in ("tau", "max_pruned_share", "max_update_ratio", "max_removed_share"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"policy {name} must be a finite number, not {getattr(self, name)}")
        for name in ("max_block_score", "max_adapter_score", "reject_tau"):
            budget = getattr(self, name)
            if budget is not None and not math.isfinite(budget):
                raise ValueError(f"policy {name} must be a finite number or none, not {budget}")


def policy_from(fields: Mapping[str, Any]) -> Policy:
    """The policy whose fields stand in a manifest. Raises ValueError, TypeError or LookupError when it is none."""
    kinds = {
        "comparison": Comparison(fields["comparison"]),
        "unscorable": Unscorable(fields["unscorable"]),
        "action": Action(fields["action"]),
    }
    return Policy(**{**fields, **kinds})
