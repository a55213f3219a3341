"""Routes of roll-outs: which of an adapter's versions its plain name means, and for how many requests."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from app.api.access.caller import AdapterInPath, caller_of, guarded
from app.api.bodies import body_of
from app.api.dependencies import Context, context
from app.api.openapi import body
from app.api.routes.adapters import read_view
from app.api.schemas import Traffic, Version
from app.api.views import one_version, traffic_view
from app.domain.names import MAX_NUMBER, VERSION_NUMBER
from app.domain.rollout import SLOTS, Wanted
from app.serve import json_body

router = APIRouter(tags=["adapters"], dependencies=[Depends(guarded)])
Ctx = Annotated[Context, Depends(context)]
Number = Annotated[int | None, Query(ge=1, le=MAX_NUMBER, description="Version number; default: the only candidate")]

MAX_BODY: Final = 1024
"""Most bytes of a body: the versions of one roll-out, in any JSON escaping."""

WEIGHTS: Final[dict[str, Any]] = {
    "type": "object",
    "description": "Per cent of the conversations, by version; they add up to 100",
    "patternProperties": {f"^{VERSION_NUMBER.pattern}$": {"type": "integer", "minimum": 0, "maximum": SLOTS}},
    "properties": {
        "shadow": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_NUMBER},
        "guard": {"type": "boolean"},
    },
    "additionalProperties": False,
}
"""Description of the weights."""


@router.get("/adapters/{name}/traffic", response_model=Traffic)
async def traffic(name: AdapterInPath, ctx: Ctx) -> Response:
    """Show the roll-out of an adapter."""
    return await read_view(ctx, traffic_view, await ctx.rollouts.shown(name))


@router.put("/adapters/{name}/traffic", response_model=Traffic, openapi_extra=body(WEIGHTS))
async def set_traffic(name: AdapterInPath, request: Request, ctx: Ctx) -> Response:
    """Give versions of an adapter a share of its requests each, such as `{"3": 95, "4": 5}`: begin a roll-out or change it.

    `shadow`: a version that gets copies of the others' requests, whose answers nobody gets. `guard`: abort by itself if a
    version fails more requests than the stable one, or is withheld. Answered once the engines hold every version.
    """
    async with body_of(request, MAX_BODY) as raw:
        wanted = Wanted.parse(json_body.read(raw))
    return await read_view(ctx, traffic_view, await ctx.rollouts.set(name, wanted))


@router.delete("/adapters/{name}/traffic", status_code=204)
async def delete_traffic(name: AdapterInPath, ctx: Ctx) -> Response:
    """Abort a roll-out: the stable version gets every request."""
    await ctx.rollouts.abort(name)
    return Response(status_code=204)


@router.post("/adapters/{name}/traffic/promote", response_model=Version)
async def promote(name: AdapterInPath, request: Request, ctx: Ctx, version: Number = None) -> Response:
    """End a roll-out by giving every request to one of its versions."""
    row = await ctx.rollouts.promote(name, version)
    return await read_view(ctx, one_version, name, row.number, caller_of(request).key.operator)


@router.post("/adapters/{name}/traffic/abort", response_model=Version)
async def abort(name: AdapterInPath, request: Request, ctx: Ctx) -> Response:
    """End a roll-out by giving every request to the stable version, which is shown."""
    adapter = await ctx.rollouts.abort(name)
    return await read_view(ctx, one_version, name, adapter.active, caller_of(request).key.operator)
