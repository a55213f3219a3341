"""Server-sent events, the subset that OpenAI's streams use: splitting a stream, and decoding and encoding an event."""

import json
from collections.abc import Iterator
from typing import Any, Final, NoReturn

from app.domain.errors import GatewayError, envelope

DONE: Final = b"data: [DONE]\n\n"

MAX_EVENT_BYTES: Final = 4 << 20
"""Bytes of one event: a chunk with 20 log-probabilities for each of some hundred tokens is far below that."""

LARGE_BYTES: Final = 64 << 10
"""Bytes of JSON above which the decoder returns to Python code for each object and fraction, to let other threads run."""

_DATA: Final = b"data:"
_END: Final = b"\n\n"


class Events:
    """Splitter of a stream of bytes into the data of its events. Holds at most one unfinished event."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the data of each event that `chunk` completes.

        Raises ValueError for an event that never ends or has no data.
        """
        *whole, self._rest = (self._rest + chunk if self._rest else chunk).split(_END)
        if len(self._rest) > MAX_EVENT_BYTES:
            raise ValueError(f"an event of over {MAX_EVENT_BYTES} bytes")
        for event in whole:
            if (data := _data(event)) is not None:
                yield data

    @property
    def unfinished(self) -> bool:
        """True if the stream stopped inside an event."""
        return bool(self._rest.strip())


def _data(event: bytes) -> bytes | None:
    """Return an event's data; None for a comment, which only keeps the connection alive."""
    if event.startswith(_DATA) and b"\n" not in event:
        return event[len(_DATA) :].strip()
    lines = [line for line in event.splitlines() if line and not line.startswith(b":")]
    if not lines:
        return None
    data = [line[len(_DATA) :].strip() for line in lines if line.startswith(_DATA)]
    if not data:
        raise ValueError("an event without data")
    return b"\n".join(data)


def strict_json(data: bytes) -> dict[str, Any]:
    """Decode a JSON object. Raises ValueError for anything else, and for NaN and Infinity, words that JSON does not have.

    A number beyond float64's range, such as 1e999, is JSON; it is decoded as infinite, and `dump` would refuse it.
    """
    try:
        found = (_DECODE if len(data) <= LARGE_BYTES else _DECODE_LARGE)(data.decode())
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - one exception type for every fault
    return found


def event_of(data: bytes) -> bytes:
    """Return one event with this data."""
    return b"data: " + data + _END


def dump(value: object) -> bytes:
    """Encode as compact JSON. Raises ValueError for numbers that JSON does not have."""
    return _ENCODE(value).encode()


def error_event(error: GatewayError) -> bytes:
    """Return the event for an error within a stream, in OpenAI's envelope: SDKs raise it like an error response."""
    return event_of(dump(envelope(error)))


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _fraction(digits: str) -> float:
    return float(digits)


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(pairs)


_DECODE = json.JSONDecoder(parse_constant=_no_constant).decode
_DECODE_LARGE = json.JSONDecoder(object_pairs_hook=_members, parse_float=_fraction, parse_constant=_no_constant).decode
_ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
