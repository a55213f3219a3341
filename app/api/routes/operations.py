"""Operators' routes: /health, /ready, /version, /metrics and /metrics/engine."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from app import __version__
from app.api.access.caller import guarded
from app.api.dependencies import Context, context
from app.api.openapi import text
from app.api.schemas import GatewayVersion, Health, Readiness
from app.observe.metrics import CONTENT_TYPE

router = APIRouter(tags=["operations"])


@router.get("/health", response_model=Health)
@router.get("/healthz", include_in_schema=False)
async def health() -> Response:
    """Report that the process answers. Does not check the engine: /ready does."""
    return Health(status="ok").response()


@router.get("/version", dependencies=[Depends(guarded)], response_model=GatewayVersion)
async def version() -> Response:
    """Return the gateway's own version."""
    return GatewayVersion(version=__version__).response()


@router.get("/ready", response_model=Readiness, responses={503: {"model": Readiness}})
@router.get("/readyz", include_in_schema=False)
async def ready(ctx: Annotated[Context, Depends(context)]) -> Response:
    """Report readiness: 200 if reference, store and engine are in order, else 503 with each part's problem.

    A gateway that is being stopped is not ready.
    """
    parts = await ctx.readiness()
    if ctx.ending.begun:
        parts = {"gateway": "stopping", **parts}
    status = "ready" if all(wrong is None for wrong in parts.values()) else "not ready"
    reported = {name: wrong or "ok" for name, wrong in parts.items()}
    view = Readiness(status=status, parts=reported, details=ctx.details())
    return view.response(200 if status == "ready" else 503)


@router.get("/metrics", dependencies=[Depends(guarded)], response_class=Response, responses=text(CONTENT_TYPE))
async def metrics(request: Request, ctx: Annotated[Context, Depends(context)]) -> Response:
    """Return the gateway's metrics in Prometheus text format."""
    return Response(await ctx.uploads.components.pools.metrics(ctx.metrics.exposition), media_type=CONTENT_TYPE)


@router.get("/metrics/engine", dependencies=[Depends(guarded)], response_class=Response, responses=text(CONTENT_TYPE))
async def engine_metrics(ctx: Annotated[Context, Depends(context)]) -> Response:
    """Relay the engine's own metrics, which Prometheus may not be able to reach directly. 503 while the engine is down."""
    return Response(await ctx.engine_metrics(), media_type=CONTENT_TYPE)
