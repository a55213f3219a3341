"""The OpenAI routes as ASGI sees them."""

import asyncio
import json
import time
from typing import Any

from tests.support.house import KEY, Running, form


async def test_a_client_that_leaves_before_the_answer_stops_the_engines_work(running: Running) -> None:
    await running.http.post("/adapters", files=form("first"))
    running.simulator.faults["chat"] = "hang"
    body = json.dumps({"model": "first", "messages": [{"role": "user", "content": "x"}]}).encode()
    incoming = [{"type": "http.request", "body": body, "more_body": False}]
    left = asyncio.Event()
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if incoming:
            return incoming.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {KEY}".encode())],
    }
    target = running.house.context.routes.resolve("first").engine_name
    request = asyncio.ensure_future(running.app(scope, receive, send))
    async with asyncio.timeout(5):
        while running.house.context.routes.idle(target):
            await asyncio.sleep(0.01)
    began = time.monotonic()
    left.set()
    await asyncio.wait_for(request, 5)
    assert running.house.context.routes.idle(target)
    assert time.monotonic() - began < 1.0
