"""What the connection's protocol relies on in uvicorn that no release promises: each name, and what is expected of it.

Fails when another uvicorn is allowed or installed than was looked at. Then read uvicorn/protocols/http/httptools_impl.py of
the new release against app/api/http_protocol.py, and raise the bound in pyproject.toml together with LOOKED_AT.
"""

import asyncio
import inspect
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import httptools
import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tests.support.connection import Connection

LOOKED_AT = (0, 54)
"""The newest release whose source was read."""

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
OVERRIDDEN = {
    "connection_made": ["self", "transport"],
    "connection_lost": ["self", "exc"],
    "pause_writing": ["self"],
    "resume_writing": ["self"],
    "shutdown": ["self"],
    "data_received": ["self", "data"],
    "on_message_begin": ["self"],
    "on_url": ["self", "url"],
    "on_header": ["self", "name", "value"],
    "on_headers_complete": ["self"],
    "on_body": ["self", "body"],
    "on_message_complete": ["self"],
    "send_400_response": ["self", "msg"],
}
CONNECTION = ("loop", "transport", "flow", "client", "pipeline", "parser", "url", "headers", "cycle")
CYCLE = ("scope", "keep_alive", "response_started", "response_complete", "more_body", "body")
CHANGED = "uvicorn {} has changed {}, which app/api/http_protocol.py relies on"


def changed(name: str) -> str:
    return CHANGED.format(version("uvicorn"), name)


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_what_is_overridden_is_there_and_takes_the_same(name: str) -> None:
    method = getattr(HttpToolsProtocol, name, None)
    assert method is not None, changed(name)
    assert list(inspect.signature(method).parameters) == OVERRIDDEN[name], changed(name)


def test_what_is_read_of_a_connection_and_of_a_request_is_there() -> None:
    connection = Connection(answers=False)
    connection.feed([b"POST /a HTTP/1.1\r\nHost: gateway\r\nContent-Length: 3\r\n\r\nab"])
    protocol = connection.protocol
    missing = [name for name in CONNECTION if getattr(protocol, name, None) is None]
    missing += [f"cycle.{name}" for name in CYCLE if getattr(protocol.cycle, name, None) is None]
    assert not missing, changed(", ".join(missing))
    assert isinstance(protocol.cycle, RequestResponseCycle)
    assert isinstance(protocol.flow, FlowControl)
    assert isinstance(protocol.cycle.scope["state"], dict), changed("scope['state']")
    connection.close()


def test_whether_a_connection_is_kept_is_decided_by_the_cycle_when_it_answers() -> None:
    connection = Connection(answers=False)
    connection.feed([b"GET /a HTTP/1.1\r\nHost: gateway\r\n\r\n"])
    connection.protocol.cycle.keep_alive = False
    connection.loop.tasks.pop().run()
    assert connection.transport.closed, changed("cycle.keep_alive")
    connection.close()


def test_what_a_callback_raises_stops_the_parser_and_is_answered() -> None:
    class Objecting(HttpToolsProtocol):
        answered = 0

        def __init__(self) -> None:
            self.parser = httptools.HttpRequestParser(self)
            self.logger = type("Silent", (), {"warning": lambda *_: None})()
            self.timeout_keep_alive_task = None

        def on_message_begin(self) -> None:
            raise ValueError

        def send_400_response(self, msg: str) -> None:
            self.answered += 1

    protocol = Objecting()
    protocol.data_received(b"GET /a HTTP/1.1\r\n\r\n" * 3)
    assert protocol.answered == 1, changed("data_received")


def test_no_release_is_allowed_that_was_not_looked_at() -> None:
    wanted = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    (line,) = [line for line in wanted if line.startswith("uvicorn")]
    below = re.search(r"<0\.([0-9]+)$", line)
    assert below, f"{line} has no upper bound"
    assert int(below[1]) == LOOKED_AT[1] + 1
    installed = tuple(map(int, version("uvicorn").split(".")[:2]))
    assert installed <= LOOKED_AT, f"uvicorn {version('uvicorn')} is installed"
    assert issubclass(HttpToolsProtocol, asyncio.Protocol)
