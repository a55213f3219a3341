"""Reverse proxy in front of a gateway that notes requests, and the fields which their answers say were left out of them."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import httpx

PASSED_S: Final = 120.0
"""Seconds that the gateway gets for an answer."""

PASSED_ON: Final = ("authorization", "content-type", "accept")


@dataclass(frozen=True)
class Recorder:
    """A running proxy. seen: paths and bodies of requests; ignored: names in X-Gateway-Ignored-Fields of the answers."""

    url: str
    seen: list[tuple[str, Any]] = field(default_factory=list)
    ignored: set[str] = field(default_factory=set)


@contextmanager
def recording(gateway: str) -> Iterator[Recorder]:
    """Run one on a port of loopback, before the gateway at this URL. It passes on whole answers to POST, no streams."""
    with httpx.Client(base_url=gateway, timeout=PASSED_S) as http:

        class Pass(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                recorder.seen.append((self.path, json.loads(body)))
                headers = {name: self.headers[name] for name in PASSED_ON if name in self.headers}
                answer = http.post(self.path, content=body, headers=headers)
                listed = answer.headers.get("x-gateway-ignored-fields", "")
                recorder.ignored.update(name for name in listed.split(", ") if name not in ("", "..."))
                self.send_response(answer.status_code)
                self.send_header("content-type", answer.headers["content-type"])
                self.send_header("content-length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Pass) as server:
            recorder = Recorder(f"http://127.0.0.1:{server.server_port}")
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield recorder
            finally:
                server.shutdown()
                thread.join()
