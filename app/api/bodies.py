"""Request bodies read into memory: one clock, one cap and one share, for every route that reads one.

Uploads are streamed to disk instead and have a clock of their own (app/upload/transfer_rate.py). A route that reads no body
needs none: an answer given before the body has ended closes the connection (`wire`).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from fastapi import Request
from starlette.requests import ClientDisconnect

from app.api.dependencies import context_of, holder_of
from app.domain.errors import REQUEST_TOO_LARGE, UPLOAD_INCOMPLETE, UPLOAD_TIMEOUT, Refused
from app.domain.shares import Resource

BODY_S: Final = 60.0
"""Seconds a request's body may take to arrive: 4 MiB at half a megabit."""


@asynccontextmanager
async def body_of(request: Request, cap: int) -> AsyncIterator[bytes]:
    """The whole body, of at most `cap` bytes, which the caller holds of Resource.BODIES until the block ends.

    Raises Refused REQUEST_TOO_LARGE, UPLOAD_TIMEOUT, UPLOAD_INCOMPLETE when the client leaves, or SHARE_TAKEN.
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
