"""One streamed answer on its way through: event by event, relabelled, never silently cut short."""

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
_TEXTS: Final = ("content", "tool_calls", "reasoning", "reasoning_content")


def usage_of(said: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The engine's token counts, where it said any that can be read, in chat's words."""
    usage = said.get("usage")
    if not isinstance(usage, Mapping):
        return None
    if "input_tokens" in usage:  # as /v1/responses says it
        usage = {"prompt_tokens": usage["input_tokens"], "completion_tokens": usage.get("output_tokens")}
    return usage


class Stream(AsyncIterator[bytes]):
    """Iterates over bytes to send: whole events, several at once where they arrived together.

    Ends after `data: [DONE]`, or after an error event when the engine broke off, lied or ran on. `close` (or dropping it)
    before that cuts the connection to the engine, which then aborts its work. A class rather than a generator because a
    generator that was never started is never closed.
    """

    __slots__ = ("_chunks", "_clock", "_events", "_landed", "_response", "_size", "_target", "_usage", "_usage_wanted")

    def __init__(
        self,
        response: EngineResponse,
        target: Target,
        clock: Clock,
        *,
        usage_wanted: bool,
        landed: Callable[[], None],
    ) -> None:
        """usage_wanted: whether the caller gets the event with the token counts. landed: called once, when it is over."""
        self._response = response
        self._target = target
        self._clock = clock
        self._usage_wanted = usage_wanted
        self._landed: Callable[[], None] | None = landed
        self._chunks = response.chunks()
        self._events = Events()
        self._size = 0
        self._usage: Mapping[str, Any] | None = None

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> bytes:
        """The next bytes to send."""
        try:
            while self._landed is not None:
                if out := await self._next():
                    return out
        except GatewayError as error:
            self._close(error)
            return self._error(error)
        except BaseException:  # cancelled: the client has gone
            self._leave()
            raise
        raise StopAsyncIteration

    def close(self) -> None:
        """Stop, wherever it stands. Safe to call twice."""
        self._leave()

    async def aclose(self) -> None:
        """The same, as those that iterate call it."""
        self._leave()

    def __del__(self) -> None:
        self._leave()

    async def _next(self) -> bytes:
        """What the next piece from the engine comes to; may be empty. Raises GatewayError."""
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
        """The events that `chunk` completes. What came before something wrong is sent before the error."""
        out: list[bytes] = []
        try:
            for data in self._events.feed(chunk):
                if data == _DONE_DATA:
                    self._close(None)
                    return b"".join([*out, DONE])
                said = self._read(data)
                out.append(self._event(data, said))
                self._clock.text(*self._texts(said))
                if self._is_last(said):
                    self._close(None)
                    break
        except ValueError as error:
            failure = Unavailable(UPSTREAM_FAILED, f"the engine's answer cannot be read: {error}")
            return self._failed(out, failure)
        except GatewayError as error:
            return self._failed(out, error)
        return b"".join(out)

    def _read(self, data: bytes) -> dict[str, Any]:
        said = strict_json(data)
        if "error" in said:
            raise _mid_stream(said["error"], self._target)
        if (usage := usage_of(said)) is not None:
            self._usage = usage
        return said

    def _event(self, data: bytes, said: Mapping[str, Any]) -> bytes:
        """For the caller; nothing for token counts that only we asked for."""
        event = event_of(relabel(data, said, self._target))
        return event if self._usage_wanted or said.get("choices") or usage_of(said) is None else b""

    def _failed(self, out: list[bytes], error: GatewayError) -> bytes:
        self._close(error)
        return b"".join([*out, self._error(error)])

    def _error(self, error: GatewayError) -> bytes:
        """`error` as the event that ends this stream."""
        return error_event(error)

    def _is_last(self, said: Mapping[str, Any]) -> bool:
        """Whether nothing follows this event."""
        return False  # [DONE] does

    def _texts(self, said: Mapping[str, Any]) -> tuple[int, int]:
        """Pieces of text in one event: of the first choice, and of all. A role or a reason to finish is none."""
        return _texts(said)

    def _leave(self) -> None:
        if self._land():
            self._clock.over(CLIENT_GONE, self._usage, GONE)

    def _close(self, error: GatewayError | None) -> None:
        if self._land():
            status, code = (200, None) if error is None else (error.code.status, error.code.name)
            self._clock.over(status, self._usage, code)

    def _land(self) -> bool:
        """Let go of the engine; True the first time."""
        landed, self._landed = getattr(self, "_landed", None), None
        if landed is None:
            return False
        self._response.close()
        landed()
        return True


def _texts(said: Mapping[str, Any]) -> tuple[int, int]:
    first = pieces = 0
    choices = said.get("choices")
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
    """vLLM's error event: its words as our error."""
    status = error.get("code") if isinstance(error, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    said = str(message)[:300].replace(target.engine_name, target.asked)
    return refusal(status if isinstance(status, int) else 500, said)
