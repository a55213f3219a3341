"""Fuzz target: the bytes of one connection, before any request exists."""

from typing import Any, Final
from unittest.mock import patch

from app.api import http_protocol as wire
from tests.support.connection import Connection, Request

BOUNDS: Final[dict[str, Any]] = {"MAX_HEAD_BYTES": 256, "MAX_HEADERS": 6, "MAX_PIPELINED": 3}
"""Of a connection; small, so that short inputs reach every one of them."""


def _connection(pieces: list[bytes], *, answers: bool) -> tuple[list[Request], Connection]:
    """What one connection makes of bytes that come in these pieces."""
    connection = Connection(answers=answers)
    try:
        connection.feed(pieces)
        return connection.requests, connection
    finally:
        connection.close()


def framing(data: bytes) -> None:
    """A connection's bytes. The first says whether the application answers at once, the second how they are cut."""
    if len(data) < 2:
        return
    answers, size, data = bool(data[0] & 1), 1 + data[1] % 61, data[2:]
    with patch.multiple(wire, **BOUNDS):
        whole, one = _connection([data], answers=answers)
        cut, other = _connection([data[start : start + size] for start in range(0, len(data), size)], answers=answers)
    for requests, connection in ((whole, one), (cut, other)):
        assert all(len(request.headers) <= BOUNDS["MAX_HEADERS"] for request in requests)
        kept = sum(len(name) + len(value) for request in requests for name, value in request.headers)
        assert kept <= len(requests) * BOUNDS["MAX_HEAD_BYTES"]
        assert sum(len(request.body) for request in requests) <= len(data)
        assert answers or len(requests) <= BOUNDS["MAX_PIPELINED"] + 2
        assert connection.answered <= len(requests)
        assert all(request.complete for request in requests[:-1])
        assert not answers or not requests or requests[-1].complete or connection.transport.is_closing()
    for first, second in zip(whole, cut, strict=False):  # however cut, the same requests
        assert (first.method, first.target, first.headers) == (second.method, second.target, second.headers)
        assert not (first.complete and second.complete) or first.body == second.body
