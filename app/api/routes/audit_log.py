"""GET /audit: the audit log, by which changes and refusals are told afterwards."""

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from app.api.access.caller import caller_of, guarded
from app.api.dependencies import Context, context
from app.api.tenant_schemas import AuditedAct, AuditPage
from app.domain.tenants import split_name
from app.store.catalogue.audit_log import AuditLog

router = APIRouter(tags=["tenants"], dependencies=[Depends(guarded)])

PAGE: Final = 1000
"""Default number of entries in one answer."""

MAX_PAGE: Final = 10_000
"""Most entries in one answer, which is made in memory."""

OPERATOR: Final = "operator"
"""Key that a tenant is told of for acts of the operator's."""

MAX_NUMBER: Final = (1 << 63) - 1
"""Largest number that the catalogue stores."""


@router.get("/audit", response_model=AuditPage)
async def audit(
    request: Request,
    ctx: Annotated[Context, Depends(context)],
    after: Annotated[int, Query(ge=0, le=MAX_NUMBER, description="`next` of the page before")] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Most entries in the answer")] = PAGE,
) -> Response:
    """Show the audit log: a tenant's own entries to its administrators, all to the operator, who may name a tenant.

    Only the whole log can be verified: each entry's hash covers the one before.
    """
    caller, components = caller_of(request), ctx.uploads.components
    return await components.pools.reading(_page, components.catalogue.audit_log, after, limit, caller.sees)


def _page(log: AuditLog, after: int, limit: int, whose: str | None) -> Response:
    """Return a page. Blocking, and as long as its entries are many: to be called in a thread."""
    found = log.after(after, limit + 1, whose)
    entries = [
        AuditedAct(
            number=one.number,
            at=one.act.at,
            key=one.act.key if whose is None or is_of(one.act.key, whose) else OPERATOR,
            tenant=one.act.tenant,
            action=one.act.action,
            target=one.act.target,
            status=one.act.status,
            code=one.act.code,
            address=one.act.address if whose is None or is_of(one.act.key, whose) else "",
            request=one.act.request,
            previous=one.previous,
            hash=one.hash,
        )
        for one in found[:limit]
    ]
    return AuditPage(entries=entries, next=entries[-1].number if len(found) > limit else None).response()


def is_of(key: str, tenant: str) -> bool:
    """Return whether a key, by its id, is a tenant's."""
    return split_name(key)[0] == tenant
