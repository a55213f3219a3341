"""Every state × every event, and walks of any length."""

import ast
from itertools import pairwise, product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain import version_state as lifecycle
from app.domain.version_state import ENDED, IN_FLIGHT, SERVABLE, Event, IllegalMove, State, advance, allowed

DRAWN = {
    (State.RECEIVED, Event.VALIDATE): State.VALIDATED,
    (State.RECEIVED, Event.REJECT): State.REJECTED,
    (State.RECEIVED, Event.FAIL): State.FAILED,
    (State.RECEIVED, Event.DELETE): State.DELETED,
    (State.VALIDATED, Event.SCREEN): State.SCREENED,
    (State.VALIDATED, Event.REJECT): State.REJECTED,
    (State.VALIDATED, Event.FAIL): State.FAILED,
    (State.VALIDATED, Event.DELETE): State.DELETED,
    (State.SCREENED, Event.STORE): State.STORED,
    (State.SCREENED, Event.REJECT): State.REJECTED,
    (State.SCREENED, Event.FAIL): State.FAILED,
    (State.SCREENED, Event.DELETE): State.DELETED,
    (State.STORED, Event.ACTIVATE): State.READY,
    (State.STORED, Event.SUPERSEDE): State.RETIRED,
    (State.STORED, Event.FAIL): State.FAILED,
    (State.STORED, Event.REJECT): State.REJECTED,
    (State.STORED, Event.DELETE): State.DELETED,
    (State.READY, Event.SUPERSEDE): State.RETIRED,
    (State.READY, Event.DELETE): State.DELETED,
    (State.RETIRED, Event.ACTIVATE): State.READY,
    (State.RETIRED, Event.DELETE): State.DELETED,
    (State.REJECTED, Event.RETRY): State.RECEIVED,
    (State.FAILED, Event.RETRY): State.RECEIVED,
    (State.REJECTED, Event.DELETE): State.DELETED,
    (State.FAILED, Event.DELETE): State.DELETED,
}
"""Written out once more by hand: the oracle."""


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)), ids=str)
def test_each_move_is_drawn_or_illegal(state: State, event: Event) -> None:
    if (state, event) in DRAWN:
        assert advance(state, event) is DRAWN[state, event]
        assert event in allowed(state)
        return
    assert event not in allowed(state)
    with pytest.raises(IllegalMove) as caught:
        advance(state, event)
    assert (caught.value.state, caught.value.event) == (state, event)
    assert state.value in str(caught.value)
    assert event.value in str(caught.value)


@given(st.lists(st.sampled_from(Event), max_size=30))
def test_a_refused_move_changes_nothing_and_no_walk_comes_back_from_the_end(events: list[Event]) -> None:
    state, path = State.RECEIVED, [State.RECEIVED]
    for event in events:
        try:
            state = advance(state, event)
        except IllegalMove:
            assert (state, event) not in DRAWN
            continue
        path.append(state)
    if State.DELETED in path:
        assert path.index(State.DELETED) == len(path) - 1
    for before, after in pairwise(path):
        assert before not in ENDED or after in (State.RECEIVED, State.DELETED), (
            "whoever tries again begins at the beginning"
        )
    if State.READY in path:
        way = path[: path.index(State.READY)]
        last = len(way) - way[::-1].index(State.RECEIVED) - 1
        assert way[last : last + 4] == [State.RECEIVED, State.VALIDATED, State.SCREENED, State.STORED]


def test_nothing_is_served_that_was_not_screened() -> None:
    """Without `screen` no walk ends in a servable state, whatever else happens."""
    reached, frontier = {State.RECEIVED}, [State.RECEIVED]
    while frontier:
        state = frontier.pop()
        for event in allowed(state) - {Event.SCREEN}:
            if (after := advance(state, event)) not in reached:
                reached.add(after)
                frontier.append(after)
    assert not reached & (SERVABLE | {State.SCREENED, State.STORED})


def test_every_state_is_reached() -> None:
    assert {State.RECEIVED, *DRAWN.values()} == set(State)


def test_an_engine_outage_is_no_event() -> None:
    """A stored version can only be published, fail, be rejected for its behaviour, be overtaken or be deleted."""
    assert allowed(State.STORED) == {Event.ACTIVATE, Event.SUPERSEDE, Event.FAIL, Event.REJECT, Event.DELETE}


def test_in_flight_states_are_those_before_stored() -> None:
    assert {State.RECEIVED, State.VALIDATED, State.SCREENED} == IN_FLIGHT


def test_the_module_imports_nothing_of_ours() -> None:
    source = Path(lifecycle.__file__).read_text(encoding="utf-8")
    imports = [node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    assert not [name for name in imports if name and name.startswith("app") and name != "app.domain.errors"]


def test_the_drawing_names_every_state_and_event() -> None:
    drawing = lifecycle.__doc__ or ""
    assert all(word.value in drawing for word in (*State, *Event))
