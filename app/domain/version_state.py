"""The life of one adapter version, as a pure state machine.

    received ─validate─▶ validated ─screen─▶ screened ─store─▶ stored ─activate─▶ ready
        │                    │                   │              │  │              │   ▲
        └─────────┬──────────┴───────────────────┘         fail │  │ supersede    │   │ activate
                  │ reject, or fail                             │  │    supersede │   │
                  ▼                                             ▼  └──────────▶ retired
          rejected, or failed                                failed

    `retry` leads from `rejected` and `failed` back to `received`, and `delete` from every state but `deleted` to `deleted`,
    where nothing leads out.

`ready`: the version its adapter's name points to, loaded and probed, or emptied and answered by the served model.
`retired`: was ready, or was overtaken by a later version before it could be; still addressable as `name@n`. An engine
that is away is no event: what is stored stays stored until it is loaded. `stored` fails only when the engine, answering,
refuses these very bytes. `retry`: the same bytes came again and may end otherwise, so the version begins again under its
number. Who asks for a move that is not drawn has a bug: IllegalMove, not a GatewayError.
"""

from enum import StrEnum
from typing import Final


class State(StrEnum):
    """Where a version is in its life."""

    RECEIVED = "received"
    VALIDATED = "validated"
    SCREENED = "screened"
    STORED = "stored"
    READY = "ready"
    REJECTED = "rejected"
    FAILED = "failed"
    RETIRED = "retired"
    DELETED = "deleted"


class Event(StrEnum):
    """What can happen to a version."""

    VALIDATE = "validate"
    SCREEN = "screen"
    STORE = "store"
    ACTIVATE = "activate"
    SUPERSEDE = "supersede"
    REJECT = "reject"
    FAIL = "fail"
    RETRY = "retry"
    DELETE = "delete"


class IllegalMove(ValueError):
    """An event in a state where it cannot happen: the caller's bug, never an uploader's fault."""

    def __init__(self, state: State, event: Event) -> None:
        self.state = state
        self.event = event
        super().__init__(f"no move {event.value!r} from state {state.value!r}")


IN_FLIGHT: Final = frozenset({State.RECEIVED, State.VALIDATED, State.SCREENED})
"""States that live only as long as the process that works on them: after a restart they become `failed`."""

ENDED: Final = frozenset({State.REJECTED, State.FAILED})
"""States of what was not taken in: it may begin again when the same bytes come again."""

SERVABLE: Final = frozenset({State.READY, State.RETIRED})
"""States that requests may be answered from: `ready` under the plain name, both under `name@n`."""

_MOVES: Final[dict[tuple[State, Event], State]] = {
    (State.RECEIVED, Event.VALIDATE): State.VALIDATED,
    (State.VALIDATED, Event.SCREEN): State.SCREENED,
    (State.SCREENED, Event.STORE): State.STORED,
    (State.STORED, Event.ACTIVATE): State.READY,
    (State.RETIRED, Event.ACTIVATE): State.READY,
    (State.STORED, Event.SUPERSEDE): State.RETIRED,
    (State.READY, Event.SUPERSEDE): State.RETIRED,
    (State.STORED, Event.FAIL): State.FAILED,
    **{(state, Event.REJECT): State.REJECTED for state in IN_FLIGHT},
    **{(state, Event.FAIL): State.FAILED for state in IN_FLIGHT},
    **{(state, Event.RETRY): State.RECEIVED for state in ENDED},
    **{(state, Event.DELETE): State.DELETED for state in State if state is not State.DELETED},
}


def advance(state: State, event: Event) -> State:
    """Return the state that `event` leads to from `state`. Raises IllegalMove when that is not drawn."""
    try:
        return _MOVES[state, event]
    except KeyError:
        raise IllegalMove(state, event) from None


def allowed(state: State) -> frozenset[Event]:
    """The events that can happen in `state`."""
    return frozenset(event for (origin, event) in _MOVES if origin is state)
