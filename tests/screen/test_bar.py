"""Decisions by a tenant's policy: never weaker than the operator's, for an adapter and for each of its modules."""

from dataclasses import replace
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from app.domain.policy import Action, Comparison, Policy, Unscorable
from app.domain.policy_override import PolicyOverride
from app.domain.verdict import Decision, Outcome
from app.screen.decide import Found, decide

MILD_TO_STRICT: Final = [Decision.KEEP, Decision.PROJECT, Decision.PRUNE, Decision.REJECT]
SCORES = st.one_of(st.none(), st.floats(-6, 6))
SHARES = st.floats(0, 1)
BOUNDS = st.one_of(st.none(), st.floats(-3, 12))
CAPS = st.one_of(st.none(), st.integers(0, 4))

found = st.builds(
    Found,
    name=st.just(""),
    rank=st.just(4),
    scaling=st.just(1.0),
    finite=st.sampled_from([True] * 9 + [False]),
    zero=st.sampled_from([False] * 9 + [True]),
    scores=st.fixed_dictionaries({Comparison.INPUT: SCORES}),
    cosine=st.none(),
    update_norm=st.floats(0.1, 10),
    v_norm=st.floats(0.1, 10),
    lambda_max=st.just(1.0),
    input_share=SHARES,
    removed_share=st.one_of(SHARES, st.just(1.0)),
    removed_share_at_bar=SHARES,
)


@st.composite
def adapters(draw: st.DrawFn) -> list[Found]:
    """Modules in two blocks. More outputs taken out take no less away."""
    some = draw(st.lists(found, min_size=1, max_size=6))
    return [
        replace(
            one,
            name=f"model.layers.{number % 2}.m{number}",
            removed_share=max(one.removed_share or 0.0, one.removed_share_at_bar or 0.0),
        )
        for number, one in enumerate(some)
    ]


policies = st.builds(
    Policy,
    action=st.sampled_from(Action),
    tau=st.floats(0, 4),
    max_pruned=CAPS,
    cap_keeps=st.booleans(),
    max_pruned_share=SHARES,
    max_update_ratio=st.floats(0.1, 20),
    unscorable=st.sampled_from(Unscorable),
    max_block_score=BOUNDS,
    max_adapter_score=BOUNDS,
    max_removed_share=SHARES,
    project_outputs=st.integers(0, 3),
    reject_tau=BOUNDS,
)
overrides = st.builds(
    PolicyOverride,
    tau=st.one_of(st.none(), st.floats(-6, 4)),
    project_outputs=st.one_of(st.none(), st.integers(0, 3)),
    max_removed_share=st.one_of(st.none(), SHARES),
    max_pruned=CAPS,
    max_pruned_share=st.one_of(st.none(), SHARES),
    reject_tau=BOUNDS,
    max_update_ratio=st.one_of(st.none(), st.floats(0.1, 20)),
    unscorable=st.one_of(st.none(), st.sampled_from(Unscorable)),
    max_block_score=BOUNDS,
    max_adapter_score=BOUNDS,
)


@given(adapters(), policies, overrides)
def test_no_override_is_weaker_than_the_operators_policy(
    modules: list[Found], operators: Policy, override: PolicyOverride
) -> None:
    as_operators = [replace(one, removed_share=one.removed_share_at_bar) for one in modules]
    by_operator, _, their_modules = decide(as_operators, operators)
    tenants = override.applied(operators)
    if tenants.project_outputs == operators.project_outputs:
        modules = as_operators
    outcome, _, own_modules = decide(modules, tenants, operators)
    if by_operator is Outcome.REJECTED:
        assert outcome is Outcome.REJECTED
    if outcome is not Outcome.REJECTED:
        for theirs, own in zip(their_modules, own_modules, strict=True):
            assert MILD_TO_STRICT.index(own.decision) >= MILD_TO_STRICT.index(theirs.decision)


def test_what_more_correction_would_hide_is_rejected_all_the_same() -> None:
    """Projected, the worst module counts for no budget any more: without the bar the tenant's adapter would pass."""
    scores = {"model.layers.0.a": 3.0, "model.layers.0.b": 1.0}
    modules = [
        Found(name, 4, 1.0, True, False, {Comparison.INPUT: score}, None, 1.0, 1.0, 1.0, 0.1, 0.1, 4, 0.1)
        for name, score in scores.items()
    ]
    operators = Policy(action=Action.PROJECT, tau=3.5, max_adapter_score=2.5)
    tenants = PolicyOverride(tau=2.0).applied(operators)
    assert decide(modules, operators)[0] is Outcome.REJECTED
    assert decide(modules, tenants)[0] is Outcome.PROJECTED
    outcome, reason, _ = decide(modules, tenants, operators)
    assert outcome is Outcome.REJECTED
    assert "above the budget of 2.5" in reason
