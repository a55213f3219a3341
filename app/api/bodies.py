"""Request bodies read into memory, with one time limit, size cap and share of memory for every route that reads one.

Uploads are streamed to disk instead and have their own time limit (app/upload/transfer_rate.py). A route that reads no body
needs none: a response sent before the body has ended closes the connection (http_protocol.py).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from app.api.dependencies import context_of, holder_of
from app.domain.errors import REQUEST_TOO_LARGE, UPLOAD_INCOMPLETE, UPLOAD_TIMEOUT, Refused
from app.domain.shares import Resource
from app.serve import json_body

M = TypeVar("M", bound=BaseModel)

UNCACHED: Final = {"Cache-Control": "no-store"}
"""Headers of an answer that shows a secret."""

BODY_S: Final = 60.0
"""Seconds a request's body may take to arrive: 4 MiB at half a megabit."""


@asynccontextmanager
async def body_of(request: Request, cap: int) -> AsyncIterator[bytes]:
    """Yield the whole body, at most `cap` bytes, counted in the caller's share of Resource.BODIES until the block ends.

    Raises Refused REQUEST_TOO_LARGE, UPLOAD_TIMEOUT, UPLOAD_INCOMPLETE if the client disconnects, or SHARE_TAKEN.
    """
    body = bytearray()
    with context_of(request).shares.take(Resource.BODIES, holder_of(request), 0) as held:
        try:
            async with asyncio.timeout(BODY_S):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > cap:
                        raise Refused(REQUEST_TOO_LARGE, f"the body is over {cap} bytes")
                    held.more(len(chunk))
                    body += chunk
        except ClientDisconnect as error:
            raise Refused(UPLOAD_INCOMPLETE, "the client left before its request ended") from error
        except TimeoutError as error:
            raise Refused(UPLOAD_TIMEOUT, f"the request did not arrive within {BODY_S:g} s") from error
        yield bytes(body)


async def posted(request: Request, model: type[M], cap: int, empty: bytes = b"{}") -> M:
    """Return the JSON body as this model. empty: body that stands for none. Raises RequestValidationError, which errors.py
    answers, and as `body_of`."""
    async with body_of(request, cap) as raw:
        fields = json_body.read(raw or empty)
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
