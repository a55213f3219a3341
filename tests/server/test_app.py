"""The composition root: the order of middleware, and that whatever was started is stopped."""

import asyncio
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.api.access.audited import AuditedRequests
from app.api.access.ending import Ending, EndingRequests
from app.api.access.request_checks import RequestChecks
from app.api.access.request_ids import RequestIds
from app.console.cookie_auth import CookieToKey
from app.domain.errors import ENGINE_UNAVAILABLE, Unavailable
from app.server.app import middleware, started
from app.server.wiring import Gateway
from tests.support.gateway import Running

STOPS = [
    *(
        "auditor.stop",
        "recheck.stop",
        "webhooks.stop",
        "meter.stop",
        "usage.stop",
        "trail.stop",
        "sign_on.stop",
        "ring.stop",
    ),
    *("peer_sync.stop", "publishing.stop", "reconciler.stop", "relay.stop"),
    *("engine.close", "front.close", "embedded.stop", "doors"),
]
"""In this order: what asks before what is asked."""


def test_the_middleware_is_one_list_in_this_order(running: Running) -> None:
    """Ids on every refusal; the checks of other sites' pages before the cookie is a key, which they spare."""
    order: list[Any] = [RequestIds, EndingRequests, RequestChecks, CookieToKey, AuditedRequests]
    assert [each.cls for each in middleware(running.gateway)] == order
    assert [each.cls for each in running.app.user_middleware] == order


class Parts:
    """A gateway whose parts write down what they are told, and fail if wanted. failing: names such as `engine.close`."""

    def __init__(self, **failing: Exception) -> None:
        self.told: list[str] = []
        self.failing = {".".join(name.rsplit("_", 1)): error for name, error in failing.items()}
        closers = ExitStack()
        closers.callback(self.says("doors"))
        each = {
            "embedded": self.part("embedded", aio=("start", "stop")),
            "engine": self.part("engine", aio=("close",)),
            "front": self.part("front", aio=("close",)),
            "reconciler": self.part("reconciler", "start", aio=("stop",)),
            "peer_sync": self.part("peer_sync", "start", aio=("stop",)),
            "recheck": self.part("recheck", "start", aio=("stop",)),
            "auditor": self.part("auditor", "start", "stop"),
            "sandbox": self.part("sandbox", "warm"),
        }
        pools = SimpleNamespace(screening=asyncio.to_thread)
        publishing = self.part("publishing", aio=("stop",))
        uploads = SimpleNamespace(components=SimpleNamespace(pools=pools), publishing=publishing)
        writers = {
            name: self.part(name, "start", aio=("stop",))
            for name in ("ring", "sign_on", "usage", "trail", "meter", "webhooks")
        }
        relay = self.part("relay", aio=("stop",))
        context = SimpleNamespace(uploads=uploads, ending=Ending(), relay=relay, **writers)
        more = {"context": context, "closers": closers, "reload": None, "drain_seconds": 0.0}
        self.gateway = cast(Gateway, SimpleNamespace(**each, **more))

    def part(self, name: str, *plain: str, aio: tuple[str, ...] = ()) -> Any:
        methods: dict[str, Any] = {verb: self.says(f"{name}.{verb}") for verb in plain}
        for verb in aio:
            methods[verb] = self.awaits(f"{name}.{verb}")
        return SimpleNamespace(**methods)

    def says(self, what: str) -> Callable[[], None]:
        def say() -> None:
            self.told.append(what)
            if what in self.failing:
                raise self.failing[what]

        return say

    def awaits(self, what: str) -> Callable[[], Any]:
        say = self.says(what)

        async def wait() -> None:
            say()

        return wait

    @property
    def stopped(self) -> list[str]:
        return [each for each in self.told if each in STOPS]


async def test_whatever_was_started_is_stopped_the_last_first() -> None:
    parts = Parts()
    async with started(parts.gateway):
        assert not parts.stopped
        assert next(each for each in parts.told if each.endswith("start")) == "embedded.start"
    assert parts.stopped == STOPS


@pytest.mark.parametrize("what", [name for name in STOPS if name not in {"embedded.stop", "doors"}])
async def test_what_fails_to_stop_leaves_nothing_running(what: str) -> None:
    """The embedded engine above all: it would hold its memory until the next start."""
    parts = Parts(**{what.replace(".", "_"): RuntimeError(what)})
    with pytest.raises(RuntimeError, match=what):
        async with started(parts.gateway):
            pass
    assert parts.stopped == STOPS


@pytest.mark.parametrize(
    "what", ["embedded_start", "reconciler_start", "peer_sync_start", "recheck_start", "auditor_start", "sandbox_warm"]
)
async def test_a_start_that_fails_stops_what_was_started(what: str) -> None:
    parts = Parts(**{what: RuntimeError(what)})
    with pytest.raises(RuntimeError, match=what):
        async with started(parts.gateway):
            pytest.fail("it started")
    begun = {each.partition(".")[0] for each in parts.told if each.endswith(".start")}
    ended = {each.partition(".")[0] for each in parts.stopped}
    assert begun <= ended
    assert parts.told[-1] == "doors"


async def test_an_engine_that_does_not_start_is_no_reason_not_to_serve() -> None:
    parts = Parts(embedded_start=Unavailable(ENGINE_UNAVAILABLE, "no engine"))
    async with started(parts.gateway):
        assert "auditor.start" in parts.told
    assert parts.stopped == STOPS


def test_in_a_terminal_sighup_says_that_the_terminal_was_closed() -> None:
    """A gateway that was started by hand ends with its terminal; a service reads its battery again."""
    code = "from app.server.signals import in_terminal; print(in_terminal())"
    for opened, expected in ((pty.openpty, "True"), (None, "False")):
        ends = opened() if opened else ()
        command = [sys.executable, "-c", code]
        if ends:  # a new session takes the first terminal that it opens
            name = os.ttyname(ends[1])
            command[2] = f"import os; os.open({name!r}, os.O_RDWR)\n{code}"
        told = subprocess.run(command, capture_output=True, text=True, check=True, start_new_session=True, timeout=120)
        assert told.stdout.strip() == expected
        for end in ends:
            os.close(end)
