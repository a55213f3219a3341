"""Decisions: scores + policy → a decision for each module, and an outcome for the adapter.

A comparison with NaN is false, so every condition here is written as "does it pass?": `score <= tau`, `norm <= bound`.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from app.domain.coarse import coarse
from app.domain.combined_score import by_block, finite_scores, kept, total_of, worst_set
from app.domain.policy import EVERY_MODULE, Action, Comparison, Policy, Towers, Unscorable
from app.domain.spellings import is_tower
from app.domain.verdict import Decision, ModuleVerdict, Outcome, Reason

NAMED: Final = 3
"""Modules named in a sentence; the report lists all."""

LEFT_FLOOR: Final = 2.0**-8
"""Smallest share of its ‖ΔW‖² that projecting must leave of a module; below it the module is cut out instead, because
rounding to the serving dtype (2⁻¹⁸ of ‖ΔW‖² in bfloat16) would be a visible share of the rest, in no known direction."""

NO_TOWERS: Final = "the engine serves no LoRA on towers and projectors"
"""Reason of a module outside the language model, for the uploader."""

_UNSCORABLE: Final = {
    Unscorable.REJECT: Decision.REJECT,
    Unscorable.PRUNE: Decision.PRUNE,
    Unscorable.KEEP: Decision.KEEP,
}


@dataclass(frozen=True, slots=True)
class Found:
    """One module's measurements. finite: all values of A and B are finite. zero: ΔW is exactly zero. removed_share_at_bar:
    removed_share by the bar, if there is one."""

    name: str
    rank: int
    scaling: float
    finite: bool
    zero: bool
    scores: Mapping[Comparison, float | None]
    cosine: float | None
    update_norm: float | None
    v_norm: float
    lambda_max: float
    input_share: float | None
    removed_share: float | None
    inputs: int | None = None
    removed_share_at_bar: float | None = None


Decided = tuple[Outcome, str, tuple[ModuleVerdict, ...]]


def decide(found: Sequence[Found], policy: Policy, bar: Policy | None = None) -> Decided:
    """Return the outcome, a sentence for the uploader, and every module's verdict sorted by name.

    bar: policy whose rejection is one here, too: a tenant's policy may correct so much more than the operator's that
    nothing is left of the operator's reason to reject.
    """
    decided = _decide(found, policy)
    if bar is None or decided[0] is Outcome.REJECTED:
        return decided
    at_bar = _decide([replace(f, removed_share=f.removed_share_at_bar) for f in found], bar)
    return at_bar if at_bar[0] is Outcome.REJECTED else decided


def _decide(found: Sequence[Found], policy: Policy) -> Decided:
    modules = [_verdict_alone(f, policy) for f in sorted(found, key=lambda f: f.name)]
    refused = [m for m in modules if m.decision is Decision.REJECT]
    if refused:
        return Outcome.REJECTED, _refusal(refused), tuple(modules)
    return _judge_together(modules, policy)


def _verdict_alone(f: Found, policy: Policy) -> ModuleVerdict:
    """Return the verdict on one module, by itself."""
    decision, reason = _judge(f, policy)
    return ModuleVerdict(
        name=f.name,
        rank=f.rank,
        scaling=f.scaling,
        scores=f.scores,
        cosine=f.cosine,
        update_norm=f.update_norm,
        v_norm=f.v_norm,
        lambda_max=f.lambda_max,
        decision=decision,
        reason=reason,
        input_share=f.input_share,
        removed_share=f.removed_share,
        inputs=f.inputs,
    )


def _judge(f: Found, policy: Policy) -> tuple[Decision, Reason]:
    if not f.finite or f.update_norm is None or not f.update_norm >= 0.0:
        return Decision.REJECT, Reason.NOT_FINITE
    if policy.towers is not Towers.SERVE and is_tower(f.name):
        return Decision.PRUNE if policy.towers is Towers.CUT else Decision.REJECT, Reason.TOWER
    if f.zero:
        return Decision.KEEP, Reason.ZERO_UPDATE
    bound = policy.max_update_ratio * f.v_norm if f.v_norm > 0.0 else sys.float_info.max
    if not f.update_norm <= bound:
        return Decision.REJECT, Reason.NORM_TOO_LARGE
    score = f.scores.get(policy.comparison)
    if score is None:
        return _UNSCORABLE[policy.unscorable], Reason.UNSCORABLE
    if not abs(score) < float("inf"):
        return Decision.REJECT, Reason.NOT_FINITE
    return (Decision.KEEP, Reason.BELOW_TAU) if score <= policy.tau else _above_tau(f, policy)


def _above_tau(f: Found, policy: Policy) -> tuple[Decision, Reason]:
    if policy.action is not Action.PROJECT:
        return Decision.PRUNE, Reason.ABOVE_TAU
    if f.removed_share is None or not 1.0 - f.removed_share >= LEFT_FLOOR:
        return Decision.PRUNE, Reason.NOTHING_LEFT
    return Decision.PROJECT, Reason.ABOVE_TAU


_NOT_COUNTED: Final = (Reason.ZERO_UPDATE, Reason.TOWER)
"""Reasons of modules that must not dilute a share of condemned ones: they change nothing that is served."""


def _judge_together(modules: list[ModuleVerdict], policy: Policy) -> Decided:
    """Apply the bounds on the adapter as a whole: the share of condemned modules, the cap and the budgets."""
    condemned = _condemned(modules)
    active = sum(m.reason not in _NOT_COUNTED for m in modules)
    counted, what = condemned, "are condemned"
    if policy.reject_tau is not None:
        counted, what = _above(modules, policy), f"score above {policy.reject_tau:g}"
    if counted and not len(counted) <= policy.max_pruned_share * active:
        why = f"{len(counted)} of {active} modules {what}; more than {policy.max_pruned_share:.0%} is refused"
        return Outcome.REJECTED, f"{why} (worst: {_names(_worst_first(counted, policy))})", tuple(modules)
    spared = [] if policy.max_pruned is None else _worst_first(condemned, policy)[policy.max_pruned :]
    if spared:
        names = {m.name for m in spared}
        fate = Decision.KEEP if policy.cap_keeps else Decision.REJECT
        modules = [replace(m, decision=fate, reason=Reason.SPARED_BY_CAP) if m.name in names else m for m in modules]
        if not policy.cap_keeps:
            why = f"{len(condemned)} modules are condemned and at most {policy.max_pruned} may be pruned"
            return Outcome.REJECTED, f"{why} (over the cap: {_names(spared)})", tuple(modules)
    over, why = _removes_too_much(modules, policy) or _over_budget(modules, policy)
    if over:
        reject, because = Decision.REJECT, Reason.OVER_BUDGET
        spent = (replace(m, decision=reject, reason=because) if m.name in over else m for m in modules)
        return Outcome.REJECTED, why, tuple(spent)
    return *_outcome(modules, policy), tuple(modules)


def _condemned(modules: Sequence[ModuleVerdict]) -> list[ModuleVerdict]:
    """Return the modules that are cut out for their measurements, not for being a tower's."""
    return [m for m in modules if m.decision is Decision.PRUNE and m.reason is not Reason.TOWER]


def _above(modules: Sequence[ModuleVerdict], policy: Policy) -> list[ModuleVerdict]:
    """Return the modules that score above `reject_tau`."""
    scored = ((m, m.scores.get(policy.comparison)) for m in modules)
    return [
        m for m, score in scored if score is not None and policy.reject_tau is not None and score > policy.reject_tau
    ]


def _removes_too_much(modules: Sequence[ModuleVerdict], policy: Policy) -> tuple[set[str], str] | None:
    """Return the projected modules and a sentence if projecting removes more of all modules than the policy's bound."""
    projected = [m for m in modules if m.decision is Decision.PROJECT]
    whole = sum((m.update_norm or 0.0) ** 2 for m in modules if m.reason is not Reason.TOWER)
    removed = sum((m.removed_share or 0.0) * (m.update_norm or 0.0) ** 2 for m in projected)
    if removed <= policy.max_removed_share * whole:
        return None
    why = f"projecting {len(projected)} modules would take {removed / whole:.0%} of the update away; more than "
    return {m.name for m in projected}, f"{why}{policy.max_removed_share:.0%} is refused"


def _over_budget(modules: Sequence[ModuleVerdict], policy: Policy) -> tuple[set[str], str]:
    """Return the names of the kept modules that together exceed a budget, and a sentence; both empty if none is exceeded.

    Only modules that would be served are judged: one that is cut out no longer counts, so the pruned result passes again.
    """
    left = [m for m in kept(modules) if m.scores.get(policy.comparison) is not None]
    groups = [("", left, policy.max_adapter_score)]
    groups += [(f" of {name or 'no block'}", some, policy.max_block_score) for name, some in by_block(left).items()]
    names: set[str] = set()
    messages = []
    for what, members, budget in groups:
        score = total_of("", members, policy.comparison).score
        if budget is None or score is None or score <= budget:
            continue
        worst = _worst_first(members, policy)[: worst_set(finite_scores(members, policy.comparison))]
        names |= {m.name for m in worst}
        messages.append(
            f"{len(worst)} modules{what} together score {coarse(score):g} (E-DIEM {policy.comparison}), "
            f"above the budget of {budget:g} (worst: {_names(worst)})"
        )
    return names, "; ".join(messages[:NAMED])


def _outcome(modules: list[ModuleVerdict], policy: Policy) -> tuple[Outcome, str]:
    dropped = [m for m in modules if m.reason is Reason.TOWER]
    pruned = _condemned(modules)
    projected = [m for m in modules if m.decision is Decision.PROJECT]
    also = f"; {len(dropped)} of {len(modules)} modules are dropped: {NO_TOWERS}" if dropped else ""
    what = f"E-DIEM ({policy.comparison}) above {policy.tau:g}"
    if policy.tau == EVERY_MODULE:
        what = f"on the inputs that hold {policy.energy:g} of V, whatever they score"
    if projected:
        worst = _names(_worst_first(projected, policy))
        cut = f", {len(pruned)} cut out" if pruned else ""
        done = f"{len(projected)} of {len(modules)} modules are projected{cut}"
        return Outcome.PROJECTED, f"{done}: {what} (worst: {worst}){also}"
    if len(pruned) + len(dropped) == len(modules):
        why = f"every module ({len(pruned)}) is cut out: {what}{also}" if pruned else also.removeprefix("; ")
        return Outcome.EMPTIED, why
    if not pruned:
        spared = sum(m.reason is Reason.SPARED_BY_CAP for m in modules)
        tail = f"; {spared} spared by the cap" if spared else ""
        why = f"none of {len(modules) - len(dropped)} modules is cut out{tail}{also}"
        return Outcome.PRUNED if dropped else Outcome.CLEAN, why
    names = _names(_worst_first(pruned, policy))
    return Outcome.PRUNED, f"{len(pruned)} of {len(modules)} modules are cut out: {what} (worst: {names}){also}"


def _worst_first(modules: Sequence[ModuleVerdict], policy: Policy) -> list[ModuleVerdict]:
    """Sort by score, highest first, modules without a score before all others; ties by name."""

    def key(m: ModuleVerdict) -> tuple[float, str]:
        score = m.scores.get(policy.comparison)
        return (float("-inf") if score is None else -score, m.name)

    return sorted(modules, key=key)


_REFUSALS: Final = {
    Reason.NOT_FINITE: "holds a value or score that is not finite",
    Reason.NORM_TOO_LARGE: "changes its module by far more than alignment did",
    Reason.UNSCORABLE: "cannot be scored",
    Reason.TOWER: f"{NO_TOWERS}; train on the language model alone, or ask the operator about GATEWAY_TOWERS",
}


def _refusal(refused: Sequence[ModuleVerdict]) -> str:
    groups = [(reason, [m for m in refused if m.reason is reason]) for reason in _REFUSALS]
    return "; ".join(f"{_names(group)}: {_REFUSALS[reason]}" for reason, group in groups if group)


def _names(modules: Sequence[ModuleVerdict]) -> str:
    more = len(modules) - NAMED
    return ", ".join(m.name for m in modules[:NAMED]) + (f" and {more} more" if more > 0 else "")
