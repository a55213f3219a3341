"""One connection's protocol without a socket or an event loop: bytes go in, requests and answers come out.

The application answers at once (`answers=True`) or never; it reads no body either way.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from app.api.http_protocol import wire
from app.domain.shares import Shares
from app.observe.metrics import Metrics

ANSWER = b"answered"
METRICS = Metrics()


class Transport(asyncio.Transport):
    """What was written, and whether it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.closed, self.reading = bytearray(), False, True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_write_buffer_size(self) -> int:
        return len(self.written)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.7", 5000) if name in {"peername", "sockname"} else default


class Task:
    """A coroutine that runs when told to."""

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self.work = work
        self.add_done_callback: Callable[[Any], None] = lambda _: None

    def run(self) -> None:
        try:
            self.work.send(None)
        except StopIteration:
            return
        raise AssertionError("the application waits")


class Loop:
    """As much of an event loop as a protocol asks for; alarms never ring."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def create_task(self, work: Coroutine[Any, Any, None], **_: Any) -> Task:
        self.tasks.append(Task(work))
        return self.tasks[-1]

    def call_later(self, *_: Any) -> "Loop":
        return self

    def cancel(self) -> None:
        """Of an alarm."""


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    length = b"%d" % len(ANSWER)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": ANSWER})


CONFIG = uvicorn.Config(_app, lifespan="off", ws="none", log_config=None, proxy_headers=False)
CONFIG.load()
logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Request:
    """One request as the application would see it."""

    method: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    complete: bool


class Recorded(wire(METRICS, Shares())):  # type: ignore[misc]  # a class made at run time
    """The protocol, which keeps what it begins."""

    cycles: list[RequestResponseCycle]

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self.cycles.append(self.cycle)


class Connection:
    """One connection. requests: all that were begun, in order."""

    def __init__(self, *, answers: bool, shares: Shares | None = None) -> None:
        self.loop, self.transport, self.answers = Loop(), Transport(), answers
        self.protocol = Recorded(CONFIG, ServerState(), {}, self.loop)
        self.protocol.cycles = []
        self.protocol.shares = shares or Shares()
        self.protocol.connection_made(self.transport)

    def feed(self, pieces: Sequence[bytes]) -> None:
        """The client sends, as long as the connection is open and read from."""
        for piece in pieces:
            if self.transport.closed:
                return
            self.protocol.data_received(piece)
            while self.answers and self.loop.tasks:
                self.loop.tasks.pop(0).run()

    @property
    def requests(self) -> list[Request]:
        return [
            Request(
                cycle.scope["method"],
                cycle.scope["raw_path"],
                tuple(cycle.scope["headers"]),
                bytes(cycle.body),
                not cycle.more_body,
            )
            for cycle in self.protocol.cycles
        ]

    @property
    def answered(self) -> int:
        return self.transport.written.count(ANSWER)

    def close(self) -> None:
        """The client leaves."""
        for task in self.loop.tasks:
            task.work.close()
        self.protocol.connection_lost(None)
