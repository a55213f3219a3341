"""Hosts, paths, methods, encodings that are no plain ones (hostile.md U15, P09, U10): one envelope, no route reached."""

import re
from pathlib import Path
from urllib.parse import unquote

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from app.api.access.request_checks import SINGLE
from tests.support.gateway import OpenHouse, Running

ROOT = Path(__file__).parents[2]
HOSTS = {
    "U15_badhost_query": b"a/?x=",
    "U15_badhost_fragment": b"a#x",
    "U15_userinfo": b"user@gateway",
    "U15_path": b"gateway/adapters",
    "U15_space": b"gate way",
    "U15_comma": b"a, b",
    "U15_empty": b"",
    "U15_port_text": b"gateway:http",
    "U15_port_too_big": b"gateway:65536",
    "U15_two_ports": b"gateway:1:2",
    "U15_not_ascii": "gat\u00e9way".encode("latin-1"),
    "U15_control": b"gate\x1bway",
    "U15_label_of_64": b"a" * 64 + b".example",
    "U15_long": b"a." * 130 + b"example",
    "U15_bracket": b"[::1",
    "U15_no_address": b"[:::1]",
    "U15_dots": b"a..b",
}


@pytest.mark.parametrize("host", HOSTS.values(), ids=list(HOSTS))
@pytest.mark.hostile("U15")
async def test_a_malformed_host_is_refused_everywhere(running: Running, host: bytes) -> None:
    for path in ("/health", "/adapters", "/nowhere"):
        request = running.http.build_request("GET", f"http://gateway{path}")
        request.headers = httpx.Headers([(b"host", host), *[h for h in request.headers.raw if h[0].lower() != b"host"]])
        answer = await running.http.send(request)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_host"), answer.text


@pytest.mark.parametrize("hosts", [[], [b"gateway", b"evil"], [b"gateway", b"gateway"]], ids=["none", "two", "twice"])
@pytest.mark.hostile("U15")
async def test_one_host_header_there_is(running: Running, hosts: list[bytes]) -> None:
    request = running.http.build_request("GET", "/health")
    request.headers = httpx.Headers([(b"host", host) for host in hosts])
    assert (await running.http.send(request)).json()["error"]["code"] == "bad_host"


@pytest.mark.parametrize("host", ["gateway", "GATEWAY:8080", "a.b-c.example.", "127.0.0.1:1", "[::1]:8080", "my_pod"])
async def test_an_ordinary_host_is_none_of_our_business(running: Running, host: str) -> None:
    assert (await running.http.get("/health", headers={"Host": host})).status_code == 200


async def test_an_operator_may_name_the_hosts(open_gateway: OpenHouse) -> None:
    async with open_gateway(allowed_hosts="llm.example, localhost") as running:
        for host, status in {
            "llm.example": 200,
            "LLM.example.:443": 200,
            "localhost:8080": 200,
            "gateway": 400,
        }.items():
            assert (await running.http.get("/health", headers={"Host": host})).status_code == status, host


TWICE = {
    "authorization": "Bearer a-key-for-the-tests",
    "content-type": "application/json",
    "cookie": "a=b",
    "origin": "http://gateway",
    "sec-fetch-site": "none",
    "x-api-key": "a-key-for-the-tests",
    "x-console": "1",
    "x-request-id": "mine",
    "x-weights-sha256": "0" * 64,
}


@pytest.mark.parametrize("second", ["same", "other"])
@pytest.mark.parametrize("name", TWICE)
@pytest.mark.hostile("U24")
async def test_a_header_that_is_read_stands_there_once(running: Running, name: str, second: str) -> None:
    """Of two, one reader takes the first and another the last."""
    others = [(key, value) for key, value in running.http.headers.raw if key.lower() != name.encode()]
    twice = [(name.encode(), value.encode()) for value in (TWICE[name], TWICE[name] if second == "same" else "x")]
    for method, path in (("GET", "/adapters"), ("POST", "/v1/chat/completions"), ("POST", "/adapters"), ("GET", "/")):
        request = running.http.build_request(method, path)
        request.headers = httpx.Headers([(b"host", b"gateway"), *others, *twice])
        answer = await running.http.send(request)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "bad_request", name), answer.text
        assert answer.headers["connection"] == "close"
    assert not running.simulator.seen


def test_every_header_that_the_code_reads_stands_in_the_list() -> None:
    """By the names that stand in the code; of these others, why not."""
    elsewhere = {
        "host": "a refusal of its own",
        "content-encoding": "every one is looked at",
        "cache-control": "only sent",
        "connection": "only sent",
        "content-security-policy": "only sent",
        "x-accel-buffering": "only sent",
        "www-authenticate": "only sent",
        "x-adapter-version": "only sent",
        "x-adapter-digest": "only sent",
        "x-gateway-overhead-ms": "only sent",
        "x-gateway-ignored-fields": "only sent",
    }
    known = {*elsewhere, *(name.decode() for name in SINGLE)}
    reads = re.compile(r"""headers(?:\.get|\.getlist)?[(\[]["']([a-zA-Z-]+)["']|b?["']((?:x|sec)-[a-z0-9-]+)["']""")
    rooms = [ROOT / "app" / room for room in ("api", "console", "upload")]
    files = [path for room in rooms for path in room.rglob("*.py")]
    found = {name.lower() for path in files for pair in reads.findall(path.read_text()) for name in pair if name}
    assert "authorization" in found
    assert "x-console" in found
    assert found <= known


PATHS = [
    "/v1/chat/completions/../load_lora_adapter",
    "/v1/./chat/completions",
    "//v1/chat/completions",
    "/v1//chat/completions",
    "/v1/chat%2fcompletions",
    "/v1%2Fchat/completions",
    "/v1/chat/completions%00",
    "/v1/chat/completions%0d%0aX:1",
    "/v1/%2e%2e/adapters",
    "/v1/..%5cadapters",
    "/v1/chat%5ccompletions",
    "/v1/chat%252fcompletions",
    "/v1/chat/completions%",
    "/v1/chat/completions%zz",
    "/adapters/%c3%a9",
    "/v1\\chat\\completions",
    "/adapters/<script>",
    '/adapters/"x"',
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/server_info",
    "/tokenizer_info",
    "/tokenize/",
    "//tokenize",
    "/v1/tokenize",
    "/sleep",
    "/pause",
    "/collective_rpc",
    "/v1/chat/completions//",
    "/V1/CHAT/COMPLETIONS",
    "/v1/chat/completions;x=1",
    "/docs/oauth2-redirect",
    "/redoc",
    "/.env",
    "/" + "a" * 5000,
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:40])
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.hostile("P09")
async def test_paths_that_are_no_routes_reach_nothing(running: Running, method: str, path: str) -> None:
    running.simulator.seen.clear()

    async def raw(scope: Scope, receive: Receive, send: Send) -> None:  # httpx would put the path in order
        await running.app({**scope, "raw_path": path.encode(), "path": unquote(path)}, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(raw), headers=running.http.headers) as client:
        answer = await client.request(method, "http://gateway/", json={"model": "served", "messages": []})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (404, "not_found"), answer.text
    assert error["message"].isprintable()
    assert len(error["message"]) < 400
    assert not running.simulator.seen
    assert not running.simulator.loads


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/tokenize", "/adapters", "/adapters/x", "/health", "/metrics"]
)
@pytest.mark.parametrize("method", ["PUT", "PATCH", "OPTIONS", "TRACE", "HEAD", "PROPFIND", "CONNECT"])
@pytest.mark.hostile("P09")
async def test_other_methods_are_refused(running: Running, method: str, path: str) -> None:
    answer = await running.http.request(method, path)
    assert answer.status_code == 405
    if method != "HEAD":
        assert answer.json()["error"]["code"] == "method_not_allowed"
    assert answer.headers["allow"]


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate, gzip", "identity, gzip", "GZIP", "x"])
@pytest.mark.parametrize("path", ["/adapters", "/screen", "/v1/chat/completions", "/v1/completions", "/tokenize"])
@pytest.mark.hostile("U10")
async def test_no_body_is_unpacked(running: Running, path: str, coding: str) -> None:
    answer = await running.http.post(path, content=b"\x1f\x8b", headers={"Content-Encoding": coding})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_encoding")
