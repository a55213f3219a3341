"""Hugging Face hub of the tests' own: one repository, in the few answers that huggingface_hub asks for to download files.

Shapes are those of the public hub: /api/models/{id}/revision/{revision} has the commit, /api/models/{id}/tree/{commit}
lists the files, and /{id}/resolve/{commit}/{file} has a file's bytes, with its commit and an ETag in headers.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

REPOSITORY: Final = "someone/poems"
COMMIT: Final = "c0ffee" + "0" * 34
MISSING: Final = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}


def answers(files: Mapping[str, bytes]) -> dict[str, tuple[bytes, Mapping[str, str]]]:
    """Path → body and headers. `main` and `v1` name the commit."""
    api, listing = f"/api/models/{REPOSITORY}", [{"rfilename": name} for name in files]
    commit = {"id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "siblings": listing, "tags": []}
    tree = [
        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        for name, data in files.items()
    ]
    found: dict[str, tuple[bytes, Mapping[str, str]]] = {
        f"/{REPOSITORY}/resolve/{COMMIT}/{name}": (
            data,
            {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT},
        )
        for name, data in files.items()
    }
    said = {f"{api}/revision/{name}": commit for name in ("main", "v1", COMMIT)} | {f"{api}/tree/{COMMIT}": tree}
    return found | {
        path: (json.dumps(one).encode(), {"Content-Type": "application/json"}) for path, one in said.items()
    }


@dataclass
class RunningHub:
    """Hub that runs. seen: path and headers of each request. instead: handlers of paths that are answered otherwise."""

    port: int
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    instead: dict[str, Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def running_hub(files: Mapping[str, bytes]) -> Iterator[RunningHub]:
    """Serve `files` as REPOSITORY at COMMIT, on a port of loopback."""
    known = answers(files)

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            made.seen.append((self.path, dict(self.headers)))
            if path in made.instead:
                with suppress(ConnectionError):  # the client may leave
                    made.instead[path](self)
                return
            data, headers = known.get(path, (b"", MISSING))
            say(self, data, headers, 200 if path in known else 404)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        made = RunningHub(server.server_port)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()


def say(to: BaseHTTPRequestHandler, data: bytes, headers: Mapping[str, str], status: int = 200) -> None:
    """Answer a request. headers may hold a Content-Length that is not the data's."""
    to.send_response(status)
    for name, value in {"Content-Length": str(len(data)), **headers}.items():
        to.send_header(name, value)
    to.end_headers()
    if to.command == "GET":
        to.wfile.write(data)


@contextmanager
def hub(files: Mapping[str, bytes]) -> Iterator[str]:
    """Serve `files` as `running_hub` does: its URL."""
    with running_hub(files) as made:
        yield made.url
