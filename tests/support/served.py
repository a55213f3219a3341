"""The gateway behind real sockets: uvicorn as `serve` starts it, over the house of tests/support/house.py."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from app.server.app import server_options
from tests.support.gateway import KEY, Running
from tests.support.waiting import STUCK_S

AUTH = f"Authorization: Bearer {KEY}\r\n".encode()


@asynccontextmanager
async def on_a_port(running: Running) -> AsyncIterator[int]:
    """Serve this house's application on a port of loopback; the house itself stays open."""
    options = {**server_options(running.gateway), "lifespan": "off", "host": "127.0.0.1", "port": 0}
    server = uvicorn.Server(uvicorn.Config(running.app, **options))
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(STUCK_S):
        while not server.started:
            await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving


class Line:
    """One raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> bool:
        """Send; False when the other side has gone."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except ConnectionError:
            return False
        return not self.reader.at_eof()

    async def answer(self) -> tuple[int, Any]:
        """Status and body of the next response (with a Content-Length)."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        return int(head.split()[1]), json.loads(await self.reader.readexactly(length) or b"null")

    async def closed(self) -> bool:
        """Whether nothing more comes and the other side ends the connection."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True


@asynccontextmanager
async def line(port: int, source: str = "127.0.0.1") -> AsyncIterator[Line]:
    """Connect. source: the client's address."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    try:
        async with asyncio.timeout(30):
            yield Line(reader, writer)
    finally:
        writer.close()
