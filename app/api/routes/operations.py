"""For operators: /health, /ready, /metrics."""

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
    """The process answers. Says nothing about the engine: /ready does."""
    return {"status": "ok"}


@router.get("/ready")
@router.get("/readyz", include_in_schema=False)
async def ready(ctx: Annotated[Context, Depends(context)]) -> JSONResponse:
    """200 when reference, store and engine are in order; else 503 and what is missing."""
    parts = await ctx.readiness()
    status = "ready" if all(wrong is None for wrong in parts.values()) else "not ready"
    told = {name: wrong or "ok" for name, wrong in parts.items()}
    body = {"status": status, "parts": told, "details": ctx.details()}
    return JSONResponse(body, 200 if status == "ready" else 503)


@router.get("/metrics", dependencies=[Depends(guarded)])
async def metrics(request: Request, ctx: Annotated[Context, Depends(context)]) -> Response:
    """Prometheus text format."""
    return Response(await ctx.uploads.components.pools.metrics(ctx.metrics.exposition), media_type=CONTENT_TYPE)


@router.get("/metrics/engine", dependencies=[Depends(guarded)])
async def engine_metrics(ctx: Annotated[Context, Depends(context)]) -> Response:
    """The engine's own metrics, passed on: it listens where no Prometheus reaches it. 503 while it is away."""
    return Response(await ctx.engine_metrics(), media_type=CONTENT_TYPE)
