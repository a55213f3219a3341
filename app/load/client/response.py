"""Answer of the engine over HTTP, and the translation of connection errors."""

from collections.abc import AsyncIterator
from typing import Final

import aiohttp

from app.domain.errors import ENGINE_UNAVAILABLE, Unavailable
from app.load.reconcile.pulse import Pulse

COMPUTED: Final = 200
"""Status of an answer that the engine's core took part in; refusals come from the server alone."""

BROKEN: Final = (aiohttp.ClientError, TimeoutError, OSError)
"""Exceptions of the HTTP client for a connection that could not be made, or broke."""

_NOT_REACHED: Final = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    FileNotFoundError,
    ConnectionRefusedError,
)


class NotReached(Unavailable):
    """ENGINE_UNAVAILABLE before anything was sent: the request has not run, and may be sent to another engine."""


class Response:
    """EngineResponse (engine.py) over aiohttp's response.

    pulse: notified of each byte of an answer to an inference request.
    """

    __slots__ = ("_computed", "_pulse", "_response")

    def __init__(self, response: aiohttp.ClientResponse, pulse: Pulse | None = None) -> None:
        self._response = response
        self._pulse = pulse or Pulse()
        self._computed = response.status == COMPUTED

    @property
    def status(self) -> int:
        """See EngineResponse."""
        return self._response.status

    @property
    def content_type(self) -> str:
        """See EngineResponse."""
        return self._response.content_type

    async def chunks(self) -> AsyncIterator[bytes]:
        """See EngineResponse."""
        try:
            while chunk := await self._next():
                yield chunk
        except BROKEN as error:
            raise unavailable(error) from error

    async def read(self, limit: int) -> bytes:
        """See EngineResponse."""
        parts, size = [], 0
        try:
            while part := await self._next():
                size += len(part)
                if size > limit:
                    raise Unavailable(ENGINE_UNAVAILABLE, f"the engine's answer is over {limit} bytes")
                parts.append(part)
        except BROKEN as error:
            raise unavailable(error) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _next(self) -> bytes:
        """Return the bytes that have arrived, waiting for some; empty at the end. Raises one of BROKEN."""
        pulse = self._pulse
        pulse.wait()
        try:
            chunk = await self._response.content.readany()
        finally:
            pulse.leave()
        if chunk and self._computed:
            pulse.heard()
        return chunk

    def close(self) -> None:
        """See EngineResponse."""
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


def unavailable(error: BaseException) -> Unavailable:
    """Translate one of BROKEN into Unavailable or NotReached."""
    if isinstance(error, _NOT_REACHED):
        return NotReached(ENGINE_UNAVAILABLE, "the engine is not running or not reachable")
    if isinstance(error, TimeoutError):
        return Unavailable(ENGINE_UNAVAILABLE, "the engine did not answer in time")
    return Unavailable(ENGINE_UNAVAILABLE, f"the connection to the engine broke: {type(error).__name__}")
