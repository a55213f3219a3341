"""Faults of an upload: several may stand behind one refusal."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.domain.error_code import TABLE
from app.domain.printable import printable


@dataclass(frozen=True, slots=True)
class Fault:
    """One of several faults behind a refusal. code: its name. where: field, tensor or module. what_to_do: the remedy."""

    code: str
    where: str
    message: str
    what_to_do: str

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> "Fault":
        """Reverse `asdict`, for a fault from another process. Raises LookupError, TypeError or AttributeError."""
        code = TABLE[fields["code"]].name
        return cls(code, *(printable(str(fields[key])) for key in ("where", "message", "what_to_do")))
