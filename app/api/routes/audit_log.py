"""GET /audit: the audit log, by which changes and refusals are told afterwards."""

from dataclasses import asdict
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from app.api.access.caller import caller_of, guarded
from app.api.dependencies import Context, context
from app.api.schemas import AuditedAct, AuditPage
from app.domain.tenants import DEFAULT

router = APIRouter(tags=["tenants"], dependencies=[Depends(guarded)])

PAGE: Final = 1000
"""Default number of entries in one answer."""

MAX_PAGE: Final = 10_000
"""Most entries in one answer: about 5 MB."""

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
    whose = None if caller.key.operator and caller.tenant == DEFAULT else caller.tenant
    found = await components.pools.reading(components.catalogue.audit_log.after, after, limit + 1, whose)
    entries = [
        AuditedAct(number=one.number, **asdict(one.act), previous=one.previous, hash=one.hash) for one in found[:limit]
    ]
    return AuditPage(entries=entries, next=entries[-1].number if len(found) > limit else None).response()
