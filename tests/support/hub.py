"""Hugging Face hub of the tests' own: one repository, in the few answers that huggingface_hub asks for to download files.

Shapes are those of the public hub's API: /api/models/{id}/revision/{revision} lists files and the commit, and
/{id}/resolve/{commit}/{file} has a file's bytes, with its commit and an ETag in headers.
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


@contextmanager
def hub(files: Mapping[str, bytes]) -> Iterator[str]:
    """Serve `files` as REPOSITORY at COMMIT, which `main` and `v1` name, on a port of loopback: its URL."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            for revision in ("main", "v1", COMMIT):
                if self.path.partition("?")[0] == f"/api/models/{REPOSITORY}/revision/{revision}":
                    listing = [{"rfilename": name} for name in files]
                    said = {"id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "siblings": listing, "tags": []}
                    return self._send(200, json.dumps(said).encode(), {"Content-Type": "application/json"})
            at = f"/{REPOSITORY}/resolve/{COMMIT}/"
            name = self.path.removeprefix(at)
            if self.path.startswith(at) and name in files:
                data = files[name]
                tag = f'"{hashlib.sha256(data).hexdigest()}"'
                return self._send(200, data, {"ETag": tag, "X-Repo-Commit": COMMIT})
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

        def do_HEAD(self) -> None:
            self.do_GET()

        def _send(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

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
