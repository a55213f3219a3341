"""OpenAI's surface: /v1/models, /v1/chat/completions, /v1/completions, and /v1/responses and /v1/embeddings where the
engine has them.
"""

import asyncio
from collections.abc import Coroutine
from contextlib import ExitStack
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.api.access.rules import guarded
from app.api.bodies import body_of
from app.api.dependencies import Context, context, context_of, holder_of
from app.domain.shares import Resource
from app.observe.request_id import REQUEST_ID
from app.serve.json_body import MAX_BODY_BYTES
from app.serve.models import model_payload, models_payload
from app.serve.relay import Answer
from app.serve.request import Kind
from app.serve.stream import Stream
from app.serve.timing import CLIENT_GONE

router = APIRouter(prefix="/v1", tags=["openai"], dependencies=[Depends(guarded)])

Ctx = Annotated[Context, Depends(context)]


@router.get("/models")
async def models(ctx: Ctx) -> dict[str, Any]:
    """Every name `model` may be."""
    return models_payload(ctx.routing_table)


@router.get("/models/{name}")
async def model(name: str, ctx: Ctx) -> dict[str, Any]:
    """One of them."""
    return model_payload(ctx.routing_table, name)


@router.post("/chat/completions")
async def chat_completions(request: Request) -> Response:
    """Chat with an adapter's active version (`name`), one version (`name@3`) or the served model itself."""
    return await _answer(request, "chat")


@router.post("/completions")
async def completions(request: Request) -> Response:
    """Plain completion, by the same names."""
    return await _answer(request, "completions")


@router.post("/responses")
async def responses(request: Request) -> Response:
    """A response, kept nowhere: each request brings its whole conversation."""
    return await _answer(request, "responses")


@router.post("/embeddings")
async def embeddings(request: Request) -> Response:
    """Embeddings, where the engine serves a model that makes some."""
    return await _answer(request, "embeddings")


async def _answer(request: Request, kind: Kind) -> Response:
    """The engine's answer, unless the client leaves before it: then the engine stops working on it."""
    ctx = context_of(request)  # not a dependency: FastAPI takes long over each
    async with body_of(request, MAX_BODY_BYTES) as raw:
        with ExitStack() as held:
            who = holder_of(request)
            held.enter_context(ctx.shares.take(Resource.REQUESTS, who))
            admit = partial(ctx.admission.admit, who, held=held)
            asking = ctx.relay.complete(kind, raw, REQUEST_ID.get(), admit, request.state.uploader.owner)
            answer = await _unless_gone(request, asking)
            return Response(status_code=CLIENT_GONE) if answer is None else _response(answer, held)


async def _unless_gone(request: Request, asking: Coroutine[Any, Any, Answer]) -> Answer | None:
    """The answer; None where the client left first. The body is read, so the next message says that it did."""
    work = asyncio.ensure_future(asking)
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    except asyncio.CancelledError:
        work.add_done_callback(_discard)
        raise
    finally:
        work.cancel()
        gone.cancel()


def _discard(work: "asyncio.Future[Answer]") -> None:
    """Nobody will send this answer: let go of the engine now, not when the garbage is collected."""
    if not work.cancelled() and work.exception() is None:
        body = work.result().body
        if isinstance(body, Stream):
            body.close()


class _Streaming(StreamingResponse):
    """Response that sends a Stream, and closes it however that ends, so that the engine stops working for nobody.

    held: what else the request holds until then.
    """

    def __init__(self, stream: Stream, status: int, headers: dict[str, str], media_type: str, held: ExitStack) -> None:
        super().__init__(stream, status, headers, media_type)
        self._stream, self._held = stream, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            with self._held:
                await super().__call__(scope, receive, send)
        finally:
            await self._stream.aclose()


def _response(answer: Answer, held: ExitStack) -> Response:
    headers = {"x-gateway-overhead-ms": f"{answer.overhead_s * 1e3:.3f}"}
    if answer.target.version is not None:
        headers["x-adapter-version"] = str(answer.target.version)
    if answer.target.digest is not None:
        headers["x-adapter-digest"] = answer.target.digest
    if isinstance(answer.body, bytes):
        return Response(answer.body, answer.status, headers, answer.content_type)
    headers["cache-control"] = "no-store"
    return _Streaming(answer.body, answer.status, headers, answer.content_type, held.pop_all())
