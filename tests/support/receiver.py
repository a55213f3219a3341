"""Receiver of webhooks: a real HTTP server in a thread, which answers as a test tells it and keeps what came."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook


@dataclass
class Got:
    """One request. path: as it was sent."""

    path: str
    headers: dict[str, str]
    body: bytes

    def verified(self, secret: str) -> dict[str, Any]:
        """Return the message, after the specification's own library has checked its signature and time. Raises."""
        found = Webhook(secret).verify(self.body, self.headers)
        assert isinstance(found, dict)
        return found


@dataclass
class Receiver:
    """Receiver. statuses: of the next answers; then 200. hold: answers wait while it is not set."""

    port: int
    got: list[Got] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    location: str | None = None
    hold: threading.Event = field(default_factory=threading.Event)

    def next_status(self) -> int:
        """Status of the next answer; several threads answer."""
        try:
            return self.statuses.pop(0)
        except IndexError:
            return 200

    @property
    def origin(self) -> str:
        """Origin of its URLs."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def types(self) -> list[str]:
        """Kinds of message that came, in order."""
        return [str(json.loads(one.body)["type"]) for one in self.got]


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run a receiver for the duration of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            made.got.append(Got(self.path, dict(self.headers), body))
            made.hold.wait()
            self.send_response(made.next_status())
            if made.location is not None:
                self.send_header("location", made.location)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made = Receiver(server.server_address[1])
        made.hold.set()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield made
        finally:
            made.hold.set()
            server.shutdown()
            thread.join()
