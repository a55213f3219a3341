"""Policy recheck: versions of another policy are measured once, and the result is written down."""

import math
from collections.abc import Mapping

import pytest

from app.domain.digest import digest_of
from app.domain.errors import STORE_FAILED, Unavailable
from app.domain.policy import Policy
from app.domain.policy_override import PolicyOverride
from app.domain.version_state import State
from app.gateway.policy_recheck import WAITS, PolicyRecheck
from app.gateway.rules_in_force import OwnRules, RulesInForce
from app.store.audit.policy_in_force import PolicyInForce
from app.store.catalogue.tables import VersionRow
from tests.gateway.conftest import MakeUseCases, UseCases, rules


async def test_versions_of_the_policy_in_force_are_not_measured(use_cases: UseCases) -> None:
    row = await use_cases.publish(1)
    use_cases.objections[row.key] = "too much"
    assert use_cases.recheck.check([row]) == {}


async def test_versions_of_another_policy_are_measured_once(make_use_cases: MakeUseCases) -> None:
    use_cases = make_use_cases(rules=rules("another policy"))
    kept, bad = use_cases.store(1), use_cases.store(2)
    use_cases.objections[bad.key] = "too much"
    assert use_cases.recheck.check([kept, bad]) == {bad.key: "too much"}
    use_cases.objections.clear()
    use_cases.objections[kept.key] = "measured a second time"
    assert use_cases.recheck.check([kept, bad]) == {bad.key: "too much"}


async def test_the_auditor_finds_written_down_what_is_in_force(make_use_cases: MakeUseCases) -> None:
    use_cases = make_use_cases(rules=rules("another policy"), keep_versions=3)
    kept, bad = use_cases.store(1), use_cases.store(2)
    use_cases.objections[bad.key] = "too much"
    use_cases.recheck.check([kept, bad])
    written = PolicyInForce.read(use_cases.components.blobs.root)
    assert written == PolicyInForce.make("another policy", [kept.artefact] if kept.artefact else [], [bad.key], 3)


async def test_a_withheld_version_stays_stored_and_gets_no_name(make_use_cases: MakeUseCases) -> None:
    use_cases = make_use_cases(rules=rules("another policy"))
    row = use_cases.store(1)
    use_cases.objections[row.key] = "too much"
    await use_cases.follower.refresh()
    await use_cases.publishing.settle()
    assert use_cases.components.catalogue.version("style", 1).state is State.STORED
    assert use_cases.components.desired.state.withheld == {row.key: "too much"}


def is_due(recheck: PolicyRecheck) -> bool:
    return recheck.due


async def test_a_version_that_cannot_be_measured_is_withheld_for_a_while(
    make_use_cases: MakeUseCases, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use_cases = make_use_cases(rules=rules("another policy"))
    row, tries = use_cases.store(1), iter([Unavailable(STORE_FAILED, "away"), OSError("still away"), None])
    assert row.artefact is not None

    def objection(_: VersionRow) -> None:
        if (error := next(tries)) is not None:
            raise error

    recheck = PolicyRecheck(use_cases.components, objection)
    assert "away" in recheck.check([row])[row.key]
    assert recheck.check([row]).keys() == {row.key}, "not measured again at once"
    assert not is_due(recheck)
    assert recheck.check([row], {digest_of(b"another")}).keys() == {row.key}, "nor for another's artefact"
    assert "still away" in recheck.check([row], {row.artefact})[row.key]
    monkeypatch.setattr("app.gateway.policy_recheck.time.monotonic", lambda: math.inf)
    assert is_due(recheck)
    assert recheck.check([row]) == {}
    assert not is_due(recheck)
    assert sum("withheld" in record.getMessage() for record in caplog.records) == 1
    written = PolicyInForce.read(use_cases.components.blobs.root)
    assert written is not None
    assert written.withheld == frozenset()


async def test_a_pass_of_the_reconciler_serves_what_could_not_be_measured(
    make_use_cases: MakeUseCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cases = make_use_cases(rules=rules("another policy"))
    row, away = use_cases.store(1), [True]

    def objection(_: VersionRow) -> None:
        if away[0]:
            raise OSError("away")

    monkeypatch.setattr(use_cases.recheck, "_objection", objection)
    monkeypatch.setattr("app.gateway.policy_recheck.RETRY_S", 0.0)
    await use_cases.follower.refresh()
    assert use_cases.components.desired.state.withheld.keys() == {row.key}
    away[0] = False
    await use_cases.publishing.settle()
    assert use_cases.components.desired.waiting() == {row.engine_name}


async def test_deleted_versions_are_withheld_no_more(make_use_cases: MakeUseCases) -> None:
    use_cases = make_use_cases(rules=rules("another policy"))
    row = use_cases.store(1)
    use_cases.objections[row.key] = "too much"
    assert use_cases.recheck.check([row]).keys() == {row.key}
    assert use_cases.recheck.check([]) == {}


async def test_a_policy_that_comes_back_before_all_were_measured_leaves_nobody_waiting(
    make_use_cases: MakeUseCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_force = RulesInForce(Policy(), None, lambda policy, _: f"at most {policy.max_update_ratio}")
    use_cases = make_use_cases(rules=in_force)
    rows = [use_cases.store(seed) for seed in (1, 2, 3)]
    monkeypatch.setattr("app.gateway.policy_recheck.SLICE_S", 0.0)
    first, second = (OwnRules(PolicyOverride(max_update_ratio=ratio)) for ratio in (90.0, 80.0))

    def checked(own: OwnRules) -> Mapping[tuple[str, int], str]:
        in_force.replace_own({rows[0].name.tenant: own})
        return use_cases.recheck.check(rows)

    assert checked(first) == {}, "at the start all are measured"
    assert [*checked(second).values()] == [WAITS, WAITS]
    for _ in rows:
        withheld = checked(first)
    assert withheld == {}
    assert not is_due(use_cases.recheck)
