"""The simulated engine's /v1/responses, in the shapes recorded from vLLM 0.32; part of simulator.py."""

import asyncio
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from tests.support.simulator import Simulator

WORDS = ("t0", " t1", " t2")
USAGE = {"input_tokens": 3, "output_tokens": len(WORDS), "total_tokens": 3 + len(WORDS)}

FAULTS = ("half", "malformed", "error", "other", "nan", "unlabelled", "eof", "slow")
"""unlabelled: words before anyone has said whose they are. slow: a delta every 50 ms, for ever. The rest as for chat."""


async def simulate_response(simulator: "Simulator", request: web.Request) -> web.StreamResponse:
    """Answer one request."""
    body, fault = await request.json(), simulator.faults.get("responses")
    simulator.seen.append(body)
    simulator.request_ids.append(request.headers.get("x-request-id", ""))
    if body["model"] != simulator.model and body["model"] not in simulator.loaded:
        said = f"The model `{body['model']}` does not exist."
        error = {"message": said, "type": "NotFoundError", "param": "model", "code": 404}
        return web.json_response({"error": error}, status=404)
    model = "another@000000000000" if fault == "other" else body["model"]
    if not body.get("stream"):
        await simulator.core()
        return web.json_response(_response(model, "completed"))
    response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    async with simulator.run():
        for event in _events(model, fault):
            await simulator.core()
            await response.write(event)
            if fault == "slow":
                await asyncio.sleep(0.05)
        if fault == "half" and request.transport is not None:
            await asyncio.sleep(0.05)  # let what was sent be read before the connection is reset
            request.transport.abort()
    return response


def _events(model: str, fault: str | None) -> Iterator[bytes]:
    number = iter(range(1 << 20))
    if fault != "unlabelled":
        yield _event("response.created", next(number), response=_response(model, "in_progress"))
    for word in WORDS * (1 << 10) if fault == "slow" else WORDS:
        yield _event("response.output_text.delta", next(number), delta=word, output_index=0, content_index=0)
    match fault:
        case "half":
            yield b"event: response.completed\ndata: {"
        case "malformed":
            yield b'event: response.completed\ndata: {"type": \n\n'
        case "nan":
            yield b'event: x\ndata: {"type": "x", "n": NaN}\n\n'
        case "error":
            yield _event("error", next(number), code="server_error", message=f"{model} broke", param=None)
        case None | "unlabelled":
            yield _event("response.completed", next(number), response=_response(model, "completed"))


def _event(kind: str, number: int, **more: Any) -> bytes:
    said = json.dumps({**more, "sequence_number": number, "type": kind}, separators=(",", ":"))
    return f"event: {kind}\ndata: {said}\n\n".encode()


def _response(model: str, status: str) -> Mapping[str, Any]:
    done = status == "completed"
    part: dict[str, Any] = {"type": "output_text", "text": "".join(WORDS), "annotations": [], "logprobs": None}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    head = {"id": "resp_1", "object": "response", "created_at": 1, "model": model, "status": status}
    tail = {"output": [message] if done else [], "usage": USAGE if done else None, "tools": [], "tool_choice": "none"}
    return head | tail
