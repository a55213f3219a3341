"""From a stranger's request to the engine's answer and back, under the name the stranger used.

The engine's answer is believed when it is JSON, finite, and labelled with the engine name that was asked; anything else is
a 502, or an error event in the middle of a stream. Nothing that may have run is asked again: only what could not be sent
at all, or came to an engine that has forgotten the adapter, goes on to the next engine where there are several.
"""

import asyncio
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

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
from app.load.client.engine import JSON_HEADERS, EngineResponse, words
from app.load.client.response import NotReached
from app.serve.json_body import SMALL_BYTES, is_small
from app.serve.relabel import refusal, relabel
from app.serve.request import Inference, Kind, Load, addressed, parse
from app.serve.responses_stream import ResponseStream
from app.serve.routing_table import RoutingTable, Target
from app.serve.sse import strict_json
from app.serve.stream import Stream, usage_of
from app.serve.timing import Clock, Hooks, NoHooks

PATHS: Final[Mapping[Kind, str]] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "embeddings": "/v1/embeddings",
}
"""The only paths of the engine a request can reach; never built from anything a stranger sent."""

MAX_ANSWER_BYTES: Final = 32 << 20
"""Bytes of an answer that is not streamed: 16 choices with 20 log-probabilities for each of thousands of tokens."""

MAX_ERROR_BYTES: Final = 1 << 20
"""Bytes of an engine's error that are read."""

NOT_FOUND: Final = 404

NO_ROUTE: Final = "Not Found"
"""What vLLM's server says of a path it does not have; of a model it does not have it says more."""

JSON_TYPE: Final = "application/json"
SSE_TYPE: Final = "text/event-stream"


class Asked(Protocol):
    """What is asked of an engine here; see Engine."""

    async def post(self, path: str, body: bytes, headers: Mapping[str, str] = JSON_HEADERS) -> EngineResponse:
        """Send one inference request. Raises Unavailable ENGINE_UNAVAILABLE, NotReached when nothing was sent."""

    async def healthy(self) -> bool:
        """Whether it answers and can compute."""


Choose = Callable[[str], Sequence[Asked]]
"""Engine name → engines that answer to it now, in the order to try; at least one. Raises Unavailable."""


Admit = Callable[[Load], Awaitable[None]]
"""Waits until the engine may be asked for so much. Raises Refused."""


def only(engine: Asked, up: Callable[[], bool] = lambda: True) -> Choose:
    """Where there is one engine. up: whether it answered when last asked; one that hangs is not waited for again."""
    one = (engine,)

    def choose(_: str) -> Sequence[Asked]:
        if not up():
            raise Unavailable(ENGINE_UNAVAILABLE, "the engine does not answer at present")
        return one

    return choose


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back. body: bytes, or a Stream that whoever sends it must close when done, in whatever way that ends.

    overhead_s: seconds that passed here and not in the engine, until the answer (a stream's head) was ready.
    """

    status: int
    content_type: str
    body: "bytes | Stream"
    target: Target
    overhead_s: float = 0.0


class Relay:
    """Answers requests through the engines that `choose` names, `only(engine)` where there is one.

    missing: called with an engine name that could not be answered although it was thought loaded. pool: threads that read
    large bodies and answers. prompt_logprobs: whether the engine may be asked for log-probabilities of a prompt; vLLM
    0.32's CPU build, with adapters, ends over those of several prompts in one batch. seeds: whether it may be asked to draw
    by a seed; that build ends when it reads such a prompt in several steps.
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
    ) -> None:
        self._choose = choose
        self._salt_key = secrets.token_bytes(32)
        self._routing_table = routing_table
        self._hooks = hooks or NoHooks()
        self._missing = missing
        self._pool = pool or Pool("bodies", 1)
        self._prompt_logprobs = prompt_logprobs
        self._seeds = seeds

    async def complete(
        self,
        kind: Kind,
        raw: bytes,
        request_id: str | None = None,
        admit: Admit | None = None,
        owner: str | None = None,
    ) -> Answer:
        """Answer one request body. Cancelling it, or closing the stream it returns, makes the engine abort its work.

        request_id: what the caller calls this request; the engine gets it with a random end, for two callers may choose
        the same. admit: is told what the request asks of the engine before the engine is, and may wait or refuse.
        owner: whose cached prompts may be used and are added to; None: those that are nobody's.

        Raises Refused (the request's fault, or the engine's 4xx as ENGINE_REFUSED) or Unavailable: ENGINE_UNAVAILABLE
        when the engine is away or does not hold the version, UPSTREAM_FAILED when its answer cannot be believed.
        """
        began = time.monotonic()
        inference, written = await self._read(kind, raw)
        self._check_offered(inference)
        self._routing_table.resolve(inference.model)
        asked = time.monotonic()
        if admit is not None:
            await admit(inference.load)
        waited = time.monotonic() - asked
        target = self._routing_table.resolve(inference.model)  # another version, it may be, than before the wait
        body = addressed(written, target.engine_name, self._salt_of(owner))
        clock = Clock(self._hooks, target, began, waited)
        self._routing_table.in_flight.begin(target.engine_name)
        streaming = False
        try:
            clock.wait()
            response, engine = await self._ask(target.engine_name, PATHS[kind], body, _headers(request_id))
            clock.work()
            if response.status == 200 and inference.stream:
                stream = self._stream(response, inference, target, clock)
                streaming = True
                return Answer(200, SSE_TYPE, stream, target, clock.worked)
            return await self._whole(response, engine, target, clock)
        except GatewayError as error:
            clock.failed(error)
            raise
        except asyncio.CancelledError:
            clock.gone()
            raise
        finally:
            if not streaming:
                self._routing_table.in_flight.end(target.engine_name)

    def _check_offered(self, inference: Inference) -> None:
        """Raises Refused INVALID_REQUEST for what would end the engine."""
        if inference.scores_prompt and not self._prompt_logprobs:
            raise Refused(INVALID_REQUEST, "echo with logprobs is not offered here; ask for one of them", param="echo")
        if inference.seeded and not self._seeds:
            raise Refused(INVALID_REQUEST, "seed is not offered here with a temperature above 0", param="seed")

    async def _read(self, kind: Kind, raw: bytes) -> tuple[Inference, bytes]:
        """The request, and its body for the engine but for the name. Raises Refused."""
        if is_small(raw):
            return _read(kind, raw)
        return await self._pool(_read, kind, raw)

    def _salt_of(self, owner: str | None) -> str | None:
        """A salt that nobody outside this process can know or guess: it tells nothing of who an owner is, or of a key."""
        return None if owner is None else hmac.digest(self._salt_key, owner.encode(), "sha256").hex()

    async def _ask(self, name: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[EngineResponse, Asked]:
        """The answer, and the engine that gives it: the first where the request could run."""
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
        made = ResponseStream if inference.kind == "responses" else Stream
        return made(
            response,
            target,
            clock,
            usage_wanted=inference.usage_wanted,
            landed=lambda: self._routing_table.in_flight.end(target.engine_name),
        )

    async def _whole(self, response: EngineResponse, engine: Asked, target: Target, clock: Clock) -> Answer:
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
                usage, body = _relabelled(answer, target)
            else:
                usage, body = await self._pool(_relabelled, answer, target)
        except ValueError as error:
            raise Unavailable(UPSTREAM_FAILED, f"the engine's answer cannot be read: {error}") from error
        clock.over(200, usage)
        return Answer(200, JSON_TYPE, body, target, clock.worked)

    async def _refusal(self, response: EngineResponse, engine: Asked, target: Target) -> GatewayError:
        """The engine's error as ours."""
        said = words(await response.read(MAX_ERROR_BYTES)).replace(target.engine_name, target.asked)
        if response.status == NOT_FOUND and said == NO_ROUTE:
            raise Refused(NOT_OFFERED, "the engine offers no such route for the model it serves")
        if response.status == NOT_FOUND:  # it forgot the adapter, by a restart we have not noticed yet
            self._missing(target.engine_name)
            return Unavailable(ENGINE_UNAVAILABLE, f"{target.asked} is being loaded into the engine", param="model")
        if response.status >= 500 and not await engine.healthy():  # its core is dead, its server not yet
            self._missing(target.engine_name)
            return Unavailable(ENGINE_UNAVAILABLE, "the engine broke down and is being started again")
        return refusal(response.status, said)


def _read(kind: Kind, raw: bytes) -> tuple[Inference, bytes]:
    inference = parse(kind, raw)
    return inference, inference.written()


def _relabelled(answer: bytes, target: Target) -> tuple[Mapping[str, Any] | None, bytes]:
    """An answer's token counts, and the answer under the name that was asked. Raises ValueError, Unavailable."""
    said = strict_json(answer)
    return usage_of(said), relabel(answer, said, target)


def _headers(request_id: str | None) -> Mapping[str, str]:
    """The engine's headers: nothing of the caller's but its id, which the API has found to be well formed."""
    if request_id is None:
        return JSON_HEADERS
    return {**JSON_HEADERS, "x-request-id": f"{request_id}-{secrets.token_hex(4)}"}
