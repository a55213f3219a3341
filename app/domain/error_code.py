"""Error codes: rows of the table in errors.py, and the stages that raise them."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Stage(StrEnum):
    """Stage that raised an error; `door` comes before all others. Label `stage=` in metrics and logs."""

    DOOR = "door"
    UPLOAD = "upload"
    VALIDATE = "validate"
    SCREEN = "screen"
    PRUNE = "prune"
    STORE = "store"
    LOAD = "load"
    EVALUATE = "evaluate"
    SERVE = "serve"


@dataclass(frozen=True, slots=True)
class Code:
    """One row of the table of error codes."""

    name: str
    status: int
    stage: Stage
    hint: str
    retryable: bool = False


TABLE: Final[dict[str, Code]] = {}
"""Rows declared so far, by name."""


def declared(name: str, status: int, stage: Stage, hint: str, *, retryable: bool = False) -> Code:
    """Declare a row. Raises ValueError if its name is declared already."""
    if name in TABLE:
        raise ValueError(f"error code {name!r} declared twice")
    TABLE[name] = Code(name, status, stage, hint, retryable)
    return TABLE[name]
