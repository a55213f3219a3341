"""Override of a policy: stricter in every field, and refused where it is weaker."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from app.domain.policy import Action, Comparison, Policy, Unscorable
from app.domain.policy_override import FIELDS, NO_OVERRIDE, PolicyOverride, override_from
from app.domain.rungs import bounded_as, policies, rungs_from

OPERATORS = Policy(
    tau=3.0,
    max_pruned=5,
    reject_tau=4.0,
    max_block_score=7.0,
    max_adapter_score=9.0,
    unscorable=Unscorable.PRUNE,
    project_outputs=2,
)
EACH: dict[str, tuple[Any, Any]] = {
    "tau": (2.0, 3.5),
    "project_outputs": (3, 1),
    "max_removed_share": (0.25, 0.75),
    "max_pruned": (0, 6),
    "max_pruned_share": (0.25, 0.75),
    "reject_tau": (3.0, 4.5),
    "max_update_ratio": (50.0, 101.0),
    "unscorable": (Unscorable.REJECT, Unscorable.KEEP),
    "max_block_score": (6.0, 8.0),
    "max_adapter_score": (8.0, 10.0),
}
"""A stricter and a weaker value for each field."""


def test_each_field_has_an_order() -> None:
    assert EACH.keys() == {*FIELDS}


@pytest.mark.parametrize("field", FIELDS)
def test_a_stricter_value_is_applied_and_a_weaker_one_is_named(field: str) -> None:
    stricter, weaker = EACH[field]
    assert PolicyOverride(**{field: stricter}).weaker(OPERATORS) is None
    assert getattr(PolicyOverride(**{field: stricter}).applied(OPERATORS), field) == stricter
    operators = getattr(OPERATORS, field)
    assert PolicyOverride(**{field: weaker}).weaker(OPERATORS) == (field, weaker, operators)
    kept = PolicyOverride(**{field: weaker}).applied(OPERATORS)  # of a tenant whose operator became stricter since
    assert getattr(kept, field) == operators
    assert PolicyOverride(**{field: operators}).weaker(OPERATORS) is None, "the same is not weaker"


def test_where_the_operator_sets_no_bound_any_is_stricter() -> None:
    policy = Policy()
    unbound = {name: value for name, value in asdict(policy).items() if name in FIELDS and value is None}
    assert {*unbound} == {"max_pruned", "reject_tau", "max_block_score", "max_adapter_score"}
    override = PolicyOverride(max_pruned=10**6, max_block_score=1e6, max_adapter_score=1e6)
    assert override.weaker(policy) is None
    assert override.applied(policy).max_pruned == 10**6
    counted = PolicyOverride(reject_tau=1.0)  # instead of what is cut out, which may be more
    assert counted.weaker(policy) == ("reject_tau", 1.0, None)
    assert counted.applied(policy).reject_tau is None


def test_projecting_knows_no_tau_below_zero() -> None:
    policy = Policy(action=Action.PROJECT, comparison=Comparison.INPUT, tau=1.0)
    below = PolicyOverride(tau=-5.0)
    assert below.weaker(policy) is None
    assert below.applied(policy).tau == 0.0
    assert below.applied(Policy(tau=1.0)).tau == -5.0, "pruning does"


def test_a_tenant_with_values_of_its_own_keeps_no_spared_module() -> None:
    policy = Policy(max_pruned=1, cap_keeps=True)
    assert NO_OVERRIDE.applied(policy) is policy
    assert not PolicyOverride(max_removed_share=0.4).applied(policy).cap_keeps


def test_it_survives_json() -> None:
    override = PolicyOverride(**{field: EACH[field][0] for field in FIELDS})
    assert override_from(json.loads(json.dumps(asdict(override)))) == override
    assert override_from(asdict(NO_OVERRIDE)) == override_from({}) == NO_OVERRIDE
    broken: list[dict[str, Any]] = [{"unscorable": "never"}, {"energy": 0.1}]
    for values in broken:
        with pytest.raises((ValueError, TypeError)):
            override_from(values)


def test_rungs_over_a_tenants_floor_are_those_of_its_policy() -> None:
    rungs, override = rungs_from("0.5:4,0.9:16"), PolicyOverride(unscorable=Unscorable.REJECT, max_update_ratio=3.0)
    floor = replace(OPERATORS, comparison=Comparison.INPUT, action=Action.PROJECT)
    tenants = override.applied(floor)
    assert tuple(bounded_as(rung, tenants) for rung in policies(floor, rungs)) == policies(tenants, rungs)
