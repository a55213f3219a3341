"""Results of beginning a version: a new number for new bytes, or a retry under the old number for bytes that failed."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Final

from app.domain.errors import VERSION_NOT_READY, GatewayError, Refused
from app.domain.version_state import Event, advance
from app.store.catalogue.tables import VersionRow


@dataclass(frozen=True, slots=True)
class New:
    """Version begun by this call, under a new number."""

    row: VersionRow


@dataclass(frozen=True, slots=True)
class Retry:
    """Version that had failed or was rejected, begun again under its number by this call."""

    row: VersionRow


@dataclass(frozen=True, slots=True)
class Same:
    """Existing version of these bytes; this call began nothing."""

    row: VersionRow


Begun = New | Retry | Same


@dataclass(frozen=True, slots=True)
class Ended:
    """Version that ended and is to be tried again. intact: the artefact it was stored with still exists."""

    number: int
    intact: bool


ERROR_COLUMNS: Final = ("error_code", "error_message", "faults")
"""Columns that hold the reason a version failed."""

RESULT_COLUMNS: Final = (
    "outcome",
    "verdict_id",
    "modules_total",
    "modules_pruned",
    "modules_projected",
    "artefact",
    "engine_name",
    "report",
    "evaluated",
    "rung",
)
"""Columns that hold the results of an earlier try."""


def again(row: VersionRow, *, intact: bool) -> dict[str, Any]:
    """Return the changed columns of a version that failed and is tried again. Raises IllegalMove for any other.

    intact: whether the artefact it was stored with still exists. Then only the engine had refused it: its verdict
    remains valid, because the same bytes have the same verdict, and it passes through the stages in one step.
    """
    state = advance(row.state, Event.RETRY)
    if not intact:
        return {"state": state} | dict.fromkeys((*ERROR_COLUMNS, *RESULT_COLUMNS))
    for event in (Event.VALIDATE, Event.SCREEN, Event.STORE):
        state = advance(state, event)
    return {"state": state} | dict.fromkeys(ERROR_COLUMNS)


def error_columns(error: GatewayError) -> dict[str, Any]:
    """Return the columns that hold the reason a version ended."""
    faults = json.dumps([asdict(fault) for fault in error.details]) if error.details else None
    return {"error_code": error.code.name, "error_message": error.recorded, "faults": faults}


def nothing_since(name: object, number: int, after: int | None) -> None:
    """Raise Refused VERSION_NOT_READY if `after` is given and `number`, the next one, does not follow it."""
    if after is not None and number != after + 1:
        raise Refused(VERSION_NOT_READY, f"version {number - 1} of {name} was uploaded meanwhile")


def not_ready(row: VersionRow) -> Refused:
    """Return the refusal to publish this version, or to roll back to it, in its present state."""
    return Refused(VERSION_NOT_READY, f"{row.name} version {row.number} is {row.state}", param="version")
