"""HTTP protocol of one connection: limits on request heads, framing, pipelining and slow clients.

uvicorn's own protocol answers an unparsable request in plain text, keeps any amount of headers, chunk extensions and
trailers, queues any number of requests, drains bodies that no route reads, and waits for a request's head for ever. This
subclass bounds all of that; each refusal uses the error envelope and is counted.
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
"""Most bytes of a request's line and headers, and, separately, of framing beyond CHUNK_SHARE: chunk sizes and extensions,
trailers. Clients send about 500. Also the most that is parsed between two checks of this limit."""

HEAD_PIECE_BYTES: Final = 4 << 10
"""Bytes parsed at a time while a head is expected. The parser reports the beginning of a message only by a callback in the
middle of a piece, so up to this many bytes of the previous message may be counted as the new one's."""

MAX_HEADERS: Final = 128
"""Most headers of a request. Clients send about 10, proxies add as many."""

MAX_PIPELINED: Final = 16
"""Most requests that may wait behind the one being answered: one read of 256 KiB could bring ten thousand, at 3 kB of
memory each."""

CHUNK_SHARE: Final = 16
"""Bytes of chunk framing allowed per byte of body: a body in chunks of one byte has 5. An unused allowance is not carried
over to later bytes."""

HEAD_S: Final = 15.0
"""Seconds in which a request's line and headers must arrive, from the connection's first moment."""

READ_S: Final = 60.0
"""Seconds in which a client must read 48 KiB of an answer once 64 KiB are unread: 0.8 kB a second. Until it does, its
stream holds a version that may be waiting to be unloaded."""

_AUTHORITY = re.compile(rb"https?://([^/?#]*)", re.IGNORECASE)


class HttpProtocol(HttpToolsProtocol):
    """One connection. metrics: counts its refusals; shares: ledger of connections and unread bytes; see `wire`."""

    metrics: Metrics
    shares: Shares
    _piece = 0  # bytes being parsed now
    _overhead = 0  # bytes since the message began that are neither body nor within its framing allowance
    _head = 0
    _in_head = True
    _keep_alive = True
    _parse_error: Refused | None = None
    _head_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None
    _connection_share: Holding | None = None
    _unread_share: Holding | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a share of connections and start the head timer."""
        super().connection_made(transport)
        try:
            self._connection_share = self.shares.take(Resource.CONNECTIONS, self._address())
        except Refused as error:
            self._refuse(error)
        else:
            self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers and release the connection's shares."""
        self._stop_head_timer()
        self._end_stall()
        if self._connection_share is not None:
            self._connection_share.close()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the read timer: the client reads too slowly, so writing to it and reading from the engine pause."""
        super().pause_writing()
        if self._read_timer is None:
            self._read_timer = self.loop.call_later(READ_S, self._read_timed_out)
        if self._unread_share is None:
            try:
                self._unread_share = self.shares.take(
                    Resource.UNREAD, self._holder(), self.transport.get_write_buffer_size()
                )
            except Refused as error:
                self._abort(error)

    def resume_writing(self) -> None:
        """Stop the read timer: the client has read enough."""
        self._end_stall()
        super().resume_writing()

    def shutdown(self) -> None:
        """Shut down: close the connection after the request being answered."""
        self._keep_alive = False
        super().shutdown()

    def data_received(self, data: bytes) -> None:
        """Parse the data in bounded pieces, checking the limits after each."""
        start = 0
        while start < len(data):
            piece = data[start : start + (HEAD_PIECE_BYTES if self._in_head else MAX_HEAD_BYTES)]
            start += len(piece)
            self._piece = len(piece)
            self._overhead += len(piece)
            super().data_received(piece)
            if self.transport.is_closing():
                self._stop_head_timer()
                return
            if self._overhead > MAX_HEAD_BYTES + HEAD_PIECE_BYTES:
                self._refuse(Refused(HEAD_TOO_LARGE, f"more than {MAX_HEAD_BYTES} bytes besides the body"))
                return
        if self._in_head and self._head_timer is None:  # the next request of a kept-alive connection has begun
            self._start_head_timer()

    def on_message_begin(self) -> None:
        """Begin a request: check the pipeline's length and reset the counters."""
        if len(self.pipeline) >= MAX_PIPELINED:
            self._stop_parser(Refused(BAD_REQUEST, f"more than {MAX_PIPELINED} requests wait for answers"))
        super().on_message_begin()
        self._overhead, self._head, self._in_head = min(self._piece, HEAD_PIECE_BYTES), 0, True

    def on_url(self, url: bytes) -> None:
        """Count a part of the request's target."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count and keep one header. Trailers are dropped: nothing uses them, and the headers are in use by then."""
        if not self._in_head:
            return
        self._count(len(name) + len(value) + len(b": \r\n"))
        if len(self.headers) >= MAX_HEADERS:
            self._stop_parser(Refused(HEAD_TOO_LARGE, f"more than {MAX_HEADERS} headers"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request: its head is complete. A response sent before the body has ended closes the connection; the
        rest of the body is not drained."""
        self._in_head = False
        self._stop_head_timer()
        self._check_target()
        super().on_headers_complete()
        self._keep_alive = self.cycle.keep_alive and not self.parser.should_upgrade()
        self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Deduct body bytes and their framing allowance from the overhead."""
        self._overhead = max(0, self._overhead - (1 + CHUNK_SHARE) * len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Finish the request: restore keep-alive unless a response has started."""
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keep_alive
        super().on_message_complete()
        self.headers = []  # a later refusal on this connection does not belong to this request

    def send_400_response(self, msg: str) -> None:
        """Answer a parser error with the error envelope, and count it."""
        self._refuse(self._parse_error or Refused(BAD_REQUEST, "this is no HTTP/1.1 request"))

    def _count(self, size: int) -> None:
        self._head += size
        if self._head > MAX_HEAD_BYTES:
            self._stop_parser(Refused(HEAD_TOO_LARGE, f"more than {MAX_HEAD_BYTES} bytes of line and headers"))

    def _stop_parser(self, error: Refused) -> None:
        """Stop the parser by raising: it then calls `send_400_response` and no further callback."""
        self._parse_error = error
        raise error

    def _check_target(self) -> None:
        """Refuse an absolute-form target whose host differs from the Host header, which it overrides (RFC 9112 §3.2.2)."""
        if self.url.startswith((b"/", b"*")):
            return
        named = _AUTHORITY.match(self.url)
        hosts = [value.lower() for name, value in self.headers if name == b"host"]
        if named is None or hosts != [named[1].lower()]:
            self._stop_parser(
                Refused(BAD_HOST, "the request's target names another host than its Host header", param="host")
            )

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S, self._head_timed_out)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_stall(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
        if self._unread_share is not None:
            self._unread_share.close()
            self._unread_share = None

    def _read_timed_out(self) -> None:
        self._abort(Refused(READ_TIMEOUT, f"the client took too little of its answer in {READ_S:g} s"))

    def _abort(self, error: Refused) -> None:
        """Abort the connection: a client that does not read cannot receive an error response."""
        self._end_stall()
        self._note(error, "(answer)")
        self.transport.abort()

    def _head_timed_out(self) -> None:
        self._refuse(Refused(HEAD_TIMEOUT, f"the request's head did not arrive within {HEAD_S:g} s"))

    def _address(self) -> str:
        return address_holder(self.client[0] if self.client else "")

    def _holder(self) -> str:
        """Return the key name of the request being answered, if its route required a key; else the address."""
        return (self.cycle.scope["state"].get("key") if self.cycle else None) or self._address()

    def _note(self, error: Refused, where: str) -> str:
        """Count and log an error, and return the request's id. The id is set in a separate context, so that later tasks do
        not inherit it."""
        current = request_id(next((value for name, value in self.headers or () if name == b"x-request-id"), None))
        context = contextvars.copy_context()
        context.run(REQUEST_ID.set, current)
        context.run(note, self.metrics, error, where)
        return current

    def _refuse(self, error: Refused) -> None:
        """Send an error response, unless a response has already started, and close the connection."""
        self._stop_head_timer()
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


def wire(metrics: Metrics, shares: Shares) -> type[HttpProtocol]:
    """Return the protocol class for `uvicorn.run(http=…)`; its refusals are counted in `metrics`."""
    return type("CountedWire", (HttpProtocol,), {"metrics": metrics, "shares": shares})
