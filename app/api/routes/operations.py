"""Operators' routes: /health, /ready, /metrics and /metrics/engine."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from app.api.access.rules import guarded
from app.api.dependencies import Context, context
from app.observe.metrics import CONTENT_TYPE

router = APIRouter(tags=["operations"])


@router.get("/health")
@router.get("/healthz", include_in_schema=False)
async def health() -> dict[str, str]:
    """Report that the process answers. Does not check the engine: /ready does."""
    return {"status": "ok"}


@router.get("/ready")
@router.get("/readyz", include_in_schema=False)
async def ready(ctx: Annotated[Context, Depends(context)]) -> JSONResponse:
    """Report readiness: 200 if reference, store and engine are in order, else 503 with each part's problem."""
    parts = await ctx.readiness()
    status = "ready" if all(wrong is None for wrong in parts.values()) else "not ready"
    reported = {name: wrong or "ok" for name, wrong in parts.items()}
    body = {"status": status, "parts": reported, "details": ctx.details()}
    return JSONResponse(body, 200 if status == "ready" else 503)


@router.get("/metrics", dependencies=[Depends(guarded)])
async def metrics(request: Request, ctx: Annotated[Context, Depends(context)]) -> Response:
    """Return the gateway's metrics in Prometheus text format."""
    return Response(await ctx.uploads.components.pools.metrics(ctx.metrics.exposition), media_type=CONTENT_TYPE)


@router.get("/metrics/engine", dependencies=[Depends(guarded)])
async def engine_metrics(ctx: Annotated[Context, Depends(context)]) -> Response:
    """Relay the engine's own metrics, which Prometheus may not be able to reach directly. 503 while the engine is down."""
    return Response(await ctx.engine_metrics(), media_type=CONTENT_TYPE)
