"""Screening policy set by the operator; part of every verdict's id."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final


class Comparison(StrEnum):
    """Distance of which E-DIEM is computed (method: the table of comparisons)."""

    PROJECTION = "projection"
    ALIGNMENT = "alignment"
    INPUT = "input"


class Action(StrEnum):
    """Treatment of a condemned module: cut it out, or project out of it the directions that alignment reads or writes."""

    PRUNE = "prune"
    PROJECT = "project"


class Unscorable(StrEnum):
    """Treatment of a module whose score cannot be measured (no alignment vector, degenerate null)."""

    REJECT = "reject"
    PRUNE = "prune"
    KEEP = "keep"


class Towers(StrEnum):
    """Treatment of modules of a tower or a projector, on which vLLM serves a LoRA only if it is told to."""

    CUT = "cut"
    REJECT = "reject"
    SERVE = "serve"


def default_action(comparison: Comparison) -> Action:
    """Return the action that goes with a comparison: projecting with `input` only, else pruning."""
    return Action.PROJECT if comparison is Comparison.INPUT else Action.PRUNE


DEFAULT_TAU: Final[Mapping[Action, float]] = {Action.PROJECT: 0.0, Action.PRUNE: 4.0}
DEFAULT_ENERGY: Final = 0.5
"""Defaults of a gateway's settings: chosen on the tuning seeds of `python -m app bench safety`, reported on other seeds
(docs/evaluation.md)."""

DEFAULT_TOP_K: Final = 512
"""Most inputs of a module in a gateway's settings: as many as a reference keeps at most, so that the energy decides.

A bound of 16 was never reached on the small models that the energy was chosen on; on wider ones it left less than half."""


EVERY_MODULE: Final = -1e9
"""A tau below every score: each module with an update is condemned (the rungs of the ladder)."""


NO_MODULE: Final = 1e9
"""A tau above every score: no module is condemned (a ladder without a floor)."""


def shown_tau(tau: float) -> float:
    """Return tau for people: 0, above which nothing may stay, if every module was condemned."""
    return 0.0 if tau == EVERY_MODULE else tau


@dataclass(frozen=True, slots=True)
class Policy:
    """Thresholds and bounds of one screening.

    tau: a module is condemned when its E-DIEM is not ≤ tau (interquartile ranges; larger is worse).
    action: treatment of a condemned module. `project` requires the `input` comparison and a tau of at least 0, or
        EVERY_MODULE: the rest of the module then scores far below a random update, so the result passes and projecting it
        again changes nothing.
    max_pruned: prune at most this many modules, the worst first (None: no cap). A module condemned by tau and spared by
        the cap makes the adapter rejected, unless `cap_keeps` says that the operator accepts such modules.
    max_pruned_share: an adapter is rejected outright when a larger share (0..1) of its modules is cut out, or, with
        `reject_tau`, scores above that.
    reject_tau: modules that score above this count towards max_pruned_share, whatever the action; None: the modules cut
        out do.
    max_update_ratio: reject when a module's ‖ΔW‖_F exceeds this many times ‖V‖_F (a norm no honest fine-tune has).
    max_removed_share: reject when projecting would take more than this share (0..1) of the whole update's ‖ΔW‖².
    energy: share (0..1) of a module's ‖V‖² that the inputs must hold which the `input` comparison uses and projecting takes
        out: the fewest right singular vectors that hold it (our own rule). 1: always top_k of them.
    top_k: at most that many inputs, whatever they hold.
    project_outputs: number of left singular vectors of V (outputs) that projecting takes out as well.
    towers: treatment of modules of towers and projectors. Those that are cut out count towards no share or bound.
    max_block_score, max_adapter_score: budgets. Reject when the combined score (combined_score.py) of a block's, or of
        all, modules kept unchanged exceeds this; None: reported, not judged.
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
    towers: Towers = Towers.SERVE

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
        if self.action is Action.PROJECT and not self._accepts_what_it_leaves():
            raise ValueError("policy action project goes with the comparison input and a tau of 0 or more")

    def _accepts_what_it_leaves(self) -> bool:
        return self.comparison is Comparison.INPUT and (self.tau >= 0.0 or self.tau == EVERY_MODULE)

    def _check_finite(self) -> None:
        for name in ("tau", "max_pruned_share", "max_update_ratio", "max_removed_share"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"policy {name} must be a finite number, not {getattr(self, name)}")
        for name in ("max_block_score", "max_adapter_score", "reject_tau"):
            budget = getattr(self, name)
            if budget is not None and not math.isfinite(budget):
                raise ValueError(f"policy {name} must be a finite number or none, not {budget}")


DEFAULT_POLICY: Final = Policy(
    action=Action.PROJECT,
    tau=DEFAULT_TAU[Action.PROJECT],
    top_k=DEFAULT_TOP_K,
    energy=DEFAULT_ENERGY,
    towers=Towers.CUT,
)
"""Policy of a gateway whose settings say nothing else."""


def policy_from(fields: Mapping[str, Any]) -> Policy:
    """Parse the policy in a manifest. Raises ValueError, TypeError or LookupError if it is not a policy."""
    kinds = {
        "comparison": Comparison(fields["comparison"]),
        "unscorable": Unscorable(fields["unscorable"]),
        "action": Action(fields["action"]),
        "towers": Towers(fields.get("towers", Towers.SERVE)),  # absent before it was a choice
    }
    return Policy(**{**fields, **kinds})
