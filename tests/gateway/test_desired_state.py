"""Desired state: rows in, one value out."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.digest import Digest, digest_of
from app.domain.names import AdapterName
from app.domain.verdict import Outcome
from app.domain.version_state import State
from app.gateway.desired_state import DesiredState, Entries, Key, desired_state
from app.observe.metrics import ModuleCounts
from app.store.catalogue.tables import VersionRow
from tests.store.making import received

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROOT = Path("/artefacts")


def row(number: int, state: State = State.READY, name: str = "style", **changes: Any) -> VersionRow:
    digest = digest_of(f"{name} {number}".encode())
    made = VersionRow(
        name=AdapterName(name),
        number=number,
        state=state,
        outcome=Outcome.PRUNED,
        received=received(number),
        parameters="",
        verdict_id=digest,
        modules_total=4,
        modules_pruned=1,
        modules_projected=1,
        artefact=digest,
        engine_name=f"{name}@{digest.short}",
        error_code=None,
        error_message=None,
        created_at=NOW,
        updated_at=NOW,
        revision=number,
        owner=None,
        key_owner=None,
    )
    return replace(made, **changes)


def path_of(digest: Digest) -> Path:
    return ROOT / digest.hex


def state_of(*rows: VersionRow, entries: Entries | None = None, **given: Any) -> DesiredState:
    values: dict[str, Any] = {
        "withheld": {},
        "recalled": frozenset(),
        "candidates": {},
        "keep_versions": 5,
        "standing": {},
        **given,
    }
    stored = [one for one in rows if one.state is State.STORED]
    published = [one for one in rows if one.state is not State.STORED]
    return desired_state(7, stored=stored, published=published, entries=entries or Entries(path_of), **values)


def names(state: DesiredState) -> list[tuple[str, int, bool]]:
    return [(one.adapter, one.version, one.active) for one in state.served]


def test_published_versions_are_served_and_loaded() -> None:
    old, new = row(1, State.RETIRED), row(2)
    state = state_of(old, new)
    assert names(state) == [("style", 1, False), ("style", 2, True)]
    assert state.adapters == {one.engine_name: path_of(one.artefact) for one in (old, new) if one.artefact}
    assert (state.revision, state.waiting, state.unloaded) == (7, frozenset(), frozenset())
    assert state.modules == {"style": ModuleCounts(kept=2, pruned=1, projected=1)}


def test_a_stored_version_is_loaded_and_not_yet_served() -> None:
    waiting = row(1, State.STORED)
    state = state_of(waiting)
    assert state.adapters.keys() == state.waiting == {waiting.engine_name}
    assert (state.served, state.stored) == ((), 1)


@pytest.mark.parametrize("state_before", [State.STORED, State.READY, State.RETIRED])
def test_a_withheld_version_is_neither_loaded_nor_served(state_before: State) -> None:
    one = row(1, state_before)
    state = state_of(one, withheld={one.key: "too much"})
    assert (dict(state.adapters), state.served, state.stored) == ({}, (), 0)
    assert state.withheld == {("style", 1): "too much"}


def test_versions_beyond_the_retention_are_unloaded_until_they_are_recalled() -> None:
    rows = [row(1, State.RETIRED), row(2, State.RETIRED), row(3)]
    state = state_of(*rows, keep_versions=1)
    assert names(state) == [("style", 2, False), ("style", 3, True)]
    assert state.unloaded == {("style", 1)}
    assert state.is_unloaded(rows[0])
    assert not state.is_unloaded(replace(rows[0], state=State.READY)), "a rollback has brought it back since"
    recalled = state_of(*rows, keep_versions=1, recalled=frozenset({("style", 1)}))
    assert recalled.waiting == {rows[0].engine_name}
    assert rows[0].engine_name in recalled.adapters
    assert names(recalled) == names(state), "loaded, and not served before the name points to it"


def test_an_emptied_version_is_served_without_an_adapter() -> None:
    one = row(1, outcome=Outcome.EMPTIED, artefact=None, engine_name=None)
    state = state_of(one)
    assert (names(state), dict(state.adapters)) == ([("style", 1, True)], {})


def test_a_version_that_lost_its_artefact_is_not_answered_by_the_served_model() -> None:
    assert state_of(row(1, artefact=None, engine_name=None)).served == ()


def test_an_adapter_with_older_versions_only_has_no_module_counts() -> None:
    assert state_of(row(1, State.RETIRED)).modules == {"style": None}


def test_standing_adapters_are_held_whatever_the_catalogue_says() -> None:
    standing: Mapping[str, Path] = {"base@000000000000": ROOT / "zero"}
    assert state_of(standing=standing).adapters == standing


def test_entries_are_made_anew_for_a_new_revision_only() -> None:
    entries = Entries(path_of)
    (first,) = entries.of([row(1)])
    (again,) = entries.of([row(1)])
    assert again is first
    (changed,) = entries.of([row(1, State.RETIRED, revision=9)])
    assert not changed.served.active
    (forgotten,) = entries.of([row(1)])
    assert forgotten is not first, "rows that were not asked for are forgotten"


STATES = [State.STORED, State.READY, State.RETIRED]
ROWS = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(STATES), st.booleans(), st.booleans()), max_size=12)


@given(ROWS, st.integers(0, 3))
def test_whatever_the_rows_no_rule_is_broken(made: list[tuple[str, State, bool, bool]], keep: int) -> None:
    rows = [row(number, state, name) for number, (name, state, _, _) in enumerate(made, 1)]
    withheld: dict[Key, str] = {one.key: "no" for one, (_, _, bad, _) in zip(rows, made, strict=True) if bad}
    recalled = frozenset(one.key for one, (_, _, _, back) in zip(rows, made, strict=True) if back)
    state = state_of(*rows, withheld=withheld, recalled=recalled, keep_versions=keep)
    served = {(one.adapter, one.version) for one in state.served}
    assert not served & withheld.keys()
    assert not served & state.unloaded
    assert state.waiting <= state.adapters.keys()
    assert {one.engine_name for one in state.served} <= state.adapters.keys()
    assert {one.key for one in rows if one.state is not State.STORED} == served | state.unloaded | {
        one.key for one in rows if one.state is not State.STORED and one.key in withheld
    }
    for name in "ab":
        retired = [one for one in state.served if one.adapter == name and not one.active]
        assert len(retired) <= keep
