"""The connection itself (hostile.md U03, U12, F12), over real sockets: what no ASGI client can send."""

import asyncio
import resource

import pytest

from app.api import http_protocol as wire
from tests.support.gateway import Running
from tests.support.served import AUTH, line, on_a_port

HOST = b"Host: gateway\r\n"
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + AUTH
UPLOAD = b"POST /adapters HTTP/1.1\r\n" + HOST

UNPARSABLE = {
    "no_http": b"\x16\x03\x01\x02\x00\x01\x00",
    "words": b"hello there\r\n\r\n",
    "method_unknown": b"FROB /health HTTP/1.1\r\n" + HOST + b"\r\n",
    "version_9": b"GET /health HTTP/9.9\r\n" + HOST + b"\r\n",
    "length_twice": CHAT + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "length_and_chunked": CHAT + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "chunked_and_length": CHAT + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "chunked_twice_over": CHAT + b"Transfer-Encoding: chunked, identity\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "length_negative": CHAT + b"Content-Length: -1\r\n\r\n",
    "length_plus": CHAT + b"Content-Length: +2\r\n\r\n{}",
    "length_hex": CHAT + b"Content-Length: 0x2\r\n\r\n{}",
    "length_two_values": CHAT + b"Content-Length: 2, 2\r\n\r\n{}",
    "folded_header": b"GET /health HTTP/1.1\r\nHost: gateway\r\n x: y\r\n\r\n",
    "space_before_colon": b"GET /health HTTP/1.1\r\nHost : gateway\r\n\r\n",
    "nul_in_header": b"GET /health HTTP/1.1\r\nHost: gateway\r\nX: a\0b\r\n\r\n",
    "bare_cr_in_header": b"GET /health HTTP/1.1\r\nHost: gateway\r\nX: a\rb: c\r\n\r\n",
    "path_not_ascii": b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n",
}


@pytest.mark.parametrize("sent", UNPARSABLE.values(), ids=list(UNPARSABLE))
@pytest.mark.hostile("U03")
async def test_what_is_no_request_gets_the_envelope_and_the_door(running: Running, sent: bytes) -> None:
    before = refused(running, "bad_request")
    async with on_a_port(running) as port, line(port) as connection:
        await connection.send(sent)
        status, body = await connection.answer()
        assert (status, body["error"]["code"]) == (400, "bad_request")
        assert await connection.closed()
    assert refused(running, "bad_request") == before + 1
    assert not running.simulator.seen


def refused(running: Running, code: str) -> float:
    metric = running.gateway.context.metrics.uploads.rejected
    return float(sum(s.value for family in metric.collect() for s in family.samples if s.labels.get("code") == code))


@pytest.mark.parametrize(
    ("auth", "status"), [(b"", 401), (b"Authorization: Bearer wrong-wrong-wrong\r\n", 401), (AUTH, 413)]
)
@pytest.mark.hostile("U12")
async def test_u12_no_100_is_sent_to_who_may_not_send(running: Running, auth: bytes, status: int) -> None:
    async with on_a_port(running) as port, line(port) as connection:
        form = b"Content-Type: multipart/form-data; boundary=b\r\n"
        await connection.send(UPLOAD + auth + form + b"Content-Length: 5000000000\r\nExpect: 100-continue\r\n\r\n")
        answered, body = await connection.answer()  # the first thing that comes, so no 100 came before it
        assert answered == status, body
        assert await connection.closed()


@pytest.mark.hostile("U12")
async def test_u12_a_body_without_a_key_is_not_read(running: Running) -> None:
    """A stranger who sends all the same finds the connection closed after what the kernel's buffers hold."""
    async with on_a_port(running) as port, line(port) as connection:
        await connection.send(UPLOAD + b"Content-Length: 5000000000\r\n\r\n")
        sent = 0
        while sent < 200_000_000 and await connection.send(b"x" * 1_000_000):
            sent += 1_000_000
        assert sent < 50_000_000


@pytest.mark.parametrize("after", [b"", b"GET /health HTTP/1.1\r\n" + HOST], ids=["line", "header"])
@pytest.mark.hostile("U07")
async def test_an_endless_head_is_cut(running: Running, after: bytes) -> None:
    async with on_a_port(running) as port, line(port) as connection:
        await connection.send(after or b"GET /")
        sent = 0
        while sent < 50_000_000 and await connection.send((b"X: " if after else b"") + b"x" * 10_000):
            sent += 10_000
            await asyncio.sleep(0)
        assert sent < 20_000_000


@pytest.mark.hostile("U07")
async def test_many_headers_in_one_piece_are_too_many(running: Running) -> None:
    async with on_a_port(running) as port, line(port) as connection:
        await connection.send(b"GET /health HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 20_000 + b"\r\n")
        status, body = await connection.answer()
        assert (status, body["error"]["code"]) == (431, "head_too_large")
        assert await connection.closed()


@pytest.mark.parametrize("kind", ["extension", "trailer"])
@pytest.mark.hostile("U07")
async def test_framing_without_a_body_is_cut(running: Running, kind: str) -> None:
    """Chunk extensions and trailers reach no route, so no route's clock or cap would ever end them."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with on_a_port(running) as port, line(port) as connection:
        await connection.send(
            CHAT + b"Transfer-Encoding: chunked\r\n\r\n" + (b"1;" if kind == "extension" else b"0\r\n")
        )
        sent = 0
        while sent < 50_000_000 and await connection.send(
            b"x" * 10_000 if kind == "extension" else b"T: x\r\n" * 1_000
        ):
            sent += 10_000
            await asyncio.sleep(0)
        assert sent < 20_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
    assert not running.simulator.seen


async def test_a_body_in_chunks_of_one_byte_is_fine(running: Running) -> None:
    async with on_a_port(running) as port, line(port) as connection:
        data = b'{"model": "served", "messages": [{"role": "user", "content": "' + b"hi " * 10_000 + b'"}]}'
        await connection.send(CHAT + b"Transfer-Encoding: chunked\r\n\r\n")
        await connection.send(b"".join(b"1\r\n%c\r\n" % byte for byte in data) + b"0\r\n\r\n")
        status, body = await connection.answer()
        assert status == 200, body


@pytest.mark.parametrize(
    "sent", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: gate"], ids=["none", "l", "h"]
)
async def test_f12_a_head_that_does_not_come_frees_its_connection(
    running: Running, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "HEAD_S", 0.3)
    async with on_a_port(running) as port, line(port) as connection:
        await connection.send(sent)
        status, body = await connection.answer()
        assert (status, body["error"]["code"]) == (408, "head_timeout")
        assert await connection.closed()


async def test_f12_nor_does_the_next_head_of_a_kept_connection(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "HEAD_S", 0.3)
    async with on_a_port(running) as port, line(port) as connection:
        whole = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n"
        for _ in range(3):
            await connection.send(whole)
            assert await connection.answer() == (200, {"status": "ok"})
            await asyncio.sleep(0.15)
        await connection.send(whole[:20])
        status, body = await connection.answer()
        assert (status, body["error"]["code"]) == (408, "head_timeout")


async def test_requests_one_behind_the_other_are_answered_in_order(running: Running) -> None:
    async with on_a_port(running) as port, line(port) as connection:
        health, none = (
            b"GET /%s HTTP/1.1\r\n" % path + HOST + AUTH + b"\r\n" for path in (b"health", b"nowhere-at-all")
        )
        await connection.send(health + none + health)
        assert (await connection.answer())[0] == 200


async def test_websockets_are_not_spoken(running: Running) -> None:
    upgrade = (
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n\r\n"
    )
    async with on_a_port(running) as port, line(port) as connection:
        await connection.send(b"GET /adapters HTTP/1.1\r\n" + HOST + upgrade)
        assert (await connection.answer())[0] == 401
