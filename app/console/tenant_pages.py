"""Console pages about tenants: their keys, limits, webhooks and usage, and, for the operator, all of them."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from app.api.access.caller import caller_of, guarded
from app.api.dependencies import Context, context
from app.console.pages import ConsoleRoute, show
from app.console.usage_chart import usage_shown
from app.domain.api_keys import OPERATOR_ROLES, Role
from app.domain.outside import MAX_URL
from app.domain.tenant_limits import MOST
from app.domain.tenants import DEFAULT
from app.domain.webhook import SUBSCRIBABLE

router = APIRouter(route_class=ConsoleRoute, include_in_schema=False, dependencies=[Depends(guarded)])
Ctx = Annotated[Context, Depends(context)]


@router.get("/console/keys")
def keys(request: Request, ctx: Ctx) -> Response:
    """Show a tenant's keys that were made at run time, and a form to make one."""
    tenant = caller_of(request).tenant
    roles = [role for role in Role if tenant == DEFAULT or role not in OPERATOR_ROLES]
    stored = ctx.uploads.components.catalogue.keys.of_tenant(tenant)
    return show(request, ctx, "keys.html", keys=stored, roles=roles, tenant=tenant)


@router.get("/console/limits")
async def limits(request: Request, ctx: Ctx) -> Response:
    """Show a tenant's limits and what it stores, to the operator as a form."""
    caller = caller_of(request)
    in_force, stock = await ctx.meter.stock(caller.tenant)
    stored = asdict(stock)
    rows = [(name, most, stored.get(name)) for name, most in asdict(in_force).items()]
    may_set = caller.permits("PUT", "/tenants/{tenant}/limits")
    return show(request, ctx, "limits.html", limits=rows, tenant=caller.tenant, may_set=may_set, largest=MOST)


@router.get("/console/webhooks")
async def webhooks(request: Request, ctx: Ctx, webhook: Annotated[str | None, Query(max_length=40)] = None) -> Response:
    """Show a tenant's webhooks and a form to make one. webhook: show its newest messages as well."""
    tenant = caller_of(request).tenant
    found = await ctx.webhooks.of_tenant(tenant)
    messages = None if webhook is None else await ctx.webhooks.messages(tenant, webhook)
    return show(
        request,
        ctx,
        "webhooks.html",
        tenant=tenant,
        on=ctx.webhooks.on,
        webhooks=found,
        topics=sorted(SUBSCRIBABLE),
        longest=MAX_URL,
        chosen=webhook,
        messages=messages,
    )


@router.get("/console/usage")
async def usage(request: Request, ctx: Ctx) -> Response:
    """Show the tokens of the last days, to the operator everyone's."""
    whose = caller_of(request).sees
    await ctx.usage.settle()
    components = ctx.uploads.components
    found = await components.pools.reading(usage_shown, components.catalogue.usage, whose)
    return show(request, ctx, "usage.html", usage=found, everyone=whose is None)


@router.get("/console/tenants")
def tenants(request: Request, ctx: Ctx) -> Response:
    """Show every tenant that has an adapter or a key made at run time."""
    return show(request, ctx, "tenants.html", tenants=ctx.uploads.components.catalogue.tenants())
