"""Routes of inference: OpenAI's /v1/models, /v1/chat/completions, /v1/completions, and, if the engine supports them,
/v1/responses and /v1/embeddings; Anthropic's /v1/messages; vLLM's /tokenize and /detokenize.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.api.access.caller import caller_of, guarded
from app.api.bodies import body_of
from app.api.dependencies import Context, context, context_of, holder_of
from app.api.disconnects import unless_disconnected
from app.api.openapi import EVENTS, body, fields
from app.api.schemas import (
    Completion,
    Detokenized,
    Embeddings,
    Message,
    Model,
    ModelResponse,
    Models,
    TokenCount,
    Tokenized,
)
from app.domain.shares import Resource
from app.gateway.tenant_meter import Tally
from app.observe.request_id import REQUEST_ID
from app.serve.asker import Asker, Used
from app.serve.fields.chat import DROPPED_FIELDS
from app.serve.json_body import MAX_BODY_BYTES
from app.serve.models import model_payload, models_payload
from app.serve.relay import Answer
from app.serve.request import TABLES
from app.serve.request_load import TOKENIZING, Kind, Load
from app.serve.routing_table import Target
from app.serve.stream import Stream
from app.serve.timing import CLIENT_GONE

router = APIRouter(tags=["openai"], dependencies=[Depends(guarded)])

Ctx = Annotated[Context, Depends(context)]

SESSION_HEADER: Final = "x-session-id"
"""Header that names the session of a request: during a roll-out, one session's requests go to one version."""

TEXT: Final = {"type": "string"}
MESSAGE: Final = {"type": "object", "required": ["role", "content"], "properties": {"role": TEXT, "content": {}}}
MESSAGES: Final = {"type": "array", "items": MESSAGE}
STREAMED: Final[dict[int | str, dict[str, Any]]] = {200: {"content": EVENTS}}
"""Description of an answer that may be a stream of events as well."""


def _body(kind: Kind, *either: str, **required: dict[str, Any]) -> dict[str, Any]:
    """Return the description of a kind's body, in which `model`, the `required` fields, and one of `either` must be."""
    schema = fields({"model": TEXT, **required}, {**TABLES[kind], **DROPPED_FIELDS})
    return body(schema | ({"oneOf": [{"required": [name]} for name in either]} if either else {}))


@router.get("/v1/models", response_model=Models)
async def models(request: Request, ctx: Ctx) -> Response:
    """List every value that `model` may have."""
    return JSONResponse(models_payload(ctx.routing_table, caller_of(request).reach))


@router.get("/v1/models/{name}", response_model=Model)
async def model(name: str, request: Request, ctx: Ctx) -> Response:
    """Show one model."""
    return JSONResponse(model_payload(ctx.routing_table, name, caller_of(request).reach))


@router.post(
    "/v1/chat/completions",
    response_model=Completion,
    responses=STREAMED,
    openapi_extra=_body("chat", messages=MESSAGES),
)
async def chat_completions(request: Request) -> Response:
    """Chat with an adapter's active version (`name`), one version (`name@3`) or the served model itself."""
    return await _answer(request, "chat")


@router.post(
    "/v1/completions",
    response_model=Completion,
    responses=STREAMED,
    openapi_extra=_body("completions", prompt={}),
)
async def completions(request: Request) -> Response:
    """Complete a prompt, with the same model names."""
    return await _answer(request, "completions")


@router.post(
    "/v1/responses",
    response_model=ModelResponse,
    responses=STREAMED,
    openapi_extra=_body("responses", input={}),
)
async def responses(request: Request) -> Response:
    """Create a response, which is not stored: each request contains its whole conversation."""
    return await _answer(request, "responses")


@router.post(
    "/v1/embeddings",
    response_model=Embeddings,
    openapi_extra=_body("embeddings", input={}),
)
async def embeddings(request: Request) -> Response:
    """Create embeddings, if the engine serves an embedding model."""
    return await _answer(request, "embeddings")


@router.post(
    "/v1/messages",
    response_model=Message,
    responses=STREAMED,
    openapi_extra=_body("messages", messages=MESSAGES, max_tokens={"type": "integer"}),
)
async def messages(request: Request) -> Response:
    """Create a message, in the shape of Anthropic's API, with the same model names."""
    return await _answer(request, "messages")


@router.post(
    "/v1/messages/count_tokens", response_model=TokenCount, openapi_extra=_body("count_tokens", messages=MESSAGES)
)
async def count_tokens(request: Request) -> Response:
    """Count the tokens of a message's prompt, in the shape of Anthropic's API."""
    return await _answer(request, "count_tokens")


@router.post("/tokenize", response_model=Tokenized, openapi_extra=_body("tokenize", "prompt", "messages"))
async def tokenize(request: Request) -> Response:
    """Return the token ids of a `prompt`, or of `messages` in the form in which the model reads them."""
    return await _answer(request, "tokenize")


@router.post(
    "/detokenize",
    response_model=Detokenized,
    openapi_extra=_body("detokenize", tokens={"type": "array", "items": {"type": "integer"}}),
)
async def detokenize(request: Request) -> Response:
    """Return the text of token ids."""
    return await _answer(request, "detokenize")


async def _answer(request: Request, kind: Kind) -> Response:
    """Relay a request to the engine, and cancel it if the client disconnects before the answer."""
    ctx = context_of(request)  # not a dependency: FastAPI spends much time on each
    async with body_of(request, MAX_BODY_BYTES) as raw:
        with ExitStack() as held:
            holder, caller = holder_of(request), caller_of(request)
            held.enter_context(ctx.shares.take(Resource.REQUESTS, holder))
            tally = None if kind in TOKENIZING else ctx.meter.tally(caller.key.tenant, len(raw))
            used, session = _counting(ctx.usage.counter(caller.key), tally), request.headers.get(SESSION_HEADER)
            asker = Asker(caller.reach, caller.cache, used, session)
            admit = partial(_admit, ctx, holder, tally, held)
            answering = ctx.relay.complete(kind, raw, REQUEST_ID.get(), admit, asker)
            answer = await unless_disconnected(request, answering, _discard)
            if answer is None:
                return Response(status_code=CLIENT_GONE)
            return _response(answer, held, ctx.meter.headers(caller.key.tenant))


async def _admit(ctx: Context, holder: str, tally: Tally | None, held: ExitStack, load: Load) -> None:
    """Admit a request within the limits of its tenant and the shares of all. Raises Refused."""
    if tally is not None:
        await held.enter_context(tally).open(load.tokens)
    await ctx.admission.admit(holder, load, held)


def _counting(counted: Used, tally: Tally | None) -> Used:
    if tally is None:
        return counted

    def used(target: Target, counts: Mapping[str, Any] | None) -> None:
        counted(target, counts)
        tally.used(counts)

    return used


def _discard(answer: Answer) -> None:
    """Close an answer that will not be sent, so that the engine is released."""
    if isinstance(answer.body, Stream):
        answer.body.close()


class _Streaming(StreamingResponse):
    """Response that sends a Stream and closes it however that ends, so that the engine does not go on for a lost client.

    held: other resources that the request holds until then.
    """

    def __init__(self, stream: Stream, status: int, headers: dict[str, str], media_type: str, held: ExitStack) -> None:
        super().__init__(stream, status, headers, media_type)
        self._stream, self._held = stream, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, then close it and release the resources (ASGI)."""
        try:
            with self._held:
                await super().__call__(scope, receive, send)
        finally:
            await self._stream.aclose()


def _response(answer: Answer, held: ExitStack, limits: Mapping[str, str]) -> Response:
    headers = {"x-gateway-overhead-ms": f"{answer.overhead_s * 1e3:.3f}", **limits}
    if answer.target.version is not None:
        headers["x-adapter-version"] = str(answer.target.version)
    if answer.target.digest is not None:
        headers["x-adapter-digest"] = answer.target.digest
    if answer.ignored:
        headers["x-gateway-ignored-fields"] = answer.ignored
    if isinstance(answer.body, bytes):
        return Response(answer.body, answer.status, headers, answer.content_type)
    headers["cache-control"] = "no-store"
    return _Streaming(answer.body, answer.status, headers, answer.content_type, held.pop_all())
