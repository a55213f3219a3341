"""Request bodies read into memory, with one time limit, size cap and share of memory for every route that reads one.

Uploads are streamed to disk instead and have their own time limit (app/upload/transfer_rate.py). A route that reads no body
needs none: a response sent before the body has ended closes the connection (http_protocol.py).
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
