"""Request id (the caller's own if it is well formed, else a new one) and key name: in every line that a request logs."""

import re
import uuid
from contextvars import ContextVar
from typing import Final

REQUEST_ID: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)
"""Id of the request being answered in this task and in the tasks it starts; None outside a request."""

KEY_NAME: Final[ContextVar[str | None]] = ContextVar("key_name", default=None)
"""Name of the key that the request being answered came with; None outside a request, and before it was checked."""

_WELL_FORMED: Final = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
"""Accepted form of a caller's id: it goes into logs, a header and to the engine. 128 characters: two UUIDs, a prefix."""


def request_id(given: bytes | None) -> str:
    """Return `given` (a header's value) if it is well formed, else a new id of 32 hexadecimal digits."""
    if given is not None and _WELL_FORMED.fullmatch(given):
        return given.decode("ascii")
    return uuid.uuid4().hex
