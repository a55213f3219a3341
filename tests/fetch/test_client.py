"""Requests to sources' servers: which addresses are connected to, which redirects are followed, who gets the secret."""

import ipaddress
import traceback
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from app.domain.errors import (
    SOURCE_BROKEN,
    SOURCE_FORBIDDEN,
    SOURCE_NOT_ALLOWED,
    SOURCE_NOT_FOUND,
    SOURCE_TIMEOUT,
    SOURCE_UNAVAILABLE,
    Code,
    GatewayError,
)
from app.domain.outside import Address, Outside
from app.fetch import client
from app.fetch.client import SourceClient
from tests.support.hub import RunningHub, running_hub, say

CAP = 1000
SECRET = {"Authorization": "Bearer hub-secret"}


@pytest.fixture
def server() -> Iterator[RunningHub]:
    with running_hub({}) as made:
        made.instead["/a"] = lambda to: say(to, b"hello", {})
        yield made


@pytest.fixture
def other() -> Iterator[RunningHub]:
    with running_hub({}) as made:
        made.instead["/a"] = lambda to: say(to, b"other", {})
        yield made


def names(*found: str) -> Callable[[str, int], Awaitable[tuple[Address, ...]]]:
    """A resolver that knows one name: the addresses of the first call, those of the second, …; the last stay."""
    left = [tuple(map(ipaddress.ip_address, one.split())) for one in found]

    async def resolve(_: str, port: int) -> tuple[Address, ...]:
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve


def redirect(location: str, status: int = 302) -> Callable[[Any], None]:
    return lambda to: say(to, b"", {"Location": location}, status)


async def read(outside: list[str], url: str, *found: str, times: int = 1, redirects: bool = True) -> bytes:
    body = b""
    async with SourceClient(Outside.of(outside), names(*found or ("127.0.0.1",))).connected() as http:
        for _ in range(times):
            async with http.ask("GET", url, {}, secret=SECRET, redirects=redirects) as answer:
                body = await answer.read(CAP)
    return body


async def code_of(outside: list[str], url: str, *found: str, times: int = 1, redirects: bool = True) -> Code:
    with pytest.raises(GatewayError) as caught:
        await read(outside, url, *found, times=times, redirects=redirects)
    said = "".join(traceback.format_exception(caught.value)) + repr(caught.value.__cause__)
    assert "hub-secret" not in said
    return caught.value.code


async def test_a_listed_server_is_read(server: RunningHub) -> None:
    assert await read([server.url], f"{server.url}/a") == b"hello"
    assert server.seen[0][1]["Authorization"] == "Bearer hub-secret"


@pytest.mark.hostile("U30")
@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1"])
async def test_a_name_that_leads_inside_the_network_is_not_asked(server: RunningHub, address: str) -> None:
    origin = f"http://hub.example.com:{server.port}"
    assert await code_of([origin], f"{origin}/a", address) is SOURCE_NOT_ALLOWED
    assert not server.seen


async def test_it_is_asked_if_the_network_is_listed(server: RunningHub) -> None:
    origin = f"http://hub.example.com:{server.port}"
    assert await read([origin, "127.0.0.0/8"], f"{origin}/a", "10.0.0.1 127.0.0.1") == b"hello"
    assert server.seen[0][1]["Host"] == f"hub.example.com:{server.port}"


@pytest.mark.hostile("U30")
async def test_a_name_is_checked_for_every_connection(server: RunningHub) -> None:
    """DNS rebinding: a name that led to a listed address leads elsewhere a moment later."""
    origin = f"http://hub.example.com:{server.port}"
    code = await code_of([origin, "127.0.0.1/32"], f"{origin}/a", "127.0.0.1", "169.254.169.254", times=2)
    assert code is SOURCE_NOT_ALLOWED
    assert len(server.seen) == 1


@pytest.mark.hostile("U30")
async def test_a_redirect_to_a_server_that_is_not_listed_is_not_followed(server: RunningHub, other: RunningHub) -> None:
    server.instead["/a"] = redirect(f"{other.url}/a")
    assert await code_of([server.url], f"{server.url}/a") is SOURCE_NOT_ALLOWED
    assert not other.seen


@pytest.mark.hostile("U30")
@pytest.mark.parametrize(
    "location", ["http://169.254.169.254/latest/meta-data", "file:///etc/passwd", "//evil.example.com/a", "http://["]
)
async def test_a_redirect_to_elsewhere_is_not_followed(server: RunningHub, location: str) -> None:
    server.instead["/a"] = redirect(location)
    assert await code_of([server.url], f"{server.url}/a") is SOURCE_NOT_ALLOWED
    assert len(server.seen) == 1


@pytest.mark.hostile("U30")
async def test_a_redirects_name_is_checked_too(server: RunningHub, other: RunningHub) -> None:
    server.instead["/a"] = redirect(f"http://cdn.example.com:{other.port}/a")
    outside = [server.url, f"http://cdn.example.com:{other.port}"]
    assert await code_of(outside, f"{server.url}/a", "127.0.0.1") is SOURCE_NOT_ALLOWED
    assert not other.seen


async def test_a_listed_server_is_redirected_to_without_the_secret(server: RunningHub, other: RunningHub) -> None:
    signed = "/a?X-Amz-Signature=a%2Fb%2B&x=" + "y" * 3000  # as it stands: another spelling would not be signed
    other.instead["/a"] = lambda to: say(to, to.path.encode()[:40], {})
    server.instead["/a"] = redirect(f"{other.url}{signed}", 307)
    assert await read([server.url, other.url], f"{server.url}/a") == signed.encode()[:40]
    assert other.seen[0][0] == signed
    assert "Authorization" not in other.seen[0][1]


async def test_a_redirect_within_the_server_keeps_the_secret(server: RunningHub) -> None:
    server.instead["/moved"] = redirect("/a")
    assert await read([server.url], f"{server.url}/moved") == b"hello"
    assert server.seen[1][1]["Authorization"] == "Bearer hub-secret"


@pytest.mark.hostile("U30")
async def test_another_server_does_not_choose_what_the_secret_opens(server: RunningHub, other: RunningHub) -> None:
    server.instead["/moved"] = redirect(f"{other.url}/back")
    other.instead["/back"] = redirect(f"{server.url}/a")
    assert await read([server.url, other.url], f"{server.url}/moved") == b"hello"
    assert "Authorization" not in other.seen[0][1]
    assert "Authorization" not in server.seen[1][1]


@pytest.mark.hostile("U30")
async def test_a_source_that_points_to_itself_is_left(server: RunningHub) -> None:
    server.instead["/a"] = redirect("/a")
    assert await code_of([server.url], f"{server.url}/a") is SOURCE_BROKEN
    assert len(server.seen) == client.MAX_REDIRECTS + 1


async def test_without_redirects_none_is_followed(server: RunningHub) -> None:
    server.instead["/moved"] = redirect("/a")
    assert await code_of([server.url], f"{server.url}/moved", redirects=False) is SOURCE_NOT_FOUND
    assert len(server.seen) == 1


async def test_proxies_of_the_environment_are_not_used(
    server: RunningHub, other: RunningHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", other.url)
    monkeypatch.setenv("ALL_PROXY", other.url)
    assert await read([server.url], f"{server.url}/a") == b"hello"
    assert not other.seen


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, SOURCE_FORBIDDEN),
        (403, SOURCE_FORBIDDEN),
        (404, SOURCE_NOT_FOUND),
        (410, SOURCE_NOT_FOUND),
        (204, SOURCE_UNAVAILABLE),
        (429, SOURCE_UNAVAILABLE),
        (500, SOURCE_UNAVAILABLE),
    ],
)
async def test_every_other_answer_has_a_code(server: RunningHub, status: int, code: Code) -> None:
    server.instead["/a"] = lambda to: say(to, b"", {}, status)
    assert await code_of([server.url], f"{server.url}/a") is code


@pytest.mark.hostile("U29")
@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"", SOURCE_UNAVAILABLE),
        (b"nonsense\r\n\r\n", SOURCE_BROKEN),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100_000, SOURCE_BROKEN),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", SOURCE_BROKEN),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Encoding: gzip\r\n\r\nhello", SOURCE_BROKEN),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", SOURCE_BROKEN),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + bytes(2000), SOURCE_BROKEN),
    ],
    ids=["nothing", "no_http", "many_headers", "short", "compressed", "open_chunks", "over_the_cap"],
)
async def test_an_answer_that_is_not_what_it_says_is_refused(server: RunningHub, said: bytes, code: Code) -> None:
    server.instead["/a"] = lambda to: (to.wfile.write(said), None)[1]
    assert await code_of([server.url], f"{server.url}/a") is code


@pytest.mark.hostile("U31")
async def test_a_server_that_does_not_answer_is_left(server: RunningHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "HEAD_S", 0.2)
    server.instead["/a"] = lambda to: (to.rfile.read(1), None)[1]  # until the client leaves
    assert await code_of([server.url], f"{server.url}/a") is SOURCE_TIMEOUT


async def test_a_name_that_is_not_resolved_and_a_port_without_a_server_are_said() -> None:
    async def fail(_: str, port: int) -> tuple[Address, ...]:
        raise OSError(-2, "Name or service not known")

    async with SourceClient(Outside.of(["https://example.com"]), fail).connected() as http:
        with pytest.raises(GatewayError, match="not resolved") as caught:
            async with http.ask("GET", "https://example.com/", {}, secret={}, redirects=False):
                pass
    assert caught.value.code is SOURCE_UNAVAILABLE
    with running_hub({}) as gone:
        url = gone.url
    assert await code_of([url], f"{url}/a") is SOURCE_UNAVAILABLE
