"""Every row of the table of shared resources, exceeded over real sockets by one caller (U23), and bodies that do not come
(U25): others are served all the while, and everything is free again afterwards.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.api import bodies
from app.api.access.rules import ROUTES
from app.domain.api_keys import Role, new_key
from app.domain.shares import SHARED, Resource
from app.serve.grammar_cost import schema_cost
from app.serve.request_load import TOKENS_UNSAID
from app.upload.limits import UploadLimits
from tests.support.gateway import OpenHouse, Running
from tests.support.served import AUTH, Line, line, on_a_port
from tests.support.waiting import STUCK_S

GREEDY, OTHER = (new_key(name, [Role.UPLOAD, Role.CHAT]) for name in ("greedy", "other"))
ADDRESSES = {GREEDY[0]: "127.0.0.1", OTHER[0]: "127.0.0.2"}
BODY = b'{"model": "served", "messages": [{"role": "user", "content": "hello"}]}'
FLOOD = BODY.replace(b"}]}", b'}], "stream": true}')
SCHEMA: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": ["x" * 1600]}}}
WITH_SCHEMA = BODY.replace(b"}]}", b'}], "response_format": %s}' % json.dumps(SCHEMA).encode())
FORM = b"Content-Type: multipart/form-data; boundary=b\r\n"
UNITS = {
    Resource.BODIES: len(BODY),
    Resource.UNREAD: 128 << 10,
    Resource.TOKENS: TOKENS_UNSAID,
    Resource.SCHEMAS: schema_cost(SCHEMA["json_schema"]["schema"]),
}
PLACES = 8
"""Units instead of each row's own limit, so that a test reaches it."""


def head(method: str, path: str, key: str, *more: bytes) -> bytes:
    start = f"{method} {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {key}\r\n"
    return b"".join((start.encode(), *more, b"\r\n"))


def chat(key: str, body: bytes, sent: int | None = None) -> bytes:
    return head("POST", "/v1/chat/completions", key, b"Content-Length: %d\r\n" % len(body)) + body[:sent]


ASKED: Mapping[Resource, Callable[[str], bytes]] = {
    Resource.UPLOADS: lambda key: head("POST", "/adapters", key, FORM, b"Content-Length: 500\r\n") + b"--b\r\n",
    Resource.WATCHERS: lambda key: head("GET", "/adapters/a/events?after=0", key),
    Resource.BODIES: lambda key: chat(key, BODY, -1),
    Resource.REQUESTS: lambda key: chat(key, BODY),
    Resource.UNREAD: lambda key: chat(key, FLOOD),
    Resource.CONNECTIONS: lambda _: b"GET /hea",
    Resource.SEQUENCES: lambda key: chat(key, BODY),
    Resource.TOKENS: lambda key: chat(key, BODY),
    Resource.SCHEMAS: lambda key: chat(key, WITH_SCHEMA),
}
"""Bytes that hold at least one unit of each for as long as the connection is open."""

ENGINE: Mapping[Resource, str] = {
    Resource.UNREAD: "flood",
    **dict.fromkeys((Resource.REQUESTS, Resource.SEQUENCES, Resource.TOKENS, Resource.SCHEMAS), "hang"),
}
"""Fault of the engine that it takes to hold it."""


def refusals(running: Running, resource: Resource) -> float:
    metric, code = running.gateway.context.metrics.uploads.rejected, SHARED[resource].code.name
    return float(sum(s.value for family in metric.collect() for s in family.samples if s.labels.get("code") == code))


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(STUCK_S):
        while not what():
            await asyncio.sleep(0.01)


def test_each_row_of_the_table_is_tried() -> None:
    assert set(ASKED) == set(SHARED), "a resource without a way to exceed it"


@pytest.mark.parametrize("resource", ASKED)
@pytest.mark.hostile("U23")
async def test_one_caller_leaves_some_to_others(open_gateway: OpenHouse, tmp_path: Path, resource: Resource) -> None:
    file = tmp_path / "keys"
    file.write_text("\n".join(key.line for _, key in (GREEDY, OTHER)))
    async with open_gateway(api_keys_file=file) as running, on_a_port(running) as port, AsyncExitStack() as lines:
        shares, limit = running.gateway.context.shares, PLACES * UNITS.get(resource, 1)
        shares._limits[resource] = limit
        if resource in ENGINE:
            running.simulator.faults["chat"] = ENGINE[resource]

        async def held_one_more(key: str) -> bool:
            before, refused = shares.in_use(resource), refusals(running, resource)
            connection = await lines.enter_async_context(line(port, ADDRESSES[key]))
            await connection.send(ASKED[resource](key))
            await until(lambda: shares.in_use(resource) > before or refusals(running, resource) > refused)
            return refusals(running, resource) == refused

        taken = 0
        while await held_one_more(GREEDY[0]):
            taken += 1
        assert 0 < taken <= PLACES // 2 + 1
        assert shares.in_use(resource) <= limit
        assert await held_one_more(OTHER[0])
        assert (await running.http.get("/health")).status_code == 200
        await lines.aclose()
        await until(lambda: shares.in_use(resource) == 0)


FILLED = {"{name}": "a", "{number}": "1", "{digest}": "d", "{file}": "x.css", "{model}": "m", "{rest:path}": "x"}
FILLED |= {"{tenant}": "acme", "{key}": "app", "{webhook}": "wh_1"}


def paths() -> list[tuple[str, str]]:
    found = []
    for method, path in ROUTES:
        for gap, word in FILLED.items():
            path = path.replace(gap, word)  # noqa: PLW2901
        assert "{" not in path
        found.append((method, path))
    return [*found, ("POST", "/nowhere")]


async def trickle(connection: Line) -> None:
    """A byte now and then, for as long as anybody listens."""
    while await connection.send(b"x"):
        await asyncio.sleep(0.05)


async def ended(port: int, method: str, path: str, auth: bytes) -> None:
    """Asks, sends a body that does not end, and returns when the gateway has ended the connection."""
    async with line(port) as connection:
        start = f"{method} {path} HTTP/1.1\r\nHost: gateway\r\nX-Console: 1\r\n".encode()
        await connection.send(start + auth + FORM + b"Content-Length: 100000\r\n\r\n")
        sending = asyncio.create_task(trickle(connection))
        try:
            with suppress(ConnectionError):
                assert (await connection.reader.read(1 << 20)).startswith(b"HTTP/1.1 ")
                while await connection.reader.read(1 << 20):
                    pass
        finally:
            sending.cancel()


@pytest.mark.parametrize("auth", [AUTH, b""], ids=["key", "nobody"])
@pytest.mark.hostile("U20", "U25")
async def test_no_route_waits_for_a_body_that_does_not_come(
    open_gateway: OpenHouse, monkeypatch: pytest.MonkeyPatch, auth: bytes
) -> None:
    """`POST /console/session` did, for ever."""
    monkeypatch.setattr(bodies, "BODY_S", 0.5)
    short = partial(UploadLimits, rate_window_s=0.5)
    monkeypatch.setattr("app.server.receiving.UploadLimits", short)
    async with open_gateway() as running, on_a_port(running) as port:
        asking: list[Awaitable[None]] = [ended(port, method, path, auth) for method, path in paths()]
        async with asyncio.timeout(60):
            await asyncio.gather(*asking)
        shares = running.gateway.context.shares
        await until(lambda: not any(shares.in_use(resource) for resource in SHARED))
