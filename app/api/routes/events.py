"""GET /adapters/{name}/events: progress of an upload, as server-sent events."""

import json
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.api.access.caller import AdapterInPath, guarded
from app.api.dependencies import Context, context, holder_of
from app.api.openapi import EVENTS
from app.domain.errors import ADAPTER_NOT_FOUND, VERSION_NOT_FOUND, Refused
from app.domain.names import MAX_NUMBER, AdapterName
from app.domain.shares import Resource
from app.domain.tenants import split_name
from app.gateway.uploads import Uploads
from app.observe.upload_progress import Follower

router = APIRouter(tags=["adapters"], dependencies=[Depends(guarded)])

HELLO: Final = b": watching\n\n"
"""Comment sent at once: every later event is reported."""

KEEP_ALIVE: Final = b": still there\n\n"
HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}  # otherwise nginx buffers the stream


class _Events(StreamingResponse):
    """Streaming response of the steps; it releases the watcher's resources however it ends."""

    def __init__(self, follower: Follower, name: str, after: int, held: ExitStack) -> None:
        super().__init__(_lines(follower, name, after), media_type="text/event-stream", headers=HEADERS)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, then release the resources (ASGI)."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._held.close()


@router.get(
    "/adapters/{name}/events",
    response_class=StreamingResponse,
    responses={200: {"content": EVENTS}},
)
async def events(
    request: Request,
    name: AdapterInPath,
    ctx: Annotated[Context, Depends(context)],
    after: Annotated[
        int | None, Query(ge=0, le=MAX_NUMBER, description="Wait for a version above this number to begin")
    ] = None,
) -> StreamingResponse:
    """Stream the states of an adapter's newest version: `received`, `validated`, `screened`, `stored`, `ready`, or failed.

    Begins with the states already reached and ends with the version's final state. With `after` the adapter need not exist
    yet: an uploader can watch from before the first stage.
    """
    waits = after is not None
    if waits:
        AdapterName.parse(split_name(name)[1])
    with ExitStack() as held:
        held.enter_context(ctx.shares.take(Resource.WATCHERS, holder_of(request)))
        follower = ctx.uploads.components.progress.follower()
        held.callback(follower.close)
        await ctx.uploads.components.pools.reading(_report_current_state, ctx.uploads, name, after or 0, waits=waits)
        return _Events(follower, name, after or 0, held.pop_all())


def _report_current_state(uploads: Uploads, name: str, after: int, *, waits: bool) -> None:
    """Report the newest version's state to the progress log, which may lack it: after a restart, or once old entries were
    dropped."""
    try:
        versions = uploads.components.catalogue.versions(name)
    except Refused as error:
        if waits and error.code is ADAPTER_NOT_FOUND:
            return
        raise
    if not versions and not waits:
        raise Refused(VERSION_NOT_FOUND, f"{name} has no version yet")
    if versions and versions[-1].number > after:
        uploads.components.progress.report(versions[-1])


async def _lines(follower: Follower, name: str, after: int) -> AsyncIterator[bytes]:
    yield HELLO
    async for step in follower.steps(name, after):
        yield KEEP_ALIVE if step is None else f"event: stage\ndata: {json.dumps(step.json())}\n\n".encode()
