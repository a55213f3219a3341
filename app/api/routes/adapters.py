"""Routes that upload, list, show, warm, roll back, transfer and delete adapters."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import Response

from app.api.access.caller import AdapterInPath, about, caller_of, guarded
from app.api.bodies import body_of
from app.api.dependencies import Context, context, holder_of
from app.api.openapi import body
from app.api.schemas import (
    Adapter,
    AdapterPage,
    Envelope,
    Error,
    NewImport,
    NewOwner,
    Owner,
    Report,
    SigstoreBundle,
    Version,
    View,
    Warmed,
    WarmEngine,
)
from app.api.views import adapters_page, one_adapter, one_version, remarks_on
from app.domain.api_keys import check_owner
from app.domain.coarse import coarse_verdict
from app.domain.errors import BAD_REQUEST, GatewayError, Refused, Stage
from app.domain.manifest import received_json, verdict_json
from app.domain.names import MAX_NUMBER, NAME_LIMIT
from app.domain.tenants import split_name
from app.domain.verdict import Verdict
from app.domain.version_state import State
from app.gateway.attestation import attestation, model_signature
from app.gateway.uploads import Uploads
from app.gateway.warm_up import warm
from app.observe.log import event
from app.serve import json_body
from app.store.catalogue.beginning import Same
from app.upload.receive import PendingUpload, SealedUpload

router = APIRouter(tags=["adapters"], dependencies=[Depends(guarded)])
Ctx = Annotated[Context, Depends(context)]

PAGE: Final = 100
"""Default number of adapters in one response."""

MAX_PAGE: Final = 1000
"""Most adapters in one response: about 600 kB, if each has one version."""

MAX_OWNER_BODY: Final = 1024
"""Most bytes of a transfer's body: a label of 63 characters, in any JSON escaping."""

Number = Annotated[int, Path(ge=1, le=MAX_NUMBER)]

_FORM: Final = {
    "type": "object",
    "required": ["name", "config", "weights"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "description": "Adapter name"},
        "config": {"type": "string", "format": "binary", "description": "adapter_config.json"},
        "weights": {"type": "string", "format": "binary", "description": "adapter_model.safetensors"},
        "signature": {
            "type": "string",
            "format": "binary",
            "description": "OpenSSF Model Signing signature of both files, by a key trusted for the tenant",
        },
    },
}
UPLOAD_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": _FORM},
            "application/json": {"schema": NewImport.model_json_schema()},
        },
    }
}
"""Description of an upload's body: the gateway's own parser streams it, so FastAPI cannot describe it."""

VERSION_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {status: {"model": Version} for status in (200, 202)}
"""Description of the answers, besides 201, of a route that may make a version."""


async def _receive(request: Request, ctx: Context) -> PendingUpload:
    with ctx.metrics.stage(Stage.UPLOAD) as line:
        upload = await ctx.receive(request)
        line |= {"adapter": upload.name, "received": upload.received.weights_digest.hex}
        if upload.provenance is not None:
            line |= {"source": upload.provenance.source, "pin": ", ".join(upload.provenance.pin.values())}
        return upload


@router.post(
    "/adapters", status_code=201, response_model=Version, responses=VERSION_RESPONSES, openapi_extra=UPLOAD_BODY
)
async def upload(
    request: Request,
    ctx: Ctx,
    wait: Annotated[bool, Query(description="Answer when served (201), or as soon as stored (202)")] = True,
) -> Response:
    """Register and sanitise an adapter: validate, screen, prune, store, load. Its files come as a form, or the gateway
    fetches them from the source that a JSON body names.

    201: a new version is served; 200: a version with these bytes exists already; 202: stored, and loaded once the engine is
    available.
    """
    caller = caller_of(request)
    try:
        received = await _receive(request, ctx)
    except GatewayError as error:
        ctx.metrics.upload_refused(error)
        raise
    about(request, caller.full(received.name))
    async with received as sealed:
        begun = await ctx.uploads.register(sealed, wait=wait, by=caller.uploader)
    row = begun.row
    view = await ctx.uploads.components.pools.reading(
        one_version, ctx.uploads, str(row.name), row.number, caller.key.operator
    )
    served = row.state is not State.STORED
    location = caller.address(f"/adapters/{row.name.plain}/versions/{row.number}")
    status = (200 if isinstance(begun, Same) else 201) if served else 202
    return view.response(status, {"Location": location})


@router.post("/screen", response_model=Report, openapi_extra=UPLOAD_BODY)
async def dry_run(
    request: Request,
    ctx: Ctx,
    canaries: Annotated[bool, Query(description="Also ask the canaries, as before a version gets its name")] = False,
) -> Response:
    """Measure an adapter without giving it a name, and return its report, also if it would be rejected.

    With `canaries` it is loaded into the engine for as long as it is asked, under a name that no request can use, and the
    report has `behaviour`; it has none if the adapter is rejected before, or nothing is left of it. Scores are rounded to
    two digits for all callers but the operator, here and in every other report.
    """
    caller = caller_of(request)
    rules = ctx.uploads.components.rules.of(caller.tenant)
    async with await _receive(request, ctx) as sealed:
        behaviour: dict[str, Any] = {}
        if not canaries:
            work = ctx.uploads.components.pools.screening.start(_measured, ctx.uploads, sealed.take(), caller.tenant)
            verdict = await asyncio.shield(work)
        elif ctx.evaluation is None or rules.plan is None:
            raise Refused(BAD_REQUEST, "this gateway has no canaries (GATEWAY_CANARIES)", param="canaries")
        else:
            tried = await ctx.evaluation.dry_run(rules, sealed, holder_of(request))
            verdict = tried.verdict
            behaviour = {"behaviour": tried.found.behaviour} if tried.found else {}
        measured = verdict_json(verdict)
        shown = measured if caller.key.operator else coarse_verdict(measured)
        received = received_json(sealed.received)
        return Report(received=received, verdict=shown, **behaviour, **remarks_on(measured)).response()


def _measured(uploads: Uploads, sealed: SealedUpload, tenant: str) -> Verdict:
    """Measure and close the upload, in a thread that goes on if the client disconnects. Freeing gigabytes takes time, so
    the file is closed here."""
    with sealed:
        return uploads.measure(sealed, tenant)


@router.get("/adapters", response_model=AdapterPage)
async def index(
    request: Request,
    ctx: Ctx,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Most adapters in the answer")] = PAGE,
    after: Annotated[str, Query(max_length=NAME_LIMIT, description="`next` of the page before")] = "",
) -> Response:
    """List adapters with their versions, ordered by name; `next` is null on the last page."""
    caller = caller_of(request)
    return await read_view(ctx, adapters_page, caller.tenant, after, limit, caller.uploader.admin)


@router.get("/adapters/{name}", response_model=Adapter)
async def adapter(name: AdapterInPath, request: Request, ctx: Ctx) -> Response:
    """Show one adapter with its versions."""
    return await read_view(ctx, one_adapter, name, caller_of(request).uploader.admin)


@router.get("/adapters/{name}/versions/{number}", response_model=Version)
async def version(name: AdapterInPath, number: Number, request: Request, ctx: Ctx) -> Response:
    """Show one version with its report: every module's score and decision."""
    return await read_view(ctx, one_version, name, number, caller_of(request).key.operator)


@router.get("/adapters/{name}/versions/{number}/attestation", response_model=Envelope)
async def signed_statement(name: AdapterInPath, number: Number, ctx: Ctx) -> Response:
    """Return a signed statement about one version: the bytes of its files, and how they were screened (DSSE, in-toto)."""
    components = ctx.uploads.components
    envelope = await components.pools.fetching(attestation, components, ctx.signer, name, number)
    return Envelope.model_validate(envelope).response()


@router.get("/adapters/{name}/versions/{number}/signature", response_model=SigstoreBundle)
async def model_sig(name: AdapterInPath, number: Number, ctx: Ctx) -> Response:
    """Return the signature of one version's files in the format of OpenSSF Model Signing: keep it as `model.sig`."""
    components = ctx.uploads.components
    bundle = await components.pools.fetching(model_signature, components, ctx.signer, name, number)
    return SigstoreBundle.model_validate(bundle).response()


async def read_view(ctx: Context, view: Callable[..., View], *which: Any) -> Response:
    """Make a view and its JSON, both in a thread; what it shows as served is served when this returns."""
    response = await ctx.uploads.components.pools.reading(lambda: view(ctx.uploads, *which).response())
    await ctx.uploads.publishing.in_force()
    return response


@router.post("/adapters/{name}/rollback", response_model=Version)
async def rollback(
    name: AdapterInPath, request: Request, ctx: Ctx, to: Annotated[int | None, Query(ge=1, le=MAX_NUMBER)] = None
) -> Response:
    """Point the name to an earlier version: `to`, or the one before the active version."""
    row = await ctx.uploads.publishing.rollback(name, to)
    return await read_view(ctx, one_version, name, row.number, caller_of(request).key.operator)


@router.post("/adapters/{name}/warm", response_model=Warmed)
async def warm_up(
    name: AdapterInPath,
    ctx: Ctx,
    version: Annotated[
        int | None, Query(ge=1, le=MAX_NUMBER, description="Version number; default: the active version")
    ] = None,
) -> Response:
    """Request one token from every engine that holds the version, so that it is in a slot when the first request comes.

    `engines`: seconds each engine took, and its error if it is not warm; empty for an emptied version, which the served
    model answers. The version stays warm as long as any adapter that was just used: vLLM cannot pin one.
    """
    done = await warm(ctx.uploads.components, name, version)
    engines = [
        WarmEngine(
            engine=one.number,
            warm=one.error is None,
            seconds=round(one.seconds, 6),
            error=Error.of(one.error) if one.error else None,
        )
        for one in done.engines
    ]
    return Warmed(model=split_name(done.target.asked)[1], digest=done.target.digest, engines=engines).response()


@router.put("/adapters/{name}/owner", response_model=Owner, openapi_extra=body(NewOwner.model_json_schema()))
async def transfer(name: AdapterInPath, request: Request, ctx: Ctx) -> Response:
    """Transfer an adapter to another owner, whose keys, besides administrators', may push to it from now on."""
    async with body_of(request, MAX_OWNER_BODY) as raw:
        owner = _owner_in(raw)
    row = await ctx.uploads.components.pools.store(ctx.uploads.components.catalogue.transfer, name, owner)
    event("transferred", adapter=row.name, owner=owner)
    return Owner(name=row.name.plain, owner=owner).response()


def _owner_in(raw: bytes) -> str:
    fields = json_body.read(raw)
    owner = fields.get("owner")
    if fields.keys() != {"owner"} or not isinstance(owner, str):
        raise Refused(BAD_REQUEST, 'the body must be {"owner": "<label>"}', param="owner")
    try:
        check_owner(owner)
    except ValueError as error:
        raise Refused(BAD_REQUEST, str(error), param="owner") from error
    return owner


@router.delete("/adapters/{name}", status_code=204)
async def delete(name: AdapterInPath, ctx: Ctx) -> Response:
    """Delete an adapter with all its versions. Running requests finish; its version numbers are never reused."""
    await ctx.uploads.publishing.delete(name)
    return Response(status_code=204)
