"""The simulated engine's /v1/responses, in the shapes recorded from vLLM 0.32; part of simulator.py."""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.support.simulated_events import WORDS, knows, model_of, received, streamed, words
from tests.support.simulated_forms import called_tool, wants_schema

if TYPE_CHECKING:
    from tests.support.simulator import Simulator

USAGE = {"input_tokens": 3, "output_tokens": len(WORDS), "total_tokens": 3 + len(WORDS)}


async def simulate_response(simulator: "Simulator", request: web.Request) -> web.StreamResponse:
    """Answer one request."""
    body, fault = await received(simulator, request, "responses")
    if not knows(simulator, body):
        said = f"The model `{body['model']}` does not exist."
        error = {"message": said, "type": "NotFoundError", "param": "model", "code": 404}
        return web.json_response({"error": error}, status=404)
    model = model_of(body, fault)
    if not body.get("stream"):
        await simulator.core()
        answer = {**_response(model, "completed"), **_formed(simulator, body)}
        if simulator.reasons is not None:
            texts = [{"type": "reasoning_text", "text": simulator.reasons}]
            thought = {"id": "rs_1", "type": "reasoning", "summary": [], "content": texts, "status": None}
            answer = {**answer, "output": [{**thought, "encrypted_content": None}, *answer["output"]]}
        return web.json_response(answer)
    return await streamed(simulator, request, _events(model, fault), fault)


def _formed(simulator: "Simulator", body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the output that a request demands, if the test has set one."""
    if simulator.form is None:
        return {}
    if (tool := called_tool(body)) is not None:
        call = {"id": "fc_1", "type": "function_call", "call_id": "call_1", "name": tool, "status": "completed"}
        return {"output": [{**call, "arguments": json.dumps(simulator.form)}]}
    return {"output": [_message(json.dumps(simulator.form))]} if wants_schema(body) else {}


def _events(model: str, fault: str | None) -> Iterator[bytes]:
    number = iter(range(1 << 20))
    if fault != "unlabelled":
        yield _event("response.created", next(number), response=_response(model, "in_progress"))
    for word in words(fault):
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
    message = _message("".join(WORDS))
    head = {"id": "resp_1", "object": "response", "created_at": 1, "model": model, "status": status}
    tail = {"output": [message] if done else [], "usage": USAGE if done else None, "tools": [], "tool_choice": "none"}
    return head | tail


def _message(text: str) -> Mapping[str, Any]:
    part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": [], "logprobs": None}
    return {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
