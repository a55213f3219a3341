"""A stand-in for vLLM's API server: the same routes, the same shapes, and faults on demand.

What it imitates was recorded from vLLM 0.32 (tests/load/test_contract.py runs the same tests against both): plain text
from load and unload, OpenAI-like errors with a numeric code, chunks in vLLM's order of keys. It computes nothing: an
answer's words say which name was asked. A fault is set per route, `simulator.faults["chat"] = "half"`, and stays until
it is removed; which there are is said in FAULTS.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

from aiohttp import web

from tests.support.simulated_chunks import TOKENS, chunk_of, usage_of
from tests.support.simulated_forms import called_tool, wants_schema
from tests.support.simulated_messages import simulate_message
from tests.support.simulated_responses import simulate_response
from tests.support.simulated_tokens import (
    MAX_MODEL_LEN,
    SimulatedTokens,
    simulate_count,
    simulate_detokenize,
    simulate_tokenize,
)
from tests.support.tally import Faults
from tests.support.vllm_metrics import exposition

MODEL = "tiny-llama"

FAULTS = {
    "*": ("reset", "hang", "500", "garbage"),  # on every route
    "load": ("lie", "500-though-loaded", "reset-though-loaded"),  # lie: 200, and not loaded
    "health": ("503",),
    "metrics": ("silent",),  # as with --disable-log-stats: nothing of the core's
    "core": ("hang", "prefill"),  # what the server does by itself, it goes on doing
    "chat": (
        "half",
        "eof",
        "malformed",
        "error",
        "other",
        "nan",
        "endless",
        "dead-core",
        "400",
        "503",
        "slow",
        "cut",
        "flood",
    ),
}
"""core: hang: nothing is computed any more, until it is removed; prefill: nor is any token, but the cache fills ·
half: the connection breaks in mid-chunk · eof: a clean end without [DONE] · malformed: an event that is not JSON ·
error: vLLM's error event · other: answers as another model · nan: a number JSON does not have · endless: an event
that never ends · dead-core: 500 as when EngineCore is gone · slow: a chunk every 50 ms, for ever · flood: chunks without
end, as fast as they are taken · cut: half a body that is no stream."""

ACCEPTING_TURNS = 4
"""Turns of the event loop from a connection's acceptance until the server knows of it. Python 3.11 leaves a connection open
whose server is closed in between, so no more are accepted first."""

EMPTY_MEMBERS = dict.fromkeys(("refusal", "annotations", "audio", "function_call"))
"""Members that vLLM writes in every message of an answer. Clients keep them, and send them back."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Says = Callable[[str, Mapping[str, Any]], str | Awaitable[str]]
"""Path of the adapter that is asked, or "", and the request → the answer's text."""


class Simulator:
    """One simulated engine on a Unix socket. `loaded`: name → path. `seen`: bodies of inference requests."""

    def __init__(self, socket: Path, model: str = MODEL) -> None:
        self.socket, self.model = socket, model
        self.url = f"unix:{socket}"
        self.loaded: dict[str, str] = {}
        self.faults: dict[str, str] = Faults()
        self.seen: list[dict[str, Any]] = []
        self.request_ids: list[str] = []
        self.loads: list[str] = []
        self.broken_names: set[str] = set()  # load with 200, answer with NaN
        self.resolver: Callable[[str], Awaitable[str | None]] | None = None  # name → path, as the plugin's (plugin/)
        self.says: Says | None = None  # text of a chat's answer
        self.reasons: str | None = None  # reasoning before whole answers of the chat, responses and messages routes
        self.form: Any = None  # JSON of whole answers to requests that demand a schema or a tool
        self.without_effect: set[str] = set()  # adapters that answer as the served model
        self.embeds = False
        self.root = "/models/tiny"  # the directory that it says it serves
        self.checkpoint: str | None = "aligned"  # which model its log-probabilities are of; None: it tells none
        self.rounding = 0.0  # nats that they are off, this way or that
        self.compared = 0  # requests for log-probabilities of texts, which are not among `seen`
        self.developers = False  # VLLM_SERVER_DEV_MODE
        self.steps = 0  # of the core
        self._cached = 0.0  # share of the KV cache in use, more with each look while a long prompt is read
        self.tokens = SimulatedTokens(self)
        self.chunks = 0  # of streams, written so far
        self.running = 0  # inference requests being answered now, and those of any kind that hang
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Begin to listen, having forgotten every adapter, as vLLM does after a restart."""
        self.loaded.clear()
        app = web.Application()
        app.add_routes(
            [
                web.get("/health", self._faulty("health", self._health)),
                web.get("/metrics", self._faulty("metrics", self._metrics)),
                web.get("/is_sleeping", self._faulty("is_sleeping", self._is_sleeping)),
                web.get("/v1/models", self._faulty("models", self._models)),
                web.post("/v1/load_lora_adapter", self._faulty("load", self._load)),
                web.post("/v1/unload_lora_adapter", self._faulty("unload", self._unload)),
                web.post("/v1/chat/completions", self._faulty("chat", self._chat)),
                web.post("/v1/completions", self._faulty("completions", self._completions)),
                web.post("/v1/responses", self._faulty("responses", self._responses)),
                web.post("/v1/embeddings", self._faulty("embeddings", self._embeddings)),
                web.post("/v1/messages", self._faulty("messages", partial(simulate_message, self))),
                web.post("/v1/messages/count_tokens", self._faulty("count_tokens", partial(simulate_count, self))),
                web.post("/tokenize", self._faulty("tokenize", partial(simulate_tokenize, self))),
                web.post("/detokenize", self._faulty("detokenize", partial(simulate_detokenize, self))),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        self._listening = self._bound()
        await web.SockSite(self._runner, self._listening).start()

    def _bound(self) -> socket.socket:
        """The socket that it listens at."""
        self.socket.unlink(missing_ok=True)
        bound = socket.socket(socket.AF_UNIX)
        bound.bind(str(self.socket))
        return bound

    @property
    def connections(self) -> int:
        """Connections open to it now."""
        server = self._runner.server if self._runner is not None else None
        return len(server.connections) if server is not None else 0

    async def stop(self) -> None:
        """Refuse connections from now on, and break those there are."""
        runner, self._runner = self._runner, None
        if runner is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            for _ in range(ACCEPTING_TURNS):
                await asyncio.sleep(0)
            await runner.cleanup()
            self._listening.close()
        self.socket.unlink(missing_ok=True)

    def _faulty(self, route: str, handler: Handler) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            match self.faults.get(route):
                case "reset":
                    return _reset(request)
                case "hang":
                    async with self.run():
                        await asyncio.sleep(3600)
                case "500":
                    return _error(500, "something broke", "InternalServerError")
                case "garbage":
                    return web.Response(body=b"\x00garbage{", content_type="application/json")
            return await handler(request)

        return handle

    async def _health(self, _: web.Request) -> web.StreamResponse:
        return web.Response(status=503 if self.faults.get("health") == "503" else 200)

    async def _is_sleeping(self, _: web.Request) -> web.StreamResponse:
        """One of the routes that vLLM has with VLLM_SERVER_DEV_MODE=1 only."""
        return web.json_response({"is_sleeping": False}, status=200 if self.developers else 404)

    async def _metrics(self, _: web.Request) -> web.StreamResponse:
        self._cached += 1e-6 * (self.faults.get("core") == "prefill")
        text = exposition(self.steps, self.model, self._cached)
        return web.Response(text="" if "metrics" in self.faults else text, content_type="text/plain")

    async def _models(self, _: web.Request) -> web.StreamResponse:
        cards = [{"id": self.model, "object": "model", "root": self.root, "parent": None}]
        cards += [{"id": n, "object": "model", "root": p, "parent": self.model} for n, p in self.loaded.items()]
        return web.json_response({"object": "list", "data": cards})

    async def _load(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        name, path, fault = body["lora_name"], body["lora_path"], self.faults.get("load")
        self.loads.append(name)
        if fault == "lie":
            return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")
        if name in self.loaded:
            said = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set"
            return _error(400, f"{said} 'load_inplace' to True.", "InvalidUserInput")
        if not await asyncio.to_thread((Path(path) / "adapter_config.json").is_file):
            said = f"Loading lora {name} failed: No adapter found for {path}"
            return _error(404, said, "NotFoundError")
        await self.core()
        self.loaded[name] = path
        if fault == "500-though-loaded":
            return _error(500, "", "InternalServerError")
        if fault == "reset-though-loaded":
            return _reset(request)
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: web.Request) -> web.StreamResponse:
        name = (await request.json())["lora_name"]
        if self.loaded.pop(name, None) is None:
            return _error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._infer(request, chat=True)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._infer(request, chat=False)

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        return await simulate_response(self, request)

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        """As vLLM answers where it serves a model that generates; `embeds`: as where it serves one that embeds."""
        if not self.embeds:
            return web.json_response({"detail": "Not Found"}, status=404)
        body = await request.json()
        self.seen.append(body)
        await self.core()
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}]
        usage = {"prompt_tokens": 3, "total_tokens": 3}
        answer = {"id": "embd-1", "object": "list", "model": body["model"], "data": data, "usage": usage}
        return web.json_response(answer)

    async def _infer(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        body, fault = await request.json(), self.faults.get("chat" if chat else "completions")
        if body.get("return_tokens_as_token_ids"):
            return await self.tokens.answer(body)
        if not chat and isinstance(body["prompt"], list) and isinstance(body["prompt"][0], str):
            self.compared += 1
            return self._go_on(body)
        self.seen.append(body)
        self.request_ids.append(request.headers.get("x-request-id", ""))
        if self.resolver is not None and body["model"] not in {self.model, *self.loaded}:
            found = await self.resolver(body["model"])
            self.loaded |= {body["model"]: found} if found is not None else {}
        if body["model"] != self.model and body["model"] not in self.loaded:
            return _error(404, f"The model `{body['model']}` does not exist.", "NotFoundError")
        if body.get("max_tokens", 1) > MAX_MODEL_LEN:
            said = f"max_tokens={body['max_tokens']} cannot be greater than max_model_len={MAX_MODEL_LEN}."
            return _error(400, said, "BadRequestError", "max_tokens")
        if fault in ("400", "503"):
            return _error(int(fault), f"the engine says {fault} of {body['model']}", "BadRequestError")
        if fault == "dead-core":
            return _error(500, "EngineCore encountered an issue.", "InternalServerError")
        async with self.run():
            if body.get("stream"):
                return await self._stream(request, body, fault)
            return await self._whole(request, body, fault, chat=chat)

    def _go_on(self, body: Mapping[str, Any]) -> web.StreamResponse:
        """The likeliest next tokens of several texts, as the gateway asks for them to know the model again."""
        if body["model"] not in {self.model, *self.loaded}:
            return _error(404, f"The model `{body['model']}` does not exist.", "NotFoundError")
        name = body["model"].partition("@")[0]
        effect = "" if name in {self.model, *self.without_effect} else name
        if self.checkpoint is None:
            return _error(400, "logprobs are disabled", "BadRequestError", "logprobs")
        choices = [
            {"index": index, "text": "w", "logprobs": {"top_logprobs": [self._log_probabilities(effect + text)]}}
            for index, text in enumerate(body["prompt"])
        ]
        return web.json_response({"id": "cmpl-1", "model": self.model, "choices": choices})

    def _log_probabilities(self, text: str) -> Any:
        """Five tokens, 0 to −8 nats; others for another checkpoint."""
        numbers = [crc32(f"{self.checkpoint} {n} {text}".encode()) for n in range(5)]
        return {f"w{n % 50}": -8 * n / 2**32 + (self.rounding if n % 2 else -self.rounding) for n in numbers}

    async def core(self) -> None:
        """Wait until the core computes."""
        while self.faults.get("core"):
            await asyncio.sleep(0.005)
        self.steps += 1

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Counted as running."""
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    async def _whole(
        self, request: web.Request, body: Mapping[str, Any], fault: str | None, *, chat: bool
    ) -> web.StreamResponse:
        await self.core()
        model = "another@000000000000" if fault == "other" else body["model"]
        said = f"words of {body['model'].partition('@')[0]}"
        if chat and self.says is not None:
            text = self.says(self.loaded.get(body["model"], ""), body)
            said = text if isinstance(text, str) else await text
        number = float("nan") if fault == "nan" or body["model"] in self.broken_names else -0.5
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length" if self.form is None else "stop"}
        if chat:
            message: dict[str, Any] = {"role": "assistant", "content": said}
            if self.reasons is not None or self.form is not None:
                message |= {**EMPTY_MEMBERS, "reasoning": self.reasons}
            if self.form is not None and (tool := called_tool(body)) is not None:
                function = {"name": tool, "arguments": json.dumps(self.form)}
                message |= {"content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": function}]}
                choice["finish_reason"] = "tool_calls"
            elif self.form is not None and wants_schema(body):
                message["content"] = json.dumps(self.form)
            choice |= {"message": message, "logprobs": None, "score": number}
        else:
            choice |= {"text": said, "logprobs": {"token_logprobs": [number], "tokens": ["w"]}}
        usage = {"prompt_tokens": 3, "total_tokens": 3 + TOKENS, "completion_tokens": TOKENS}
        kind = "chat.completion" if chat else "text_completion"
        answer = {"id": "cmpl-1", "object": kind, "created": 1, "model": model, "choices": [choice], "usage": usage}
        raw = json.dumps(answer, separators=(",", ":")).encode()
        if fault == "cut":
            response = web.StreamResponse(headers={"content-type": "application/json"})
            response.content_length = len(raw)
            await response.prepare(request)
            await response.write(raw[:20])
            return _reset(request)
        return web.Response(body=raw, content_type="application/json")

    async def _stream(self, request: web.Request, body: Mapping[str, Any], fault: str | None) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        model = "another@000000000000" if fault == "other" else body["model"]
        total = 1_000_000 if fault in ("slow", "flood") else TOKENS
        for index in range(total):
            await self.core()
            chunk = chunk_of(model, f"t{index} ", None if index < total - 1 else "length")
            if index == 2 and fault not in (None, "slow", "flood"):
                return await _break(response, request, fault, chunk)
            await response.write(chunk)
            self.chunks += 1
            if fault == "slow":
                await asyncio.sleep(0.05)
        if (body.get("stream_options") or {}).get("include_usage"):
            await response.write(usage_of(model))
        await response.write(b"data: [DONE]\n\n")
        return response


async def _break(response: web.StreamResponse, request: web.Request, fault: str, chunk: bytes) -> web.StreamResponse:
    """End a stream the wrong way."""
    if fault == "half":
        await response.write(chunk[:40])
        await asyncio.sleep(0.05)  # let what was sent be read before the connection is reset
        return _reset(request)
    if fault == "endless":
        for _ in range(1 << 12):
            await response.write(b"data: " + b"x" * (1 << 14))
    if fault == "error":
        error = {"message": "EngineCore is dead", "type": "InternalServerError", "param": None, "code": 500}
        await response.write(b"data: " + json.dumps({"error": error}).encode() + b"\n\n" + b"data: [DONE]\n\n")
    wrong = {"malformed": b'data: {"id": \n\n', "nan": chunk.replace(b'"index":0', b'"index":NaN'), "other": chunk}
    await response.write(wrong.get(fault, b""))
    return response


def _error(status: int, message: str, kind: str, param: str | None = None) -> web.Response:
    error = {"message": message, "type": kind, "param": param, "code": status}
    return web.json_response({"error": error}, status=status)


def _reset(request: web.Request) -> web.StreamResponse:
    """Break the connection without another byte."""
    if request.transport is not None:
        request.transport.abort()
    raise asyncio.CancelledError
