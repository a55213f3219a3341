"""Routes for remote engines (plugin/): resolve an engine name to its artefact, and read the artefact's bytes. Read-only.

They cover the versions that every engine may hold: published versions, and versions waiting for an engine to load them.
Plain adapter names are not resolved: vLLM caches the first answer for a name for its whole life, but a name can move.
"""

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends
from fastapi.responses import FileResponse, Response

from app.api.access.caller import guarded
from app.api.dependencies import Context, context
from app.api.schemas import Resolved
from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
from app.domain.digest import Digest
from app.domain.errors import MODEL_NOT_FOUND, STORE_FAILED, Refused, Unavailable
from app.domain.printable import printable
from app.store.artefacts.signatures import statement_in

router = APIRouter(tags=["fleet"], dependencies=[Depends(guarded)])
Ctx = Annotated[Context, Depends(context)]

ENGINE_FILES: Final = (CONFIG_FILE, WEIGHTS_FILE)
"""Files of an artefact that an engine reads; its digest covers these."""

EngineFile = Literal["adapter_config.json", "adapter_model.safetensors"]


@router.get("/resolve/{model}", response_model=Resolved)
async def resolve(model: str, ctx: Ctx) -> Response:
    """Resolve `name@<digest12>` or `name@3`: the engine's name for it, its digest, the size of each file in bytes, and the
    signed statement about it.

    404 for every version that is not served: unknown, deleted, rejected, withheld by the policy in force, emptied (the
    served model itself answers for those), and for names without a version.
    """
    name = _engine_name(ctx, model)
    path = ctx.uploads.components.desired.state.adapters.get(name) if name else None
    if name is None or path is None:
        raise Refused(MODEL_NOT_FOUND, f"no engine may hold {printable(model, 80)!r}", param="model")
    sizes, statement = await ctx.uploads.components.pools.fetching(_described, ctx, path)
    return Resolved(model=model, engine_name=name, digest=path.name, bytes=sizes, statement=statement).response()


@router.get(
    "/artefacts/{digest}/{file}",
    response_class=FileResponse,
    responses={200: {"content": {"application/octet-stream": {}}}},
)
async def artefact(digest: str, file: EngineFile, ctx: Ctx) -> FileResponse:
    """Return one file of an artefact that engines may hold, as stored. The engine checks it against the digest."""
    path = next((path for path in ctx.uploads.components.desired.state.adapters.values() if path.name == digest), None)
    if path is None:
        raise Refused(MODEL_NOT_FOUND, f"no engine may hold {printable(digest, 80)!r}", param="digest")
    await ctx.uploads.components.pools.fetching(_described, ctx, path)
    return FileResponse(path / file, media_type="application/octet-stream")


def _engine_name(ctx: Context, model: str) -> str | None:
    if model in ctx.uploads.components.desired.state.adapters:
        return model
    target = ctx.routing_table.snapshot.targets.get(model)
    return target.engine_name if target is not None and "@" in model else None


def _described(ctx: Context, path: Path) -> tuple[dict[str, int], dict[str, Any] | None]:
    """Return `_sizes` and the envelope in the artefact's manifest, None if it has none.

    Raises Unavailable STORE_FAILED, also if signatures are asked for and it has none that counts.
    """
    sizes = _sizes(ctx, path)
    return sizes, statement_in(ctx.uploads.components.blobs.checked_manifest(Digest(path.name)))


def _sizes(ctx: Context, path: Path) -> dict[str, int]:
    """Return each file's size in bytes, fetching it from object storage if needed. Raises Unavailable STORE_FAILED."""
    ctx.uploads.components.blobs.touch(Digest(path.name))
    try:
        return {file: (path / file).stat().st_size for file in ENGINE_FILES}
    except OSError as error:
        raise Unavailable(STORE_FAILED, f"artefact {path.name[:12]}: {error.strerror}") from error
