"""The simulated engine's /tokenize, /detokenize and /v1/messages/count_tokens, in vLLM's shapes; part of simulator.py.

Its tokenizer has a token for each character, the one with the character's number.
"""

from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from tests.support.simulator import Simulator

MAX_MODEL_LEN = 512


async def simulate_tokenize(simulator: "Simulator", request: web.Request) -> web.StreamResponse:
    """Answer a request for token ids."""
    body = await request.json()
    if (refused := _begin(simulator, request, body)) is not None:
        return refused
    if "prompt" in body:
        said = body["prompt"]
    else:
        said = "".join(f"<{message['role']}>{message['content']}" for message in body["messages"])
    strings = list(said) if body.get("return_token_strs") else None
    found = {"count": len(said), "max_model_len": MAX_MODEL_LEN, "tokens": [ord(one) for one in said]}
    return web.json_response({**found, "token_strs": strings})


async def simulate_count(simulator: "Simulator", request: web.Request) -> web.StreamResponse:
    """Answer a request for the number of tokens."""
    body = await request.json()
    if (refused := _begin(simulator, request, body)) is not None:
        return refused
    said = "".join(f"<{message['role']}>{message['content']}" for message in body["messages"])
    return web.json_response({"input_tokens": len(said)})


async def simulate_detokenize(simulator: "Simulator", request: web.Request) -> web.StreamResponse:
    """Answer a request for text."""
    body = await request.json()
    if (refused := _begin(simulator, request, body)) is not None:
        return refused
    return web.json_response({"prompt": "".join(map(chr, body["tokens"]))})


def _begin(simulator: "Simulator", request: web.Request, body: dict[str, Any]) -> web.StreamResponse | None:
    """Note a request; return the refusal of an unknown model."""
    simulator.seen.append(body)
    simulator.request_ids.append(request.headers.get("x-request-id", ""))
    if body["model"] in {simulator.model, *simulator.loaded}:
        return None
    said = f"The model `{body['model']}` does not exist."
    error = {"message": said, "type": "NotFoundError", "param": "model", "code": 404}
    return web.json_response({"error": error}, status=404)
