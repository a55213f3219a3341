"""The OpenAI routes as ASGI sees them."""

import asyncio
import json
import logging
import time
from typing import Any

import pytest

from app.load.client import engine as engine_module
from tests.support.gateway import KEY, Running, form
from tests.support.waiting import STUCK_S

SERVED = "served"
"""What the house calls the model itself."""


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
    target = running.gateway.context.routing_table.resolve("first").engine_name
    request = asyncio.ensure_future(running.app(scope, receive, send))
    async with asyncio.timeout(STUCK_S):
        while running.gateway.context.routing_table.in_flight.idle(target):
            await asyncio.sleep(0.01)
    began = time.monotonic()
    left.set()
    await asyncio.wait_for(request, 5)
    assert running.gateway.context.routing_table.in_flight.idle(target)
    assert time.monotonic() - began < 1.0


async def test_a_hung_engine_costs_nobody_a_wait_once_it_is_known(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of the model that is served itself, which no pass of the reconciler loads or takes away."""
    monkeypatch.setattr(engine_module, "CONTROL_S", 0.3)
    await running.http.post("/adapters", files=form("first"))
    asked = {"model": SERVED, "messages": [{"role": "user", "content": "x"}]}
    assert (await running.http.post("/v1/chat/completions", json=asked)).status_code == 200
    for route in ("models", "chat"):
        running.simulator.faults[route] = "hang"
    async with asyncio.timeout(STUCK_S):
        while (await running.http.get("/ready")).status_code == 200:
            await asyncio.sleep(0.02)
    for model in (SERVED, "first"):
        began = time.monotonic()
        refused = await running.http.post("/v1/chat/completions", json=asked | {"model": model})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
        assert "retry-after" in refused.headers
        assert time.monotonic() - began < 1.0
    running.simulator.faults.clear()
    async with asyncio.timeout(STUCK_S):
        while (await running.http.post("/v1/chat/completions", json=asked)).status_code != 200:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/models"])
async def test_no_request_of_inference_waits_for_a_thread(
    running: Running, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    async def no_thread(*_: Any, **__: Any) -> None:
        raise AssertionError("a thread was asked for")

    monkeypatch.setattr("anyio.to_thread.run_sync", no_thread)
    if path == "/v1/models":
        answer = await running.http.get(path)
    else:
        asked = {"prompt": "a"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "a"}]}
        answer = await running.http.post(path, json={"model": "served", **asked})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("stream", [False, True])
async def test_what_was_left_out_of_a_request_is_named_in_a_header_and_in_the_log(
    running: Running, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    caplog.set_level(logging.DEBUG, "gateway")
    message = {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}
    asked = {"model": SERVED, "messages": [message], "stream": stream, "x\r\nset-cookie: y": 1, "seeds": [1]}
    answer = await running.http.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 200
    named = "messages[].content[].cache_control, x??set-cookie??y, seeds"
    assert answer.headers["x-gateway-ignored-fields"] == named
    assert "set-cookie" not in answer.headers
    [record] = [record for record in caplog.records if record.msg == "fields_ignored"]
    assert record.fields["fields"] == named  # type: ignore[attr-defined]
    assert record.levelno == logging.DEBUG
    text = {"type": "text", "text": "x"}
    assert running.simulator.seen[-1]["messages"] == [{"role": "user", "content": [text]}]
    plain = await running.http.post(
        "/v1/chat/completions", json={"model": SERVED, "messages": [message | {"content": "x"}]}
    )
    assert "x-gateway-ignored-fields" not in plain.headers


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"temperature": 9}, 400),
        ({"top_logprobs": 3}, 400),
        ({"prompt_logprobs": 1}, 400),
        ({"model": "nobody"}, 404),
        ({"max_tokens": 1 << 19}, 400),
        ({"max_tokens": 600}, 400),
    ],
)
async def test_a_refusal_names_what_was_left_out_before_it(running: Running, more: dict[str, Any], status: int) -> None:
    asked = {"model": SERVED, "seeds": [1], "messages": [{"role": "user", "content": "x", "y": 1}], **more}
    answer = await running.http.post("/v1/chat/completions", json=asked)
    assert (answer.status_code, answer.headers["x-gateway-ignored-fields"]) == (status, "seeds, messages[].y"), (
        answer.text
    )
    known = {key: value for key, value in asked.items() if key != "seeds"} | {"messages": []}
    plain = await running.http.post("/v1/chat/completions", json=known)
    assert plain.status_code >= 400
    assert "x-gateway-ignored-fields" not in plain.headers
