"""Routes for tenants: their keys made at run time, which their administrators manage, and their limits."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.access.caller import about, guarded
from app.api.bodies import UNCACHED, posted
from app.api.dependencies import Context, context
from app.api.openapi import body
from app.api.tenant_schemas import (
    ApiKeys,
    Limits,
    NewApiKey,
    StockHeld,
    StoredApiKey,
    Tenant,
    TenantLimitsShown,
    Tenants,
)
from app.domain.api_keys import Role
from app.domain.errors import BAD_REQUEST, Refused
from app.domain.stored_key import StoredKey
from app.domain.tenant_limits import MOST, TenantLimits
from app.domain.tenants import full_name

router = APIRouter(tags=["tenants"], dependencies=[Depends(guarded)])
Ctx = Annotated[Context, Depends(context)]

MAX_BODY: Final = 2048
"""Most bytes of a body about a key: two labels of 63 characters and the roles, in any JSON escaping."""

MAX_LIFE_S: Final = 100 * 366 * 86_400
"""Most seconds that a key may be told to live: a century, far below the last year that a database stores."""

MAX_OVERLAP_S: Final = 30 * 86_400
"""Most seconds that a rotated key is accepted as well: a month."""

Limit = Annotated[int | None, Field(ge=0, le=MOST)]


class NewKey(BaseModel):
    """Body of a request for a key. owner: label of the keys that own the same adapters; default: the key's own name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    roles: list[str] = Field(min_length=1, max_length=len(Role))
    owner: str | None = None
    expires_in_seconds: int | None = Field(None, ge=1, le=MAX_LIFE_S)


class Rotation(BaseModel):
    """Body of a rotation. overlap_seconds: time for which the key before is accepted as well."""

    model_config = ConfigDict(extra="forbid", strict=True)

    overlap_seconds: int = Field(0, ge=0, le=MAX_OVERLAP_S)


class NewLimits(BaseModel):
    """Body that sets a tenant's limits; null or missing: unlimited."""

    model_config = ConfigDict(extra="forbid", strict=True)

    adapters: Limit = None
    versions: Limit = None
    bytes: Limit = None
    uploads_per_day: Limit = None
    screenings_per_day: Limit = None
    requests_per_minute: Limit = None
    tokens_per_minute: Limit = None
    concurrent_requests: Limit = None


@router.get("/tenants", response_model=Tenants)
async def tenants(ctx: Ctx) -> Response:
    """List the tenants that have an adapter or a key made at run time."""
    found = await ctx.uploads.components.pools.reading(ctx.uploads.components.catalogue.tenants)
    return Tenants(
        tenants=[Tenant(tenant=label, adapters=adapters, keys=keys) for label, adapters, keys in found]
    ).response()


@router.get("/tenants/{tenant}/limits", response_model=TenantLimitsShown)
async def limits(tenant: str, ctx: Ctx) -> Response:
    """Show the limits of a tenant, and what it stores."""
    in_force, stock = await ctx.meter.stock(tenant)
    shown = Limits(**asdict(in_force))
    return TenantLimitsShown(tenant=tenant, limits=shown, stored=StockHeld(**asdict(stock))).response()


@router.put(
    "/tenants/{tenant}/limits", response_model=TenantLimitsShown, openapi_extra=body(NewLimits.model_json_schema())
)
async def set_limits(tenant: str, request: Request, ctx: Ctx) -> Response:
    """Replace the limits of a tenant; what is missing is unlimited. In force on every gateway within a second."""
    about(request, full_name(tenant, ""))
    wanted = await posted(request, NewLimits, MAX_BODY, empty=b"")
    await ctx.meter.set(tenant, TenantLimits(**wanted.model_dump()))
    return await limits(tenant, ctx)


@router.get("/tenants/{tenant}/keys", response_model=ApiKeys)
async def keys(tenant: str, ctx: Ctx) -> Response:
    """List a tenant's keys that were made at run time; those of the operator's files are not among them."""
    stored = await ctx.uploads.components.pools.reading(ctx.uploads.components.catalogue.keys.of_tenant, tenant)
    return ApiKeys(keys=[StoredApiKey(**_fields(one)) for one in stored]).response()


@router.post(
    "/tenants/{tenant}/keys",
    status_code=201,
    response_model=NewApiKey,
    openapi_extra=body(NewKey.model_json_schema()),
)
async def create(tenant: str, request: Request, ctx: Ctx) -> Response:
    """Make a key. The answer holds the key itself, which is stored nowhere; every gateway accepts it within a second."""
    wanted = await posted(request, NewKey, MAX_BODY)
    roles = [_role(role) for role in wanted.roles]
    about(request, full_name(tenant, wanted.name))
    life = wanted.expires_in_seconds
    expires = datetime.now(UTC) + timedelta(seconds=life) if life is not None else None
    text, stored = await ctx.ring.create(tenant, wanted.name, roles, wanted.owner, expires)
    return NewApiKey(**_fields(stored), key=text).response(201, UNCACHED)


@router.post(
    "/tenants/{tenant}/keys/{key}/rotate",
    response_model=NewApiKey,
    openapi_extra=body(Rotation.model_json_schema()),
)
async def rotate(tenant: str, key: str, request: Request, ctx: Ctx) -> Response:
    """Replace a key under its name; the one before is accepted for `overlap_seconds` more."""
    about(request, full_name(tenant, key))
    wanted = await posted(request, Rotation, MAX_BODY)
    text, stored = await ctx.ring.rotate(tenant, key, wanted.overlap_seconds)
    return NewApiKey(**_fields(stored), key=text).response(200, UNCACHED)


@router.delete("/tenants/{tenant}/keys/{key}", status_code=204)
async def revoke(tenant: str, key: str, request: Request, ctx: Ctx) -> Response:
    """Revoke a key: every gateway refuses it within a second. Running requests end as usual."""
    about(request, full_name(tenant, key))
    await ctx.ring.revoke(tenant, key)
    return Response(status_code=204)


def _fields(stored: StoredKey) -> Mapping[str, Any]:
    return {
        "tenant": stored.key.tenant,
        "name": stored.key.name,
        "roles": sorted(stored.key.roles),
        "owner": stored.key.owner,
        "created_at": stored.created_at,
        "expires_at": stored.expires_at,
        "last_used_at": stored.last_used_at,
        "previous_until": stored.previous_until,
    }


def _role(name: str) -> Role:
    try:
        return Role(name)
    except ValueError as error:
        raise Refused(BAD_REQUEST, f"no such role: {name[:40]!r}", param="roles") from error
