"""Streamed answer of an engine: relayed event by event, relabelled, never cut short without an error event."""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

from app.domain.errors import ENGINE_UNAVAILABLE, UPSTREAM_FAILED, GatewayError, Unavailable
from app.load.client.engine import EngineResponse
from app.serve.relabel import refusal, relabel
from app.serve.routing_table import Target
from app.serve.sse import DONE, Events, error_event, event_of, strict_json
from app.serve.timing import CLIENT_GONE, GONE, Clock

MAX_STREAM_BYTES: Final = 256 << 20
"""Bytes of one streamed answer; a million tokens at some 250 bytes a chunk."""

_DONE_DATA: Final = b"[DONE]"
_PROMPT_PARTS: Final = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_TEXTS: Final = ("content", "tool_calls", "reasoning", "reasoning_content")


def usage_of(parsed: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the engine's token counts under chat's field names; None if it gave none that can be read."""
    usage = parsed.get("usage")
    if not isinstance(usage, Mapping):
        return None
    if "input_tokens" in usage:  # names of /v1/responses and /v1/messages; the latter counts cached tokens apart
        parts = [usage[name] for name in _PROMPT_PARTS if isinstance(usage.get(name), int)]
        usage = {"prompt_tokens": sum(parts), "completion_tokens": usage.get("output_tokens")}
    return usage


class Stream(AsyncIterator[bytes]):
    """Iterator over the bytes to send: whole events, several at once if they arrived together.

    It ends after `data: [DONE]`, or after an error event if the engine's answer broke off, was invalid or was too long.
    `close` (or dropping it) before that cuts the connection to the engine, which then aborts its work. It is a class
    rather than a generator because a generator that was never started is never closed.
    """

    __slots__ = ("_chunks", "_clock", "_events", "_on_end", "_response", "_size", "_target", "_usage", "_usage_wanted")

    def __init__(
        self,
        response: EngineResponse,
        target: Target,
        clock: Clock,
        *,
        usage_wanted: bool,
        on_end: Callable[[], None],
    ) -> None:
        """usage_wanted: whether the caller gets the event with the token counts. on_end: called once, at the end."""
        self._response = response
        self._target = target
        self._clock = clock
        self._usage_wanted = usage_wanted
        self._on_end: Callable[[], None] | None = on_end
        self._chunks = response.chunks()
        self._events = Events()
        self._size = 0
        self._usage: Mapping[str, Any] | None = None

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> bytes:
        """Return the next bytes to send."""
        try:
            while self._on_end is not None:
                if out := await self._next():
                    return out
        except GatewayError as error:
            self._close(error)
            return self._error(error)
        except BaseException:  # cancelled: the client has disconnected
            self._abandon()
            raise
        raise StopAsyncIteration

    def close(self) -> None:
        """End the stream at any point. Safe to call twice."""
        self._abandon()

    async def aclose(self) -> None:
        """End the stream, for callers that close async iterators."""
        self._abandon()

    def __del__(self) -> None:
        self._abandon()

    async def _next(self) -> bytes:
        """Return the bytes to send for the next chunk from the engine; may be empty. Raises GatewayError."""
        self._clock.wait()
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            raise Unavailable(UPSTREAM_FAILED, "the engine broke off its answer") from None
        except Unavailable as error:
            code = UPSTREAM_FAILED if error.code is ENGINE_UNAVAILABLE else error.code
            raise Unavailable(code, f"the engine broke off its answer: {error.message}") from error
        self._clock.work()
        self._size += len(chunk)
        if self._size > MAX_STREAM_BYTES:
            raise Unavailable(UPSTREAM_FAILED, f"the engine's answer is over {MAX_STREAM_BYTES} bytes")
        return self._relabelled(chunk)

    def _relabelled(self, chunk: bytes) -> bytes:
        """Return the events that `chunk` completes. Events before a faulty one are sent before the error."""
        out: list[bytes] = []
        try:
            for data in self._events.feed(chunk):
                if data == _DONE_DATA:
                    self._close(None)
                    return b"".join([*out, DONE])
                parsed = self._read(data)
                out.append(self._event(data, parsed))
                self._clock.text(*self._texts(parsed))
                if self._is_last(parsed):
                    self._close(None)
                    break
        except ValueError as error:
            failure = Unavailable(UPSTREAM_FAILED, f"the engine's answer cannot be read: {error}")
            return self._failed(out, failure)
        except GatewayError as error:
            return self._failed(out, error)
        return b"".join(out)

    def _read(self, data: bytes) -> dict[str, Any]:
        parsed = strict_json(data)
        if "error" in parsed:
            raise _mid_stream(parsed["error"], self._target)
        if (usage := usage_of(parsed)) is not None:
            self._usage = usage
        return parsed

    def _event(self, data: bytes, parsed: Mapping[str, Any]) -> bytes:
        """Return the event for the caller; empty for token counts that only the gateway requested."""
        event = event_of(relabel(data, parsed, self._target))
        return event if self._usage_wanted or parsed.get("choices") or usage_of(parsed) is None else b""

    def _failed(self, out: list[bytes], error: GatewayError) -> bytes:
        self._close(error)
        return b"".join([*out, self._error(error)])

    def _error(self, error: GatewayError) -> bytes:
        """Return the event for `error`, which ends this stream."""
        return error_event(error)

    def _is_last(self, parsed: Mapping[str, Any]) -> bool:
        """Return whether no event follows this one."""
        return False  # the stream ends with [DONE]

    def _texts(self, parsed: Mapping[str, Any]) -> tuple[int, int]:
        """Return the pieces of text in one event: of the first choice, and of all. Roles and finish reasons do not
        count.
        """
        return _texts(parsed)

    def _abandon(self) -> None:
        if self._finish():
            self._clock.over(CLIENT_GONE, self._usage, GONE)

    def _close(self, error: GatewayError | None) -> None:
        if self._finish():
            status, code = (200, None) if error is None else (error.code.status, error.code.name)
            self._clock.over(status, self._usage, code)

    def _finish(self) -> bool:
        """Release the engine; return True the first time."""
        on_end, self._on_end = getattr(self, "_on_end", None), None
        if on_end is None:
            return False
        self._response.close()
        on_end()
        return True


def _texts(parsed: Mapping[str, Any]) -> tuple[int, int]:
    first = pieces = 0
    choices = parsed.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and _has_text(choice):
            pieces += 1
            first += choice.get("index", 0) == 0
    return first, pieces


def _has_text(choice: Mapping[str, Any]) -> bool:
    delta = choice.get("delta")
    if isinstance(delta, dict):
        return any(delta.get(key) for key in _TEXTS)
    return bool(choice.get("text"))


def _mid_stream(error: Any, target: Target) -> GatewayError:
    """Return the gateway error for vLLM's error event."""
    status = error.get("code") if isinstance(error, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    text = str(message)[:300].replace(target.engine_name, target.asked)
    return refusal(status if isinstance(status, int) else 500, text)
