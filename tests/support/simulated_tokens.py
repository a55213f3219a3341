"""The simulated engine's /tokenize, /detokenize, /v1/messages/count_tokens, and completions of token ids, in vLLM's shapes;
part of simulator.py.

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


class SimulatedTokens:
    """Completions of token ids: what the model says, and the log-probabilities of it."""

    def __init__(self, simulator: "Simulator") -> None:
        self._simulator = simulator
        self._prompts: set[str] = set()  # those that were continued: others begin with one of them

    async def answer(self, body: dict[str, Any]) -> web.StreamResponse:
        """Continue one prompt, or tell the likeliest next tokens of several."""
        model = body["model"]
        if model not in {self._simulator.model, *self._simulator.loaded}:
            return web.json_response({"error": {"message": "no such model", "code": 404}}, status=404)
        several = isinstance(body["prompt"][0], list)
        if not several:
            self._prompts.add("".join(map(chr, body["prompt"])))
        choices = [
            {"index": index, "text": "", "logprobs": await self._next(model, prompt, body["max_tokens"])}
            for index, prompt in enumerate(body["prompt"] if several else [body["prompt"]])
        ]
        return web.json_response({"id": "cmpl-1", "model": model, "choices": choices})

    async def _next(self, model: str, prompt: list[int], most: int) -> dict[str, Any]:
        text = "".join(map(chr, prompt))
        asked = max((one for one in self._prompts if text.startswith(one)), key=len)
        given = text.removeprefix(asked)
        says = self._simulator.says
        assert says is not None
        message = {"role": "user", "content": asked.rpartition(">")[2]}
        found = says(self._simulator.loaded.get(model, ""), {"model": model, "messages": [message]})
        whole = found if isinstance(found, str) else await found
        said = whole[len(given) :][:most] if whole.startswith(given) else "~"
        tokens = [f"token_id:{ord(one)}" for one in said]
        top = [{token: -0.01} | {f"token_id:{9000 + n}": -9.0 - n for n in range(19)} for token in tokens]
        return {"tokens": tokens, "token_logprobs": [-0.01] * len(tokens), "top_logprobs": top}


def _begin(simulator: "Simulator", request: web.Request, body: dict[str, Any]) -> web.StreamResponse | None:
    """Note a request; return the refusal of an unknown model."""
    simulator.seen.append(body)
    simulator.request_ids.append(request.headers.get("x-request-id", ""))
    if body["model"] in {simulator.model, *simulator.loaded}:
        return None
    said = f"The model `{body['model']}` does not exist."
    error = {"message": said, "type": "NotFoundError", "param": "model", "code": 404}
    return web.json_response({"error": error}, status=404)
