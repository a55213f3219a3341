"""One streamed answer on its way through: event by event, relabelled, never silently cut short."""

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

from app.errors import ENGINE_UNAVAILABLE, UPSTREAM_FAILED, GatewayError, Unavailable
from app.load.engine import EngineResponse
from app.serve.label import refusal, relabel
from app.serve.routes import Target
from app.serve.sse import DONE, Events, error_event, event_of, strict_json

MAX_STREAM_BYTES: Final = 256 << 20
"""Bytes of one streamed answer; a million tokens at some 250 bytes a chunk."""

CLIENT_GONE: Final = 499
"""Status under which a stream is counted that its client left: nginx's word for it."""

_DONE_DATA: Final = b"[DONE]"


def usage_of(said: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The engine's token counts, where it said any that can be read."""
    usage = said.get("usage")
    return usage if isinstance(usage, Mapping) else None


class Stream(AsyncIterator[bytes]):
    """Iterates over bytes to send: whole events, several at once where they arrived together.

    Ends after `data: [DONE]`, or after an error event when the engine broke off, lied or ran on. `aclose` (or dropping it)
    before that cuts the connection to the engine, which then aborts its work. A class rather than a generator because a
    generator that was never started is never closed.
    """

    __slots__ = ("_chunks", "_events", "_first", "_over", "_ready", "_response", "_size", "_target", "_usage")

    def __init__(
        self,
        response: EngineResponse,
        target: Target,
        *,
        over: Callable[[int, Mapping[str, Any] | None], None],
        first: Callable[[], None],
    ) -> None:
        self._response = response
        self._target = target
        self._over: Callable[[int, Mapping[str, Any] | None], None] | None = over
        self._first: Callable[[], None] | None = first
        self._chunks = response.chunks()
        self._events = Events()
        self._ready: deque[bytes] = deque()
        self._size = 0
        self._usage: Mapping[str, Any] | None = None

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> bytes:
        """The next bytes to send."""
        try:
            while self._over is not None:
                if out := await self._next():
                    return out
        except GatewayError as error:
            self._close(error.code.status)
            return error_event(error)
        except BaseException:  # cancelled: the client has gone
            self._close(CLIENT_GONE)
            raise
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop, wherever it stands. Safe to call twice."""
        self._close(CLIENT_GONE)

    def __del__(self) -> None:
        self._close(CLIENT_GONE)

    async def _next(self) -> bytes:
        """What the next piece from the engine comes to; may be empty. Raises GatewayError."""
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            raise Unavailable(UPSTREAM_FAILED, "the engine broke off its answer") from None
        except Unavailable as error:
            code = UPSTREAM_FAILED if error.code is ENGINE_UNAVAILABLE else error.code
            raise Unavailable(code, f"the engine broke off its answer: {error.message}") from error
        if self._first is not None:
            self._first()
            self._first = None
        self._size += len(chunk)
        if self._size > MAX_STREAM_BYTES:
            raise Unavailable(UPSTREAM_FAILED, f"the engine's answer is over {MAX_STREAM_BYTES} bytes")
        return self._relabelled(chunk)

    def _relabelled(self, chunk: bytes) -> bytes:
        """The events that `chunk` completes. What came before something wrong is sent before the error."""
        out: list[bytes] = []
        try:
            for data in self._events.feed(chunk):
                if data == _DONE_DATA:
                    self._close(200)
                    return b"".join([*out, DONE])
                out.append(self._event(data))
        except ValueError as error:
            failure = Unavailable(UPSTREAM_FAILED, f"the engine's answer cannot be read: {error}")
            return self._failed(out, failure)
        except GatewayError as error:
            return self._failed(out, error)
        return b"".join(out)

    def _event(self, data: bytes) -> bytes:
        said = strict_json(data)
        if "error" in said:
            raise _mid_stream(said["error"], self._target)
        if (usage := usage_of(said)) is not None:
            self._usage = usage
        return event_of(relabel(data, said, self._target))

    def _failed(self, out: list[bytes], error: GatewayError) -> bytes:
        self._close(error.code.status)
        return b"".join([*out, error_event(error)])

    def _close(self, status: int) -> None:
        over, self._over = getattr(self, "_over", None), None
        if over is not None:
            self._response.close()
            over(status, self._usage)


def _mid_stream(error: Any, target: Target) -> GatewayError:
    """vLLM's error event: its words as our error."""
    status = error.get("code") if isinstance(error, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    said = str(message)[:300].replace(target.engine_name, target.asked)
    return refusal(status if isinstance(status, int) else 500, said)
