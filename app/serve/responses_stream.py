"""Streamed answers of /v1/responses and /v1/messages: named events, of which some name the model, without [DONE]."""

import re
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, ClassVar, Final

from app.domain.errors import GatewayError, envelope
from app.load.client.engine import EngineResponse
from app.serve.relabel import refusal, relabel_within
from app.serve.routing_table import Target
from app.serve.sse import dump, event_of
from app.serve.stream import Stream, usage_of
from app.serve.timing import Clock

_NAME = re.compile(r"[a-z][a-z0-9_.]{0,63}")
_BROKEN: Final = 500
_TEXT_OF_DELTAS: Final = frozenset({"text", "thinking", "partial_json"})
"""Members of a delta of /v1/messages that hold generated text."""


class ResponseStream(Stream):
    """Stream of /v1/responses. Passes nothing on before the engine has named the model that answers."""

    __slots__ = ("_labelled", "_sent")

    LABELLED: ClassVar[str] = "response"
    """Member of an event that names the model."""

    LAST: ClassVar[AbstractSet[str]] = frozenset({"response.completed", "response.incomplete", "response.failed"})
    """Events that end a stream."""

    def __init__(
        self,
        response: EngineResponse,
        target: Target,
        clock: Clock,
        *,
        usage_wanted: bool,
        on_end: Callable[[], None],
    ) -> None:
        self._labelled = False
        self._sent = 0
        super().__init__(response, target, clock, usage_wanted=usage_wanted, on_end=on_end)

    def _read(self, data: bytes) -> dict[str, Any]:
        parsed = super()._read(data)
        if parsed.get("type") == "error":
            message = str(parsed.get("message"))[:300].replace(self._target.engine_name, self._target.asked)
            raise refusal(_BROKEN, message)
        labelled = parsed.get(self.LABELLED)  # a message tells its prompt's tokens at once, a response all at its end
        if isinstance(labelled, Mapping) and (usage := usage_of(labelled)) is not None:
            self._usage = usage
        return parsed

    def _event(self, data: bytes, parsed: Mapping[str, Any]) -> bytes:
        name = parsed.get("type")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError("an event without a name")
        if self.LABELLED in parsed:
            data = relabel_within(data, parsed, self.LABELLED, self._target)
            self._labelled = True
        elif not self._labelled:
            raise ValueError("an answer that does not say whose it is")
        self._sent += 1
        return b"event: " + name.encode() + b"\n" + event_of(data)

    def _error(self, error: GatewayError) -> bytes:
        """Return OpenAI's error event with the error envelope inside, so that SDKs raise as for an error response."""
        inner = envelope(error)["error"]
        flat = {key: inner[key] for key in ("code", "message", "param")}
        event = {"type": "error", "sequence_number": self._sent, **flat, "error": inner}
        return b"event: error\n" + event_of(dump(event))

    def _is_last(self, parsed: Mapping[str, Any]) -> bool:
        return parsed.get("type") in self.LAST

    def _texts(self, parsed: Mapping[str, Any]) -> tuple[int, int]:
        piece = int(str(parsed.get("type")).endswith(".delta") and bool(parsed.get("delta")))
        return piece, piece


class MessageStream(ResponseStream):
    """Stream of /v1/messages, in Anthropic's events."""

    __slots__ = ()

    LABELLED = "message"
    LAST = frozenset({"message_stop"})

    def _error(self, error: GatewayError) -> bytes:
        """Return Anthropic's error event with the error envelope inside."""
        return b"event: error\n" + event_of(dump({"type": "error", **envelope(error)}))

    def _texts(self, parsed: Mapping[str, Any]) -> tuple[int, int]:
        delta = parsed.get("delta")
        piece = int(isinstance(delta, Mapping) and not _TEXT_OF_DELTAS.isdisjoint(delta))
        return piece, piece
