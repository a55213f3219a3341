"""A real browser that visits another site, whose page sends a form to an open gateway on this machine."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from tests.console.conftest import Serve, Visitor

PAGE = """<!doctype html><title>Kittens</title>
<form method="post" action="%s" enctype="%s"><input name="name" value="x"></form>
<script>document.forms[0].submit()</script>"""


class Evil(BaseHTTPRequestHandler):
    """Every path is the page it asks for: ?action&enctype."""

    def do_GET(self) -> None:
        """Answer."""
        action, _, enctype = self.path.partition("?")[2].partition("&")
        body = (PAGE % (action, enctype)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def evil() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Evil)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("enctype", ["multipart/form-data", "text/plain"])
@pytest.mark.parametrize("path", ["/adapters", "/v1/chat/completions"])
def test_a_form_of_another_sites_page_is_refused(
    serve: Serve, visitor: Visitor, evil: str, path: str, enctype: str
) -> None:
    gateway = serve(open=True)
    page = visitor.page()
    with page.expect_response(f"{gateway}{path}") as answered:
        page.goto(f"{evil}/?{gateway}{path}&{enctype}")
    assert answered.value.status == 403
    assert answered.value.json()["error"]["code"] == "cross_site"
    assert httpx.get(f"{gateway}/adapters").json()["adapters"] == []
