import math
from dataclasses import replace
from typing import Any

import pytest

from app.domain.policy import Comparison, Policy, Towers, Unscorable
from app.domain.verdict import Decision, Outcome, Reason
from app.screen.decide import Found, decide

POLICY = Policy(tau=3.0, max_pruned_share=0.5)


def found(name: str, score: float | None = 0.0, **changes: object) -> Found:
    base = Found(
        name=name,
        rank=4,
        scaling=2.0,
        finite=True,
        zero=False,
        scores={Comparison.INPUT: score, Comparison.ALIGNMENT: 99.0, Comparison.PROJECTION: None},
        cosine=0.5,
        update_norm=1.0,
        v_norm=1.0,
        lambda_max=0.5,
        input_share=0.1,
        removed_share=0.1,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def many(*scores: float | None) -> list[Found]:
    return [found(f"m.{i}", score) for i, score in enumerate(scores)]


def test_all_pass() -> None:
    outcome, why, modules = decide(many(0.0, -50.0, 3.0), POLICY)
    assert outcome is Outcome.CLEAN
    assert {m.reason for m in modules} == {Reason.BELOW_TAU}
    assert why == "none of 3 modules is cut out"


def test_the_one_above_tau_is_cut_out_and_named() -> None:
    outcome, why, modules = decide(many(0.0, math.nextafter(3.0, 4.0), 1.0), POLICY)
    assert outcome is Outcome.PRUNED
    assert [m.decision for m in modules] == [Decision.KEEP, Decision.PRUNE, Decision.KEEP]
    assert modules[1].reason is Reason.ABOVE_TAU
    assert "1 of 3" in why
    assert "m.1" in why


def test_modules_are_sorted_by_name() -> None:
    _, _, modules = decide([found("b"), found("a")], POLICY)
    assert [m.name for m in modules] == ["a", "b"]


def test_every_module_cut_out_is_its_own_outcome() -> None:
    outcome, why, _ = decide(many(9.0, 9.0), replace(POLICY, max_pruned_share=1.0))
    assert outcome is Outcome.EMPTIED
    assert "every module" in why


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_passes_nothing(score: float) -> None:
    outcome, why, modules = decide(many(0.0, score), POLICY)
    assert outcome is Outcome.REJECTED
    assert modules[1].reason is Reason.NOT_FINITE
    assert "m.1" in why


@pytest.mark.parametrize("changes", [{"finite": False}, {"update_norm": None}, {"update_norm": math.nan}])
@pytest.mark.hostile("G03")
def test_values_that_are_not_finite_are_refused(changes: dict[str, Any]) -> None:
    outcome, _, modules = decide([found("m", **changes)], POLICY)
    assert outcome is Outcome.REJECTED
    assert modules[0].decision is Decision.REJECT


@pytest.mark.parametrize(("norm", "passes"), [(100.0, True), (100.1, False), (math.inf, False)])
def test_the_norm_bound(norm: float, passes: bool) -> None:
    outcome, why, modules = decide([found("m", update_norm=norm)], POLICY)
    assert (outcome is Outcome.CLEAN) is passes
    assert passes or (modules[0].reason is Reason.NORM_TOO_LARGE and "far more than alignment" in why)


@pytest.mark.parametrize(
    ("policy", "decision", "outcome"),
    [
        (Unscorable.REJECT, Decision.REJECT, Outcome.REJECTED),
        (Unscorable.PRUNE, Decision.PRUNE, Outcome.PRUNED),
        (Unscorable.KEEP, Decision.KEEP, Outcome.CLEAN),
    ],
)
def test_what_cannot_be_scored_is_the_operators_decision(
    policy: Unscorable, decision: Decision, outcome: Outcome
) -> None:
    result, _, modules = decide(many(0.0, None), replace(POLICY, unscorable=policy))
    assert modules[1].decision is decision
    assert modules[1].reason is Reason.UNSCORABLE
    assert result is outcome


def test_a_missing_alignment_vector_bounds_no_norm() -> None:
    unscored = found("m", None, v_norm=0.0, update_norm=5.0)
    assert decide([unscored], replace(POLICY, unscorable=Unscorable.KEEP))[0] is Outcome.CLEAN
    assert decide([unscored], POLICY)[0] is Outcome.REJECTED


def test_a_zero_update_passes_without_a_score() -> None:
    outcome, _, modules = decide([found("m", None, zero=True, update_norm=0.0)], POLICY)
    assert outcome is Outcome.CLEAN
    assert modules[0].reason is Reason.ZERO_UPDATE


def test_too_large_a_share_is_refused() -> None:
    assert decide(many(9.0, 0.0), POLICY)[0] is Outcome.PRUNED
    outcome, why, _ = decide(many(9.0, 9.0, 0.0), POLICY)
    assert outcome is Outcome.REJECTED
    assert "2 of 3" in why


def test_zero_modules_do_not_dilute_the_share() -> None:
    padding = [found(f"z.{i}", None, zero=True, update_norm=0.0) for i in range(10)]
    assert decide([*many(9.0, 9.0, 0.0), *padding], POLICY)[0] is Outcome.REJECTED


def test_the_cap_cuts_out_the_worst_and_refuses_the_rest() -> None:
    outcome, why, modules = decide(many(9.0, 20.0, 0.0, 0.0), replace(POLICY, max_pruned=1))
    assert outcome is Outcome.REJECTED
    assert [m.reason for m in modules[:2]] == [Reason.SPARED_BY_CAP, Reason.ABOVE_TAU]
    assert modules[0].decision is Decision.REJECT
    assert "at most 1" in why


def test_the_cap_keeps_the_rest_where_the_operator_says_so() -> None:
    outcome, _, modules = decide(many(9.0, 20.0, 0.0, 0.0), replace(POLICY, max_pruned=1, cap_keeps=True))
    assert outcome is Outcome.PRUNED
    assert [m.decision for m in modules] == [Decision.KEEP, Decision.PRUNE, Decision.KEEP, Decision.KEEP]
    assert modules[0].reason is Reason.SPARED_BY_CAP


def test_ties_at_the_cap_go_by_name() -> None:
    _, _, modules = decide(many(9.0, 9.0, 0.0, 0.0), replace(POLICY, max_pruned=1, cap_keeps=True))
    assert [m.decision for m in modules][:2] == [Decision.PRUNE, Decision.KEEP]


def test_a_cap_of_none_keeps_all_and_says_so() -> None:
    outcome, why, _ = decide(many(9.0, 0.0), replace(POLICY, max_pruned=0, cap_keeps=True))
    assert outcome is Outcome.CLEAN
    assert "1 spared" in why


def test_unscorable_modules_that_are_pruned_come_before_the_worst() -> None:
    policy = replace(POLICY, unscorable=Unscorable.PRUNE, max_pruned=1, cap_keeps=True)
    _, _, modules = decide(many(50.0, None, 0.0, 0.0), policy)
    assert modules[1].decision is Decision.PRUNE
    assert modules[0].reason is Reason.SPARED_BY_CAP


def test_the_other_comparisons_decide_when_the_policy_says_so() -> None:
    outcome, _, _ = decide(many(0.0), Policy(comparison=Comparison.ALIGNMENT, max_pruned_share=1.0))
    assert outcome is Outcome.EMPTIED


def test_a_sentence_names_a_few_and_counts_the_rest() -> None:
    _, why, _ = decide([found(f"m.{i}", finite=False) for i in range(9)], POLICY)
    assert "m.0, m.1, m.2 and 6 more" in why


# ---- budgets (G06, G07) ------------------------------------------------------------------------------------------


def blocks(*scores: list[float]) -> list[Found]:
    return [found(f"model.layers.{i}.m{j}", s) for i, row in enumerate(scores) for j, s in enumerate(row)]


THIN = blocks(*[[2.9] * 7] * 4)


@pytest.mark.ruling("G06")
def test_harm_spread_thinly_passes_every_tau_and_no_budget() -> None:
    assert decide(THIN, POLICY)[0] is Outcome.CLEAN
    outcome, why, modules = decide(THIN, replace(POLICY, max_adapter_score=10.0))
    assert outcome is Outcome.REJECTED
    assert {(m.decision, m.reason) for m in modules} == {(Decision.REJECT, Reason.OVER_BUDGET)}
    assert why == (
        "28 modules together score 15 (E-DIEM input), above the budget of 10 (worst: model.layers.0.m0, "
        "model.layers.0.m1, model.layers.0.m2 and 25 more)"
    )


@pytest.mark.ruling("G07")
def test_one_block_over_its_budget_is_named() -> None:
    spread = blocks([0.0] * 7, [2.0] * 7, [-9.0] * 7)
    policy = replace(POLICY, max_block_score=4.0, max_adapter_score=6.0)
    outcome, why, modules = decide(spread, policy)
    assert outcome is Outcome.REJECTED
    assert "7 modules of model.layers.1 together score 5.3" in why
    assert [m.name for m in modules if m.reason is Reason.OVER_BUDGET] == [f"model.layers.1.m{j}" for j in range(7)]


def test_exactly_at_the_budget_passes() -> None:
    assert decide(blocks([2.0] * 4), replace(POLICY, max_adapter_score=4.0, max_block_score=4.0))[0] is Outcome.CLEAN


@pytest.mark.ruling("G08")
def test_decoys_buy_no_budget() -> None:
    decoys = [found(f"model.layers.{i}.decoy", -30.0) for i in range(4, 99)]
    assert decide([*THIN, *decoys], replace(POLICY, max_adapter_score=10.0))[0] is Outcome.REJECTED


def test_what_is_cut_out_no_longer_counts_and_the_rest_passes_again() -> None:
    policy = replace(POLICY, max_adapter_score=4.0)
    mixed = blocks([40.0, 1.0, 1.0, 1.0])
    outcome, _, modules = decide(mixed, policy)
    assert outcome is Outcome.PRUNED
    left = [f for f in mixed if next(m for m in modules if m.name == f.name).decision is Decision.KEEP]
    assert decide(left, policy)[0] is Outcome.CLEAN


def test_what_the_cap_spares_is_judged_by_the_budget() -> None:
    policy = replace(POLICY, max_pruned=1, cap_keeps=True, max_adapter_score=4.0)
    assert decide(many(9.0, 20.0, 0.0, 0.0), policy)[0] is Outcome.REJECTED
    assert decide(many(9.0, 20.0, 0.0, 0.0), replace(policy, max_adapter_score=9.0))[0] is Outcome.PRUNED


def test_modules_without_a_score_neither_spend_nor_break_a_budget() -> None:
    policy = replace(POLICY, unscorable=Unscorable.KEEP, max_adapter_score=0.5, max_block_score=0.5)
    silent = [found("m.8", None), found("m.9", None, zero=True, update_norm=0.0)]
    assert decide([found("m.0", 0.5), *silent], policy)[0] is Outcome.CLEAN
    assert decide(silent, policy)[0] is Outcome.CLEAN
    assert decide([found("m.0", 0.6), *silent], policy)[0] is Outcome.REJECTED


TOWER = ("visual.blocks.0.attn.qkv", "model.vision_tower.layers.0.mlp.fc1", "multi_modal_projector.linear_1")


def with_tower(*scores: float) -> list[Found]:
    return [*(found(name, 50.0, update_norm=1e6) for name in TOWER), *many(*scores)]


def test_modules_that_the_engine_would_drop_are_cut_out_and_said() -> None:
    policy = replace(POLICY, towers=Towers.CUT)
    outcome, why, modules = decide(with_tower(0.0, 1.0), policy)
    assert outcome is Outcome.PRUNED
    assert (
        why
        == "none of 2 modules is cut out; 3 of 5 modules are dropped: the engine serves no LoRA on towers and projectors"
    )
    cut = {m.name: m.reason for m in modules if m.decision is Decision.PRUNE}
    assert cut == dict.fromkeys(TOWER, Reason.TOWER)


def test_dropped_modules_count_towards_no_share_and_no_cap() -> None:
    policy = replace(POLICY, towers=Towers.CUT, max_pruned=1)
    outcome, why, _ = decide(with_tower(9.0, 0.0), policy)
    assert outcome is Outcome.PRUNED
    assert "1 of 5 modules are cut out" in why
    assert "3 of 5 modules are dropped" in why
    assert decide(with_tower(9.0, 9.0, 0.0), replace(policy, max_pruned=None))[0] is Outcome.REJECTED  # two of three


def test_an_adapter_on_towers_alone_is_emptied() -> None:
    outcome, why, _ = decide(with_tower(), replace(POLICY, towers=Towers.CUT))
    assert outcome is Outcome.EMPTIED
    assert why.startswith("3 of 3 modules are dropped")


def test_towers_are_refused_or_served_if_the_operator_says_so() -> None:
    outcome, why, modules = decide(with_tower(0.0), replace(POLICY, towers=Towers.REJECT))
    assert outcome is Outcome.REJECTED
    assert "serves no LoRA" in why
    assert "GATEWAY_TOWERS" in why
    assert {m.name for m in modules if m.decision is Decision.REJECT} == set(TOWER)
    served = [replace(one, update_norm=1.0, scores={Comparison.INPUT: 1.0}) for one in with_tower(0.0)]
    assert decide(served, replace(POLICY, towers=Towers.SERVE))[0] is Outcome.CLEAN


def test_a_value_that_is_not_finite_is_refused_on_a_tower_too() -> None:
    assert (
        decide([found(TOWER[0], finite=False), found("m")], replace(POLICY, towers=Towers.CUT))[0] is Outcome.REJECTED
    )
