"""Relay of inference requests to an engine, and of its answers back under the model name that the request used.

An answer is accepted only if it is JSON, finite, and labelled with the requested engine name; anything else becomes a
502, or an error event in the middle of a stream. A request that may have run is never sent again: if there are several
engines, only a request that could not be sent at all, or reached an engine that had lost the adapter, goes to the next
one.
"""

import asyncio
import contextlib
import hmac
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from app.concurrency.pools import Pool
from app.domain.errors import (
    ENGINE_UNAVAILABLE,
    INVALID_REQUEST,
    NOT_OFFERED,
    UPSTREAM_FAILED,
    GatewayError,
    Refused,
    Unavailable,
)
from app.load.client.engine import JSON_HEADERS, Answering, EngineResponse, words
from app.load.client.response import NotReached
from app.observe.log import event
from app.serve.asker import GATEWAY, Asker
from app.serve.conversation import conversation_of
from app.serve.json_body import SMALL_BYTES, is_small
from app.serve.relabel import refusal, relabel
from app.serve.request import Inference, addressed, parse
from app.serve.request_load import TOKENIZING, Kind, Load
from app.serve.responses_stream import MessageStream, ResponseStream
from app.serve.routing_table import RoutingTable, Target
from app.serve.shadows import Shadows
from app.serve.sse import strict_json
from app.serve.stream import Stream, usage_of
from app.serve.timing import Clock, Hooks, NoHooks

PATHS: Final[Mapping[Kind, str]] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "embeddings": "/v1/embeddings",
    "messages": "/v1/messages",
    "count_tokens": "/v1/messages/count_tokens",
    "tokenize": "/tokenize",
    "detokenize": "/detokenize",
}
"""Paths of the engine that a request can reach, and no others; never built from request data."""

_STREAMS: Final[Mapping[Kind, type[Stream]]] = {"responses": ResponseStream, "messages": MessageStream}
"""Streams of kinds whose events have names."""

MAX_ANSWER_BYTES: Final = 32 << 20
"""Bytes of an answer that is not streamed: 16 choices with 20 log-probabilities for each of thousands of tokens."""

MAX_ERROR_BYTES: Final = 1 << 20
"""Bytes read of an engine's error, at most."""

NOT_FOUND: Final = 404

NO_ROUTE: Final = "Not Found"
"""Message of vLLM's server for a path that it does not have; for a model that it does not have, the message is longer."""

JSON_TYPE: Final = "application/json"
SSE_TYPE: Final = "text/event-stream"


Choose = Callable[[str], Sequence[Answering]]
"""Engine name → engines that answer to it now, in the order to be tried; at least one. Raises Unavailable."""


Admit = Callable[[Load], Awaitable[None]]
"""Waits until a request with this load may be sent to the engine. Raises Refused."""


def only(engine: Answering, up: Callable[[], bool] = lambda: True) -> Choose:
    """Return the `Choose` of a gateway with one engine.

    up: returns whether the engine answered when last asked; requests do not wait again for one that hangs.
    """
    one = (engine,)

    def choose(_: str) -> Sequence[Answering]:
        if not up():
            raise Unavailable(ENGINE_UNAVAILABLE, "the engine does not answer at present")
        return one

    return choose


@dataclass(frozen=True, slots=True)
class _Read:
    """Checked request. written: its body for the engine without the model name. conversation: None if its model means one
    version only."""

    inference: Inference
    written: bytes
    conversation: bytes | None


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer for the caller.

    body: bytes, or a Stream that the sender must close when done, however sending ends.
    overhead_s: seconds spent in the gateway, not in the engine, until the answer (of a stream, its head) was ready.
    ignored: names of the fields that were left out of the request, as a header's value; "" if none was.
    """

    status: int
    content_type: str
    body: "bytes | Stream"
    target: Target
    overhead_s: float = 0.0
    ignored: str = ""


class Relay:
    """Relay of requests to the engines that `choose` returns; `only(engine)` if there is one engine.

    missing: called with an engine name that got no answer although it counted as loaded.
    pool: threads that decode large bodies and answers.
    prompt_logprobs: whether the engine may be asked for log-probabilities of a prompt; vLLM 0.32's CPU build, with
        adapters, crashes on those of several prompts in one batch.
    seeds: whether the engine may be asked to sample with a seed; that build crashes if it reads such a prompt in
        several steps.
    shadows: sends copies of requests to the shadows of roll-outs; None: none are sent. shadow_hooks: hooks of the copies.
    """

    def __init__(
        self,
        choose: Choose,
        routing_table: RoutingTable,
        *,
        hooks: Hooks | None = None,
        missing: Callable[[str], None] = lambda _: None,
        pool: Pool | None = None,
        prompt_logprobs: bool = False,
        seeds: bool = True,
        shadows: Shadows | None = None,
        shadow_hooks: Hooks | None = None,
    ) -> None:
        self._choose = choose
        self._salt_key = secrets.token_bytes(32)
        self._routing_table = routing_table
        self._hooks = hooks or NoHooks()
        self._missing = missing
        self._pool = pool or Pool("bodies", 1)
        self._prompt_logprobs = prompt_logprobs
        self._seeds = seeds
        self._shadows = shadows
        self._shadow_hooks = shadow_hooks or NoHooks()

    async def complete(
        self,
        kind: Kind,
        raw: bytes,
        request_id: str | None = None,
        admit: Admit | None = None,
        asker: Asker = GATEWAY,
    ) -> Answer:
        """Answer one request body. Cancelling it, or closing the stream it returns, makes the engine abort its work.

        request_id: the caller's id of this request; the engine gets it with a random suffix, because two callers may
            choose the same.
        admit: called with the request's load before the engine gets it; may wait or refuse.
        asker: sender of the request.

        Raises Refused (the request's fault, or the engine's 4xx as ENGINE_REFUSED) or Unavailable: ENGINE_UNAVAILABLE
        if the engine is down or does not hold the version, UPSTREAM_FAILED if its answer is not accepted.
        """
        began = time.monotonic()
        read = await self._read(kind, raw, asker)
        inference = read.inference
        if inference.ignored:
            event("fields_ignored", logging.DEBUG, kind=kind, fields=inference.ignored)
        try:
            answer = await self._answer(read, began, request_id, admit, asker)
        except GatewayError as error:
            error.ignored = inference.ignored
            raise
        return replace(answer, ignored=inference.ignored)

    async def _answer(
        self, read: _Read, began: float, request_id: str | None, admit: Admit | None, asker: Asker
    ) -> Answer:
        """Answer a checked request. Raises Refused, Unavailable."""
        inference = read.inference
        self._check_offered(inference)
        named = (inference.model, asker.reach, read.conversation)
        self._routing_table.resolve(*named)
        asked = time.monotonic()
        if admit is not None:
            await admit(inference.load)
        waited = time.monotonic() - asked
        target = self._routing_table.resolve(*named)  # may be another version than before the wait
        clock = Clock(self._hooks, target, began, waited)
        self._copy(read, target, asker)
        return await self._send(read, target, clock, request_id, asker)

    def _copy(self, read: _Read, target: Target, asker: Asker) -> None:
        """Send a copy of a request to the shadow of the roll-out that it is part of, if there is one, in the background."""
        shadow = self._routing_table.shadow(target, asker.reach)
        if shadow is None or self._shadows is None or read.inference.kind in TOKENIZING:
            return

        async def ask() -> None:
            clock = Clock(self._shadow_hooks, shadow, time.monotonic())
            answer = await self._send(read, shadow, clock, None, Asker(cache=asker.cache))
            if isinstance(answer.body, Stream):
                async with contextlib.aclosing(answer.body) as stream:
                    async for _ in stream:
                        pass

        self._shadows.start(read.inference.load, ask)

    async def stop(self) -> None:
        """Give up the copies that are under way."""
        if self._shadows is not None:
            await self._shadows.stop()

    async def _send(self, read: _Read, target: Target, clock: Clock, request_id: str | None, asker: Asker) -> Answer:
        """Send a request to the engine as one to `target`, and return the answer. Raises Refused, Unavailable."""
        inference, kind = read.inference, read.inference.kind
        salt = self._salt_of(asker.cache, target.engine_name) if kind not in TOKENIZING else None
        body = addressed(read.written, target.engine_name, salt)
        self._routing_table.in_flight.begin(target.engine_name)
        streaming = False
        try:
            clock.wait()
            response, engine = await self._ask(target.engine_name, PATHS[kind], body, _headers(request_id))
            clock.work()
            clock.used = asker.used
            if response.status == 200 and inference.stream:
                stream = self._stream(response, inference, target, clock)
                streaming = True
                return Answer(200, SSE_TYPE, stream, target, clock.worked)
            return await self._whole(kind, response, engine, target, clock)
        except GatewayError as error:
            clock.failed(error)
            raise
        except asyncio.CancelledError:
            clock.used = asker.used
            clock.gone()
            raise
        finally:
            if not streaming:
                self._routing_table.in_flight.end(target.engine_name)

    def _check_offered(self, inference: Inference) -> None:
        """Raise Refused INVALID_REQUEST for a request that would crash the engine."""
        if (field := inference.scores_prompt) and not self._prompt_logprobs:
            message = f"{field}: log-probabilities of a prompt are not offered here; leave it out"
            raise Refused(INVALID_REQUEST, message, param=field)
        if inference.seeded and not self._seeds:
            raise Refused(INVALID_REQUEST, "seed is not offered here with a temperature above 0", param="seed")

    async def _read(self, kind: Kind, raw: bytes, asker: Asker) -> _Read:
        """Return the checked request. Raises Refused."""
        if is_small(raw):
            return _read(kind, raw, asker, self._routing_table)
        return await self._pool(_read, kind, raw, asker, self._routing_table)

    def _salt_of(self, cache: str | None, engine_name: str) -> str | None:
        """Return a salt that nobody outside this process can know or guess; it reveals neither a tenant nor a key.

        It is another for each version: vLLM's own cache keeps adapters apart, but caches outside it may go by salt and
        tokens alone (vLLM's issue 44250, of LMCache).
        """
        if cache is None:
            return None
        return hmac.digest(self._salt_key, f"{cache}\0{engine_name}".encode(), "sha256").hex()

    async def _ask(
        self, name: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[EngineResponse, Answering]:
        """Return the answer and its engine: the first one on which the request could run."""
        *others, last = self._choose(name)
        for engine in others:
            try:
                response = await engine.post(path, body, headers)
            except NotReached:
                continue
            if response.status != NOT_FOUND:
                return response, engine
            response.close()
        return await last.post(path, body, headers), last

    def _stream(self, response: EngineResponse, inference: Inference, target: Target, clock: Clock) -> Stream:
        return _STREAMS.get(inference.kind, Stream)(
            response,
            target,
            clock,
            usage_wanted=inference.usage_wanted,
            on_end=lambda: self._routing_table.in_flight.end(target.engine_name),
        )

    async def _whole(
        self, kind: Kind, response: EngineResponse, engine: Answering, target: Target, clock: Clock
    ) -> Answer:
        clock.wait()
        try:
            if response.status != 200:
                raise await self._refusal(response, engine, target)
            answer = await response.read(MAX_ANSWER_BYTES)
        finally:
            response.close()
            clock.work()
        try:
            if len(answer) <= SMALL_BYTES:
                usage, body = _relabelled(kind, answer, target)
            else:
                usage, body = await self._pool(_relabelled, kind, answer, target)
        except ValueError as error:
            raise Unavailable(UPSTREAM_FAILED, f"the engine's answer cannot be read: {error}") from error
        clock.over(200, usage)
        return Answer(200, JSON_TYPE, body, target, clock.worked)

    async def _refusal(self, response: EngineResponse, engine: Answering, target: Target) -> GatewayError:
        """Return the engine's error as a gateway error. Raises Refused NOT_OFFERED if the engine has no such route."""
        message = words(await response.read(MAX_ERROR_BYTES)).replace(target.engine_name, target.asked)
        if response.status == NOT_FOUND and message == NO_ROUTE:
            raise Refused(NOT_OFFERED, "the engine offers no such route for the model it serves")
        if response.status == NOT_FOUND:  # it has lost the adapter, by a restart not noticed yet
            self._missing(target.engine_name)
            return Unavailable(ENGINE_UNAVAILABLE, f"{target.asked} is being loaded into the engine", param="model")
        if response.status >= 500 and not await engine.healthy():  # its core is dead, its server still answers
            self._missing(target.engine_name)
            return Unavailable(ENGINE_UNAVAILABLE, "the engine broke down and is being started again")
        return refusal(response.status, message)


def _read(kind: Kind, raw: bytes, asker: Asker, routing_table: RoutingTable) -> _Read:
    inference = parse(kind, raw)
    split = routing_table.split(inference.model, asker.reach)
    conversation = conversation_of(inference.user, asker.session, inference.fields) if split else None
    return _Read(inference, inference.written(), conversation)


def _relabelled(kind: Kind, answer: bytes, target: Target) -> tuple[Mapping[str, Any] | None, bytes]:
    """Return an answer's token counts, and the answer under the requested name. Raises ValueError, Unavailable."""
    parsed = strict_json(answer)
    return usage_of(parsed), answer if kind in TOKENIZING else relabel(answer, parsed, target)


def _headers(request_id: str | None) -> Mapping[str, str]:
    """Return the engine's headers: of the caller's, only the request id, whose form the API has checked."""
    if request_id is None:
        return JSON_HEADERS
    return {**JSON_HEADERS, "x-request-id": f"{request_id}-{secrets.token_hex(4)}"}
