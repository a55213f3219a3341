"""The simulated engine's /v1/messages, in the shapes of vLLM 0.32; part of simulator.py."""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.support.simulated_events import WORDS, knows, model_of, received, streamed, words
from tests.support.simulated_forms import called_tool, wants_schema

if TYPE_CHECKING:
    from tests.support.simulator import Simulator

USAGE = {"input_tokens": 3, "output_tokens": len(WORDS)}


async def simulate_message(simulator: "Simulator", request: web.Request) -> web.StreamResponse:
    """Answer one request."""
    body, fault = await received(simulator, request, "messages")
    if not knows(simulator, body):
        return _error(404, "NotFoundError", f"The model `{body['model']}` does not exist.")
    if fault == "400":
        return _error(400, "BadRequestError", f"the engine says 400 of {body['model']}")
    model = model_of(body, fault)
    if not body.get("stream"):
        await simulator.core()
        block: dict[str, Any] = {"type": "text", "text": f"words of {body['model'].partition('@')[0]}"}
        stop = "end_turn"
        if simulator.form is not None and (tool := called_tool(body)) is not None:
            block, stop = {"type": "tool_use", "id": "call_1", "name": tool, "input": simulator.form}, "tool_use"
        elif simulator.form is not None and wants_schema(body):
            block["text"] = _dumps(simulator.form)
        thought = {"type": "thinking", "thinking": simulator.reasons, "signature": "s"}
        blocks = [block] if simulator.reasons is None else [thought, block]
        return web.json_response(_message(model, blocks, stop), dumps=_dumps)
    return await streamed(simulator, request, _events(model, fault), fault)


def _events(model: str, fault: str | None) -> Iterator[bytes]:
    if fault != "unlabelled":
        yield _event("message_start", message=_message(model, [], None))
    yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    for word in words(fault):
        yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
    match fault:
        case "half":
            yield b'event: message_delta\ndata: {"type'
        case "malformed":
            yield b'event: message_delta\ndata: {"type": \n\n'
        case "nan":
            yield b'event: ping\ndata: {"type": "ping", "n": NaN}\n\n'
        case "error":
            yield _event("error", error={"type": "internal_error", "message": f"{model} broke"})
        case None | "unlabelled":
            yield _event("content_block_stop", index=0)
            delta = {"stop_reason": "end_turn", "stop_sequence": None}
            yield _event("message_delta", delta=delta, usage=USAGE | {"input_tokens": 1, "cache_read_input_tokens": 2})
            yield _event("message_stop")


def _event(kind: str, **more: Any) -> bytes:
    return f"event: {kind}\ndata: {_dumps({'type': kind, **more})}\n\n".encode()


def _message(model: str, content: list[Any], stop: str | None) -> Mapping[str, Any]:
    head = {"id": "chatcmpl-1", "type": "message", "role": "assistant", "content": content, "model": model}
    return head | {"stop_reason": stop, "usage": USAGE if stop else USAGE | {"output_tokens": 0}}


def _error(status: int, kind: str, message: str) -> web.Response:
    """An error in Anthropic's envelope."""
    return web.json_response({"type": "error", "error": {"type": kind, "message": message}}, status=status)


def _dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
