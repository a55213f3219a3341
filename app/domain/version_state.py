"""Life cycle of an adapter version, as a pure state machine.

    received ─validate─▶ validated ─screen─▶ screened ─store─▶ stored ─activate─▶ ready
        │                    │                   │              │  │              │   ▲
        └─────────┬──────────┴───────────────────┴──────────────┘  │ supersede    │   │ activate
                  │ reject, or fail                                │    supersede │   │
                  ▼                                                └──────────▶ retired
          rejected, or failed

    `retry` leads from `rejected` and `failed` back to `received`, and `delete` from every state but `deleted` to `deleted`,
    which is final.

`ready`: the version its adapter's name points to, loaded and probed, or emptied and answered by the served model.
`retired`: was ready, or was superseded by a later version before it became ready; still addressable as `name@n`. An engine
that is down is not an event: a stored version stays stored until it is loaded. `stored` fails only when a responding
engine refuses these very bytes, and is rejected only for its behaviour on canaries. `retry`: the same bytes were sent
again and may end differently, so the version begins again under its number. A transition that is not drawn is a bug in the
caller: IllegalMove, not a GatewayError.
"""

from enum import StrEnum
from typing import Final


class State(StrEnum):
    """State of a version."""

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
    """Event that changes a version's state."""

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
    """Event in a state that does not allow it: a bug in the caller, never an uploader's fault."""

    def __init__(self, state: State, event: Event) -> None:
        self.state = state
        self.event = event
        super().__init__(f"no move {event.value!r} from state {state.value!r}")


IN_FLIGHT: Final = frozenset({State.RECEIVED, State.VALIDATED, State.SCREENED})
"""States that last only as long as the process that works on the version: after a restart they become `failed`."""

ENDED: Final = frozenset({State.REJECTED, State.FAILED})
"""States of a version that was not accepted: it begins again when the same bytes are sent again."""

SERVABLE: Final = frozenset({State.READY, State.RETIRED})
"""States in which a version answers requests: `ready` under the plain name, both under `name@n`."""

_MOVES: Final[dict[tuple[State, Event], State]] = {
    (State.RECEIVED, Event.VALIDATE): State.VALIDATED,
    (State.VALIDATED, Event.SCREEN): State.SCREENED,
    (State.SCREENED, Event.STORE): State.STORED,
    (State.STORED, Event.ACTIVATE): State.READY,
    (State.RETIRED, Event.ACTIVATE): State.READY,
    (State.STORED, Event.SUPERSEDE): State.RETIRED,
    (State.READY, Event.SUPERSEDE): State.RETIRED,
    (State.STORED, Event.FAIL): State.FAILED,
    (State.STORED, Event.REJECT): State.REJECTED,
    **{(state, Event.REJECT): State.REJECTED for state in IN_FLIGHT},
    **{(state, Event.FAIL): State.FAILED for state in IN_FLIGHT},
    **{(state, Event.RETRY): State.RECEIVED for state in ENDED},
    **{(state, Event.DELETE): State.DELETED for state in State if state is not State.DELETED},
}


def advance(state: State, event: Event) -> State:
    """Return the state that `event` leads to from `state`. Raises IllegalMove if `state` does not allow it."""
    try:
        return _MOVES[state, event]
    except KeyError:
        raise IllegalMove(state, event) from None


def allowed(state: State) -> frozenset[Event]:
    """Return the events that `state` allows."""
    return frozenset(event for (origin, event) in _MOVES if origin is state)
