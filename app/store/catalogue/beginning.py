"""Beginnings of a version: under a new number for new bytes, or again under its own for bytes that failed before."""

from dataclasses import dataclass
from typing import Any, Final

from app.domain.errors import VERSION_NOT_READY, Refused
from app.domain.version_state import Event, advance
from app.store.catalogue.tables import VersionRow


@dataclass(frozen=True, slots=True)
class New:
    """Version that this call began, under a number of its own."""

    row: VersionRow


@dataclass(frozen=True, slots=True)
class Retry:
    """Version that had failed or was rejected, begun again under its number by this call."""

    row: VersionRow


@dataclass(frozen=True, slots=True)
class Same:
    """Version that there is of these bytes already; this call began nothing."""

    row: VersionRow


Begun = New | Retry | Same


@dataclass(frozen=True, slots=True)
class Ended:
    """Version that ended and is to be tried again. intact: the artefact it was stored with is there."""

    number: int
    intact: bool


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


def again(row: VersionRow, *, intact: bool) -> dict[str, Any]:
    """The changed columns of a version that failed and is tried once more. Raises IllegalMove for any other.

    intact: whether the artefact it was stored with is still there. Then it was only the engine that refused it: its verdict
    stands, for the same bytes have the same, and it goes through the stages at one stroke.
    """
    state = advance(row.state, Event.RETRY)
    if not intact:
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
