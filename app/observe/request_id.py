"""Which request this is: the caller's own id where it is well formed, else one of ours; in every log line it causes."""

import re
import uuid
from contextvars import ContextVar
from typing import Final

REQUEST_ID: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)
"""The request being answered in this task and in what it starts; None outside any."""

_WELL_FORMED: Final = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
"""What a caller's id may be: it goes into logs, a header and to the engine. 128 characters: two UUIDs with a prefix."""


def request_id(given: bytes | None) -> str:
    """`given` (a header's value) where it is well formed, else a new id of 32 hexadecimal digits."""
    if given is not None and _WELL_FORMED.fullmatch(given):
        return given.decode("ascii")
    return uuid.uuid4().hex
