"""POST /adapters/{name}/rescreen and POST /rescreen: screen kept uploads again by the policy and reference in force."""

import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.api.access.caller import AdapterInPath, caller_of, guarded
from app.api.dependencies import Context, context
from app.api.openapi import EVENTS
from app.api.routes.adapters import VERSION_RESPONSES
from app.api.schemas import Version
from app.api.views import one_version, version_view
from app.domain.errors import envelope
from app.domain.version_state import State
from app.gateway.rescreening import Rescreened, Result, Run
from app.gateway.uploads import Uploads

router = APIRouter(tags=["adapters"], dependencies=[Depends(guarded)])
Ctx = Annotated[Context, Depends(context)]

KEEP_ALIVE: Final = b": still there\n\n"
HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class _Results(StreamingResponse):
    """Streaming response of each adapter's result; it ends the run however sending ends."""

    def __init__(self, run: Run, uploads: Uploads) -> None:
        super().__init__(_lines(run, uploads), media_type="text/event-stream", headers=HEADERS)
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, then end the run (ASGI)."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._run.close()


@router.post("/adapters/{name}/rescreen", status_code=201, response_model=Version, responses=VERSION_RESPONSES)
async def rescreen(name: AdapterInPath, request: Request, ctx: Ctx) -> Response:
    """Screen the active version's upload again by the current policy and reference, and move the name to the new version.

    201: a new version is served; 202: it is stored, and loaded once the engine is available; 200: nothing to do, it was
    screened by this policy and reference; 409: the upload was not kept. After a refusal the served version stays active.
    """
    done = await ctx.rescreening.one(name)
    assert done.row is not None
    view = await ctx.uploads.components.pools.reading(
        one_version, ctx.uploads, str(done.row.name), done.row.number, caller_of(request).key.operator
    )
    status = 200 if done.result is Result.UNCHANGED else 201
    location = caller_of(request).address(f"/adapters/{done.row.name.plain}/versions/{done.row.number}")
    return view.response(202 if done.row.state is State.STORED else status, {"Location": location})


@router.post("/rescreen", response_class=StreamingResponse, responses={200: {"content": EVENTS}})
async def rescreen_all(ctx: Ctx) -> StreamingResponse:
    """Rescreen every adapter, one after another: an event `adapter` for each, `done` with the counts at the end.

    Disconnecting ends the run; versions made until then stay. 429 while another run is under way.
    """
    return _Results(ctx.rescreening.all(), ctx.uploads)


async def _lines(run: Run, uploads: Uploads) -> AsyncIterator[bytes]:
    counts = Counter({result.value: 0 for result in Result})
    async for done in run.results():
        if done is None:
            yield KEEP_ALIVE
            continue
        counts[done.result.value] += 1
        yield _event("adapter", _view(done, uploads))
    yield _event("done", dict(counts))


def _view(done: Rescreened, uploads: Uploads) -> dict[str, Any]:
    row = done.row
    return {
        "name": done.name,
        "result": done.result.value,
        "version": version_view(uploads, row).plain() if row else None,
        "error": envelope(done.error)["error"] if done.error else None,
    }


def _event(kind: str, fields: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(fields)}\n\n".encode()
