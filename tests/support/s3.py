"""A real S3-compatible server (moto's) in this process, and faults between it and its clients."""

import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest

BUCKET = "bucket"


@dataclass
class Storage:
    """One server with one empty bucket. url: the store's. Faults apply to requests that come after they are set."""

    url: str
    endpoint: str
    faults: "Faults"


@dataclass
class Faults:
    """In front of the server. failing: every request gets 503. slow_s: seconds before each. stale: listings are those of
    the moment it was set. other: objects whose key ends so are answered with other bytes. seen: method, path and
    If-None-Match of each request.
    """

    inner: Any
    failing: bool = False
    slow_s: float = 0.0
    other: str | None = None
    stale: bool = False
    seen: list[tuple[str, str, str | None]] = field(default_factory=list)
    _listing: bytes | None = None

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.seen.append((method, path, environ.get("HTTP_IF_NONE_MATCH")))
        if self.slow_s:
            time.sleep(self.slow_s)
        if self.failing:
            start("503 Service Unavailable", [("Content-Length", "0")])
            return [b""]
        if method == "GET" and "list-type" in environ.get("QUERY_STRING", ""):
            return self._listed(environ, start)
        if method == "GET" and self.other and path.endswith(self.other):
            return self._changed(environ, start)
        return self.inner(environ, start)

    def _listed(self, environ: WSGIEnvironment, start: StartResponse) -> Any:
        if self.stale and self._listing is not None:
            start("200 OK", [("Content-Type", "application/xml"), ("Content-Length", str(len(self._listing)))])
            return [self._listing]
        body = b"".join(self.inner(environ, start))
        self._listing = body
        return [body]

    def _changed(self, environ: WSGIEnvironment, start: StartResponse) -> Any:
        body = b"".join(self.inner(environ, start))
        return [body[:-1] + bytes([body[-1] ^ 1])]


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """Its address and credentials stand in the environment, as an operator sets them."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002
            pass

    faults = Faults(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, faults, threaded=True, request_handler=Quiet)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST", data=b"")).close()
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")).close()
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    faults.seen.clear()
    yield Storage(f"s3://{BUCKET}/gateway", endpoint, faults)
    server.shutdown()
    server.server_close()
    serving.join()
