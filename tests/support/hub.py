"""Hugging Face hub of the tests' own: one repository, in the few answers that huggingface_hub asks for to download files.

Shapes are those of the public hub: /api/models/{id}/revision/{revision} has the commit, /api/models/{id}/tree/{commit}
lists the files, and /{id}/resolve/{commit}/{file} has a file's bytes, with its commit and an ETag in headers.
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


@contextmanager
def hub(files: Mapping[str, bytes]) -> Iterator[str]:
    """Serve `files` as REPOSITORY at COMMIT, on a port of loopback: its URL."""
    known = answers(files)

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            data, headers = known.get(path, (b"", MISSING))
            self.send_response(200 if path in known else 404)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
