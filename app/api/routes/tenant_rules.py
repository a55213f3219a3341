"""Routes for the rules that a tenant has beside the operator's: a stricter policy, and canaries of its own."""

from dataclasses import asdict
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.access.caller import about, guarded
from app.api.bodies import body_of, posted
from app.api.dependencies import Context, context
from app.api.openapi import body
from app.api.tenant_schemas import PolicyValues, TenantCanaries, TenantPolicyShown
from app.domain.policy_override import FIELDS, override_from
from app.domain.tenants import full_name
from app.evaluate.battery import Battery
from app.gateway.tenant_rules import MAX_BATTERY_BYTES

router = APIRouter(tags=["tenants"], dependencies=[Depends(guarded)])
Ctx = Annotated[Context, Depends(context)]

MAX_BODY: Final = 2048
"""Most bytes of a body about a policy: ten numbers with their names."""

MOST: Final = 1 << 20
"""Largest number of modules or outputs: above every model's."""

LINES: Final = "text/plain"

Score = Annotated[float | None, Field(allow_inf_nan=False)]
Share = Annotated[float | None, Field(ge=0, le=1)]
Count = Annotated[int | None, Field(ge=0, le=MOST)]


class NewPolicy(BaseModel):
    """Body that sets a tenant's policy; null or missing: the operator's value."""

    model_config = ConfigDict(extra="forbid", strict=True)

    tau: Score = None
    project_outputs: Count = None
    max_removed_share: Share = None
    max_pruned: Count = None
    max_pruned_share: Share = None
    reject_tau: Score = None
    max_update_ratio: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    unscorable: Literal["reject", "prune", "keep"] | None = None  # Unscorable, without a definition beside the schema
    max_block_score: Score = None
    max_adapter_score: Score = None


@router.get("/tenants/{tenant}/policy", response_model=TenantPolicyShown)
async def policy(tenant: str, ctx: Ctx) -> Response:
    """Show a tenant's own values, and the policy that they make with the operator's."""
    found = await ctx.tenant_rules.policy(tenant)
    in_force = PolicyValues(**{name: getattr(found.in_force, name) for name in FIELDS})
    return TenantPolicyShown(tenant=tenant, policy=PolicyValues(**asdict(found.override)), in_force=in_force).response()


@router.put(
    "/tenants/{tenant}/policy", response_model=TenantPolicyShown, openapi_extra=body(NewPolicy.model_json_schema())
)
async def set_policy(tenant: str, request: Request, ctx: Ctx) -> Response:
    """Replace a tenant's own values, none of which may be weaker than the operator's; what is missing is the operator's.

    The tenant's versions are measured again, and withheld until they passed.
    """
    about(request, full_name(tenant, ""))
    wanted = await posted(request, NewPolicy, MAX_BODY, empty=b"")
    await ctx.tenant_rules.set_policy(tenant, override_from(wanted.model_dump()))
    return await policy(tenant, ctx)


@router.get("/tenants/{tenant}/canaries", response_model=TenantCanaries)
async def canaries(tenant: str, ctx: Ctx) -> Response:
    """Count a tenant's own canaries by category; no canary is shown."""
    return _shown(tenant, await ctx.tenant_rules.battery(tenant))


@router.put("/tenants/{tenant}/canaries", response_model=TenantCanaries, openapi_extra=body({"type": "string"}, LINES))
async def set_canaries(tenant: str, request: Request, ctx: Ctx) -> Response:
    """Replace a tenant's own canaries, JSON lines as in the operator's battery; they are asked beside the operator's."""
    about(request, full_name(tenant, ""))
    async with body_of(request, MAX_BATTERY_BYTES) as lines:
        await ctx.tenant_rules.set_battery(tenant, lines)
    return await canaries(tenant, ctx)


@router.delete("/tenants/{tenant}/canaries", status_code=204)
async def delete_canaries(tenant: str, request: Request, ctx: Ctx) -> Response:
    """Remove a tenant's own canaries; the operator's stay."""
    about(request, full_name(tenant, ""))
    await ctx.tenant_rules.set_battery(tenant, None)
    return Response(status_code=204)


def _shown(tenant: str, battery: Battery | None) -> Response:
    if battery is None:
        return TenantCanaries(tenant=tenant, canaries=0, digest=None, categories={}).response()
    shown = {"canaries": len(battery.canaries), "digest": str(battery.digest), "categories": dict(battery.categories)}
    return TenantCanaries.model_validate({"tenant": tenant, **shown}).response()
