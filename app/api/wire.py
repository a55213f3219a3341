"""The connection itself, where no request exists yet: what cannot be parsed, never ends, or comes too slowly.

uvicorn's own protocol answers an unparsable request in plain text, keeps any amount of headers, chunk extensions and
trailers, and waits for a request's head for ever. Here all of that ends, in our envelope and counted.
"""

import asyncio
import json
from http import HTTPStatus
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.errors import note
from app.errors import BAD_REQUEST, HEAD_TIMEOUT, HEAD_TOO_LARGE, READ_TIMEOUT, Refused, envelope
from app.observe.metrics import Metrics

MAX_HEAD_BYTES: Final = 64 << 10
"""Bytes of a request that belong to no body: line, headers, chunk sizes, trailers. Clients send about 500."""

CHUNK_SHARE: Final = 16
"""Bytes of chunk framing that each byte of a body may cost besides: a body in chunks of one byte has 5."""

HEAD_S: Final = 15.0
"""Seconds in which a request's line and headers must arrive, from the connection's first moment."""

READ_S: Final = 60.0
"""Seconds in which a client must take 48 KiB of an answer once it has let 64 KiB lie: 0.8 kB a second. Until it does, its
stream holds a version that may be waiting to be unloaded."""


class Wire(HttpToolsProtocol):
    """One connection. metrics: where its refusals are counted; see `wire`."""

    metrics: Metrics
    _overhead = 0
    _in_head = True
    _alarm: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The head's time begins."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """No alarm outlives its connection."""
        self._unwatch()
        self._flows()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """What was sent lies unread; nothing more is written, nor read from the engine, until some of it is taken."""
        super().pause_writing()
        if self._stall is None:
            self._stall = self.loop.call_later(READ_S, self._stalled)

    def resume_writing(self) -> None:
        """It was."""
        self._flows()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Parse, then see what these bytes were."""
        super().data_received(data)
        self._overhead += len(data)
        if self.transport.is_closing():
            self._unwatch()
        elif self._overhead > MAX_HEAD_BYTES:
            self._refuse(Refused(HEAD_TOO_LARGE, f"more than {MAX_HEAD_BYTES} bytes besides the body"))
        elif self._in_head and self._alarm is None:  # the next request of a kept connection has begun
            self._watch()

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self._overhead, self._in_head = 0, True

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head = False
        self._unwatch()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A body pays for its own framing."""
        self._overhead -= CHUNK_SHARE * len(body)
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """In our envelope, and counted."""
        self._refuse(Refused(BAD_REQUEST, "this is no HTTP/1.1 request"))

    def _watch(self) -> None:
        self._alarm = self.loop.call_later(HEAD_S, self._too_slow)

    def _unwatch(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _flows(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _stalled(self) -> None:
        """Nothing can be told to who does not read."""
        self._flows()
        note(
            self.metrics, Refused(READ_TIMEOUT, f"the client took too little of its answer in {READ_S:g} s"), "(answer)"
        )
        self.transport.abort()

    def _too_slow(self) -> None:
        self._refuse(Refused(HEAD_TIMEOUT, f"the request's head did not arrive within {HEAD_S:g} s"))

    def _refuse(self, error: Refused) -> None:
        """Answer, unless an answer is under way already, and end the connection."""
        self._unwatch()
        note(self.metrics, error, "(no request)")
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = json.dumps(envelope(error)).encode()
            status = HTTPStatus(error.code.status)
            head = f"HTTP/1.1 {status} {status.phrase}\r\ncontent-type: application/json\r\nconnection: close\r\n"
            self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()


def wire(metrics: Metrics) -> type[Wire]:
    """The protocol for `uvicorn.run(http=…)`; its refusals are counted in `metrics`."""
    return type("CountedWire", (Wire,), {"metrics": metrics})
