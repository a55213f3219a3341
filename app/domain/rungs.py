"""Rungs of the ladder: corrections above the floor, each of which projects more inputs and outputs than the one before."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from app.domain.policy import EVERY_MODULE, NO_MODULE, Action, Comparison, Policy

DEFAULT_RUNGS: Final = "0.5:4,0.5:8,0.5:16,0.7:32,0.9:64"
"""Rungs of a gateway that sets none, as energy:outputs."""

NO_BOUND: Final = 1 << 20
"""A top_k above every width: the energy alone says how many inputs a rung takes out."""

MAX_RUNGS: Final = 16
"""Most rungs: each may have to be made, loaded and asked for every upload."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One correction. energy: share (0..1) of ‖V‖² that the inputs taken out hold. outputs: number of outputs taken out."""

    energy: float
    outputs: int

    def __str__(self) -> str:
        return f"{self.energy:g}:{self.outputs}"


def rungs_from(text: str) -> tuple[Rung, ...]:
    """Parse `energy:outputs` pairs separated by commas, weakest first. Raises ValueError."""
    rungs = tuple(rung_from(part.strip()) for part in text.split(",") if part.strip())
    if len(rungs) > MAX_RUNGS:
        raise ValueError(f"{len(rungs)} rungs, the cap is {MAX_RUNGS}")
    for weaker, stronger in pairwise(rungs):
        if stronger == weaker or stronger.energy < weaker.energy or stronger.outputs < weaker.outputs:
            raise ValueError(f"rung {stronger} must take out more than {weaker}, which comes before it")
    return rungs


def rung_from(text: str) -> Rung:
    """Parse one `energy:outputs` pair. Raises ValueError."""
    energy, _, outputs = text.partition(":")
    try:
        rung = Rung(float(energy), int(outputs))
    except ValueError:
        raise ValueError(f"{text!r} is not energy:outputs, as in 0.7:16") from None
    if not 0.0 < rung.energy < 1.0 or rung.outputs < 0:
        raise ValueError(f"{text!r}: the energy lies between 0 and 1, and the outputs are 0 or more")
    return rung


def with_floor(policy: Policy, floor: Rung | None) -> Policy:
    """Return the policy with another correction for every adapter: `floor`, or none at all if it is None.

    Raises ValueError if the policy's comparison or action does not project.
    """
    if floor is None:
        return replace(policy, tau=NO_MODULE)
    if policy.action is not Action.PROJECT:
        raise ValueError("a ladder's floor projects: it goes with the action project")
    return replace(policy, energy=floor.energy, project_outputs=floor.outputs)


def widest(rungs: Sequence[Rung]) -> Rung:
    """Return the strongest rung, the last one. Raises ValueError if there is none."""
    if not rungs:
        raise ValueError("no rungs")
    return rungs[-1]


def bounded_as(rung: Policy, floor: Policy) -> Policy:
    """Return a rung's policy with the bounds of another floor that hold above it."""
    return replace(rung, max_update_ratio=floor.max_update_ratio, unscorable=floor.unscorable)


def policies(floor: Policy, rungs: Sequence[Rung]) -> tuple[Policy, ...]:
    """Return the policy of every rung above the floor: each projects every module, whatever it scores.

    A score says how much more a module reads of V's inputs than a random update does; after the floor took out the
    strongest of them, it says nothing about the next ones. Whether a reference holds what a rung takes out is checked at
    the gateway's start (`check_policy`). Budgets and shares of the floor do not apply: above it the canaries decide. Its
    bounds on norms and on unscorable modules do.
    """
    return tuple(
        replace(
            floor,
            comparison=Comparison.INPUT,
            action=Action.PROJECT,
            tau=EVERY_MODULE,
            energy=rung.energy,
            top_k=NO_BOUND,
            project_outputs=rung.outputs,
            max_removed_share=1.0,
            max_pruned=None,
            max_pruned_share=1.0,
            cap_keeps=False,
            reject_tau=None,
            max_block_score=None,
            max_adapter_score=None,
        )
        for rung in rungs
    )
