"""Clients that do not read what they asked for, over real sockets: the engine is held back, memory stays, and it ends."""

import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator

import pytest

from app.api import http_protocol as wire
from app.server.app import KEEP_ALIVE_S
from tests.support.gateway import Running
from tests.support.served import AUTH, line, on_a_port
from tests.support.waiting import STUCK_S

HOST = b"Host: gateway\r\n"
BODY = b'{"model":"served","messages":[{"role":"user","content":"hi"}],"stream":true}'
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + AUTH + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
HEALTH = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n"
SMALL = 4096  # bytes of our own receive buffer: what lies unread lies with the gateway
QUIET_S = 0.3
MEMORY_KIB = 16 << 10


@contextlib.asynccontextmanager
async def unread(port: int) -> AsyncIterator[socket.socket]:
    """A connection that has asked for an endless answer."""
    loop = asyncio.get_running_loop()
    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        plain.setblocking(False)
        await loop.sock_connect(plain, ("127.0.0.1", port))
        await loop.sock_sendall(plain, CHAT)
        yield plain


async def held_back(running: Running) -> int:
    """Waits until the engine can write no more; chunks it has written."""
    async with asyncio.timeout(STUCK_S):
        while True:
            before = running.simulator.chunks
            await asyncio.sleep(QUIET_S)
            if 0 < running.simulator.chunks == before:
                return before


async def freed(running: Running) -> None:
    async with asyncio.timeout(STUCK_S):
        while running.simulator.running:
            await asyncio.sleep(0.02)


async def test_who_does_not_read_holds_the_engine_back_and_memory_does_not_grow(running: Running) -> None:
    running.simulator.faults["chat"] = "flood"
    async with on_a_port(running) as port, unread(port):
        await held_back(running)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        chunks = running.simulator.chunks
        await asyncio.sleep(2.0)
        assert running.simulator.chunks == chunks
        assert running.simulator.running == 1
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY_KIB
    await freed(running)


@pytest.mark.parametrize("reads", [0, 1], ids=["nothing", "a byte at a time"])
async def test_who_takes_too_little_is_cut_off_and_the_engine_freed(
    running: Running, monkeypatch: pytest.MonkeyPatch, reads: int
) -> None:
    monkeypatch.setattr(wire, "READ_S", 1.0)
    running.simulator.faults["chat"] = "flood"
    loop = asyncio.get_running_loop()

    async def trickle(plain: socket.socket) -> None:
        while reads and await loop.sock_recv(plain, reads):
            await asyncio.sleep(0.05)

    async with on_a_port(running) as port, unread(port) as plain:
        reading = asyncio.create_task(trickle(plain))
        while not running.simulator.running:
            await asyncio.sleep(0.01)
        async with asyncio.timeout(STUCK_S):
            while running.simulator.running:
                await asyncio.sleep(0.02)
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            await reading
        metrics = (await running.http.get("/metrics")).text
    assert 'code="read_timeout"' in metrics
    assert running.gateway.context.routing_table.in_flight.idle("served")


async def test_who_pauses_and_reads_on_gets_everything(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "READ_S", 5.0)
    running.simulator.faults["chat"] = "flood"
    loop = asyncio.get_running_loop()
    async with on_a_port(running) as port, unread(port) as plain:
        chunks = await held_back(running)
        async with asyncio.timeout(STUCK_S):
            while running.simulator.chunks < 2 * chunks:
                assert await loop.sock_recv(plain, 1 << 16)
        assert 'code="read_timeout"' not in (await running.http.get("/metrics")).text
    await freed(running)


@pytest.mark.slow
async def test_a_kept_connection_outlasts_the_pools_of_clients(running: Running) -> None:
    assert KEEP_ALIVE_S > 60  # load balancers
    async with on_a_port(running) as port, line(port) as connection:
        for _ in range(2):
            await connection.send(HEALTH)
            assert await connection.answer() == (200, {"status": "ok"})
            await asyncio.sleep(6.0)  # httpx, and so the openai SDK, keeps a connection 5 s
