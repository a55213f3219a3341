"""How a version begins: as a new number for new bytes, or again under its number for bytes that failed before."""

from typing import Any, Final

from app.domain.errors import VERSION_NOT_READY, Refused
from app.domain.version_state import Event, advance
from app.store.catalogue.tables import VersionRow

SAID: Final = ("error_code", "error_message")
"""Columns that hold why a version failed."""

FOUND: Final = (
    "outcome",
    "verdict_id",
    "modules_total",
    "modules_pruned",
    "modules_projected",
    "artefact",
    "engine_name",
    "report",
)
"""Columns that hold what an earlier try came to."""


def again(row: VersionRow, *, whole: bool) -> dict[str, Any]:
    """The changed columns of a version that failed and is tried once more. Raises IllegalMove for any other.

    whole: whether the artefact it was stored with is still there. Then it was only the engine that refused it: its verdict
    stands, for the same bytes have the same, and it goes through the stages at one stroke.
    """
    state = advance(row.state, Event.RETRY)
    if not whole:
        return {"state": state} | dict.fromkeys((*SAID, *FOUND))
    for event in (Event.VALIDATE, Event.SCREEN, Event.STORE):
        state = advance(state, event)
    return {"state": state} | dict.fromkeys(SAID)


def nothing_since(name: object, number: int, after: int | None) -> None:
    """Raise Refused VERSION_NOT_READY unless `number`, the next one, follows `after`, where that is asked for."""
    if after is not None and number != after + 1:
        raise Refused(VERSION_NOT_READY, f"version {number - 1} of {name} was uploaded meanwhile")


def not_ready(row: VersionRow) -> Refused:
    """What is said where a version was to be published, or published once."""
    return Refused(VERSION_NOT_READY, f"{row.name} version {row.number} is {row.state}", param="version")
