"""One connection of the HTTP server, where no request exists yet: bounds on all that belongs to no body.

uvicorn's own protocol answers an unparsable request in plain text, keeps any amount of headers, chunk extensions and
trailers, queues any number of requests, drains bodies that nobody reads, and waits for a request's head for ever. Here all
of that ends, in our envelope and counted.
"""

import asyncio
import contextvars
import re
from http import HTTPStatus
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.errors import note, respond
from app.domain.errors import BAD_HOST, BAD_REQUEST, HEAD_TIMEOUT, HEAD_TOO_LARGE, READ_TIMEOUT, Refused
from app.domain.shares import Holding, Resource, Shares, address_holder
from app.observe.metrics import Metrics
from app.observe.request_id import REQUEST_ID, request_id

MAX_HEAD_BYTES: Final = 64 << 10
"""Bytes of a request's line and headers, and again of its framing that no body pays for: chunk sizes and extensions,
trailers. Clients send about 500. Also how much is parsed before this is looked at again."""

HEAD_PIECE_BYTES: Final = 4 << 10
"""Bytes parsed at a time while a head is expected. The parser says where a message begins only by a call in the midst of a
piece, so up to this many bytes of the message before may be counted as the new one's."""

MAX_HEADERS: Final = 128
"""Headers of a request. Clients send about 10, proxies add as many."""

MAX_PIPELINED: Final = 16
"""Requests that may wait behind the one being answered: a read of 256 KiB could bring ten thousand, at 3 kB each."""

CHUNK_SHARE: Final = 16
"""Bytes of chunk framing that each byte of a body may cost besides: a body in chunks of one byte has 5. What a body does
not use of this is not saved up: nothing that follows may spend it."""

HEAD_S: Final = 15.0
"""Seconds in which a request's line and headers must arrive, from the connection's first moment."""

READ_S: Final = 60.0
"""Seconds in which a client must take 48 KiB of an answer once it has let 64 KiB lie: 0.8 kB a second. Until it does, its
stream holds a version that may be waiting to be unloaded."""

_AUTHORITY = re.compile(rb"https?://([^/?#]*)", re.IGNORECASE)


class Wire(HttpToolsProtocol):
    """One connection. metrics: where its refusals are counted; shares: what it holds of connections; see `wire`."""

    metrics: Metrics
    shares: Shares
    _piece = 0  # bytes being parsed now
    _overhead = 0  # bytes since the message began that were neither body nor paid for by one
    _head = 0
    _in_head = True
    _keeps_alive = True
    _objection: Refused | None = None
    _alarm: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None
    _place: Holding | None = None
    _unread: Holding | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The head's time begins."""
        super().connection_made(transport)
        try:
            self._place = self.shares.take(Resource.CONNECTIONS, self._address())
        except Refused as error:
            self._refuse(error)
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """No alarm outlives its connection."""
        self._unwatch()
        self._flows()
        if self._place is not None:
            self._place.close()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """What was sent lies unread; nothing more is written, nor read from the engine, until some of it is taken."""
        super().pause_writing()
        if self._stall is None:
            self._stall = self.loop.call_later(READ_S, self._stalled)
        if self._unread is None:
            try:
                self._unread = self.shares.take(Resource.UNREAD, self._holder(), self.transport.get_write_buffer_size())
            except Refused as error:
                self._cut(error)

    def resume_writing(self) -> None:
        """It was."""
        self._flows()
        super().resume_writing()

    def shutdown(self) -> None:
        """The server ends: no request follows the one being answered."""
        self._keeps_alive = False
        super().shutdown()

    def data_received(self, data: bytes) -> None:
        """Parse a bounded piece at a time, and see what these bytes were."""
        start = 0
        while start < len(data):
            piece = data[start : start + (HEAD_PIECE_BYTES if self._in_head else MAX_HEAD_BYTES)]
            start += len(piece)
            self._piece = len(piece)
            self._overhead += len(piece)
            super().data_received(piece)
            if self.transport.is_closing():
                self._unwatch()
                return
            if self._overhead > MAX_HEAD_BYTES + HEAD_PIECE_BYTES:
                self._refuse(Refused(HEAD_TOO_LARGE, f"more than {MAX_HEAD_BYTES} bytes besides the body"))
                return
        if self._in_head and self._alarm is None:  # the next request of a kept connection has begun
            self._watch()

    def on_message_begin(self) -> None:
        """A request's first byte."""
        if len(self.pipeline) >= MAX_PIPELINED:
            self._object(Refused(BAD_REQUEST, f"more than {MAX_PIPELINED} requests wait for answers"))
        super().on_message_begin()
        self._overhead, self._head, self._in_head = min(self._piece, HEAD_PIECE_BYTES), 0, True

    def on_url(self, url: bytes) -> None:
        """Part of the request's target."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; a trailer, which nothing here has a use for, is dropped: the headers are in use by then."""
        if not self._in_head:
            return
        self._count(len(name) + len(value) + len(b": \r\n"))
        if len(self.headers) >= MAX_HEADERS:
            self._object(Refused(HEAD_TOO_LARGE, f"more than {MAX_HEADERS} headers"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole. An answer given before the body has ended closes the connection: nobody drains the rest."""
        self._in_head = False
        self._unwatch()
        self._check_target()
        super().on_headers_complete()
        self._keeps_alive = self.cycle.keep_alive and not self.parser.should_upgrade()
        self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """A body pays for itself and for its own framing."""
        self._overhead = max(0, self._overhead - (1 + CHUNK_SHARE) * len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keeps_alive
        super().on_message_complete()
        self.headers = []  # what is refused next is no part of this request

    def send_400_response(self, msg: str) -> None:
        """In our envelope, and counted."""
        self._refuse(self._objection or Refused(BAD_REQUEST, "this is no HTTP/1.1 request"))

    def _count(self, size: int) -> None:
        self._head += size
        if self._head > MAX_HEAD_BYTES:
            self._object(Refused(HEAD_TOO_LARGE, f"more than {MAX_HEAD_BYTES} bytes of line and headers"))

    def _object(self, error: Refused) -> None:
        """Stop the parser: it hands whatever a callback raises to `send_400_response`, and calls no other."""
        self._objection = error
        raise error

    def _check_target(self) -> None:
        """A target with a host in it outranks the Host header (RFC 9112 §3.2.2): taken only where both say the same."""
        if self.url.startswith((b"/", b"*")):
            return
        named = _AUTHORITY.match(self.url)
        hosts = [value.lower() for name, value in self.headers if name == b"host"]
        if named is None or hosts != [named[1].lower()]:
            self._object(
                Refused(BAD_HOST, "the request's target names another host than its Host header", param="host")
            )

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
        if self._unread is not None:
            self._unread.close()
            self._unread = None

    def _stalled(self) -> None:
        self._cut(Refused(READ_TIMEOUT, f"the client took too little of its answer in {READ_S:g} s"))

    def _cut(self, error: Refused) -> None:
        """End the connection at once: nothing can be told to a client that does not read."""
        self._flows()
        self._note(error, "(answer)")
        self.transport.abort()

    def _too_slow(self) -> None:
        self._refuse(Refused(HEAD_TIMEOUT, f"the request's head did not arrive within {HEAD_S:g} s"))

    def _address(self) -> str:
        return address_holder(self.client[0] if self.client else "")

    def _holder(self) -> str:
        """The key of the request being answered, where one was asked for."""
        return (self.cycle.scope["state"].get("key") if self.cycle else None) or self._address()

    def _note(self, error: Refused, where: str) -> str:
        """Count and log; the request's id, in a context of its own: tasks that begin later must not inherit it."""
        current = request_id(next((value for name, value in self.headers or () if name == b"x-request-id"), None))
        context = contextvars.copy_context()
        context.run(REQUEST_ID.set, current)
        context.run(note, self.metrics, error, where)
        return current

    def _refuse(self, error: Refused) -> None:
        """Answer, unless an answer is under way already, and end the connection."""
        self._unwatch()
        current = self._note(error, "(no request)")
        if not self.pipeline and (
            self.cycle is None or self.cycle.response_complete or not self.cycle.response_started
        ):
            response = respond(error)
            status = HTTPStatus(error.code.status)
            lines = [*response.raw_headers, (b"x-request-id", current.encode())]
            head = b"".join(b"%s: %s\r\n" % line for line in lines)
            self.transport.write(f"HTTP/1.1 {status} {status.phrase}\r\n".encode() + head + b"\r\n" + response.body)
        self.transport.close()


def wire(metrics: Metrics, shares: Shares) -> type[Wire]:
    """The protocol for `uvicorn.run(http=…)`; its refusals are counted in `metrics`."""
    return type("CountedWire", (Wire,), {"metrics": metrics, "shares": shares})
