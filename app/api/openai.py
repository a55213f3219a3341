"""OpenAI's surface: /v1/models, /v1/chat/completions, /v1/completions, and /v1/responses and /v1/embeddings where the
engine has them.
"""

import asyncio
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response, StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from app.api.context import Context, context, context_of
from app.api.guard import guarded
from app.errors import REQUEST_TOO_LARGE, UPLOAD_INCOMPLETE, UPLOAD_TIMEOUT, Refused
from app.observe.request import REQUEST_ID
from app.serve.hooks import CLIENT_GONE
from app.serve.models import model_payload, models_payload
from app.serve.relay import Answer
from app.serve.request import MAX_BODY_BYTES, Kind
from app.serve.stream import Stream

router = APIRouter(prefix="/v1", tags=["openai"], dependencies=[Depends(guarded)])
BODY_S: Final = 60.0
"""Seconds a request's body may take to arrive: 4 MiB at half a megabit."""

Ctx = Annotated[Context, Depends(context)]


@router.get("/models")
async def models(ctx: Ctx) -> dict[str, Any]:
    """Every name `model` may be."""
    return models_payload(ctx.routes)


@router.get("/models/{name}")
async def model(name: str, ctx: Ctx) -> dict[str, Any]:
    """One of them."""
    return model_payload(ctx.routes, name)


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
    relay = context_of(request).relay  # not a dependency: FastAPI takes long over each
    work = asyncio.ensure_future(relay.complete(kind, await _body(request), REQUEST_ID.get()))
    gone = asyncio.ensure_future(request.receive())  # the body is read, so the next message says that the client left
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return _response(work.result()) if work.done() else Response(status_code=CLIENT_GONE)
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


async def _body(request: Request) -> bytes:
    """The body, never more than the cap in memory."""
    chunks, size = [], 0
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size > MAX_BODY_BYTES:
                    raise Refused(REQUEST_TOO_LARGE, f"the body is over {MAX_BODY_BYTES} bytes")
                chunks.append(chunk)
    except ClientDisconnect as error:
        raise Refused(UPLOAD_INCOMPLETE, "the client left before its request ended") from error
    except TimeoutError as error:
        raise Refused(UPLOAD_TIMEOUT, f"the request did not arrive within {BODY_S:.0f} s") from error
    return b"".join(chunks)


class _Streaming(StreamingResponse):
    """Sends a Stream, and closes it however sending ends, so that the engine stops working for nobody."""

    def __init__(self, stream: Stream, status: int, headers: dict[str, str], media_type: str) -> None:
        super().__init__(stream, status, headers, media_type)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._stream.aclose()


def _response(answer: Answer) -> Response:
    headers = {"x-gateway-overhead-ms": f"{answer.overhead_s * 1e3:.3f}"}
    if answer.target.version is not None:
        headers["x-adapter-version"] = str(answer.target.version)
    if answer.target.digest is not None:
        headers["x-adapter-digest"] = answer.target.digest
    if isinstance(answer.body, bytes):
        return Response(answer.body, answer.status, headers, answer.content_type)
    return _Streaming(answer.body, answer.status, headers | {"cache-control": "no-store"}, answer.content_type)
