"""GET /usage: what requests used, by hour, tenant, key, adapter and version, as JSON or CSV."""

import csv
import io
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response, StreamingResponse

from app.api.access.caller import caller_of, guarded
from app.api.dependencies import Context, context
from app.api.tenant_schemas import UsageLine, UsagePage
from app.concurrency.pools import Pool
from app.domain.errors import BAD_REQUEST, Refused
from app.domain.names import MAX_NUMBER
from app.domain.usage import Usage, UsedBy, hour_of
from app.store.catalogue.usage import UsageStore

router = APIRouter(tags=["tenants"], dependencies=[Depends(guarded)])
Ctx = Annotated[Context, Depends(context)]

PAGE: Final = 1000
"""Default number of lines in one answer."""

MAX_PAGE: Final = 10_000
"""Most lines in one answer, which is made in memory."""

MAX_AFTER: Final = 400
"""Most characters of `after`: an hour, a tenant, a key, a full name and a number."""

COLUMNS: Final = tuple(UsageLine.model_fields)
DAY: Final = timedelta(days=1)


class Format(StrEnum):
    """Format of the answer. CSV has every line of the time that is asked for."""

    JSON = "json"
    CSV = "csv"


@router.get(
    "/usage",
    response_model=UsagePage,
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}},
)
async def usage(
    request: Request,
    ctx: Ctx,
    since: Annotated[datetime | None, Query(description="First hour, UTC; default: a day ago")] = None,
    until: Annotated[datetime | None, Query(description="First hour that is left out; default: none")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Most lines in the answer")] = PAGE,
    after: Annotated[str | None, Query(max_length=MAX_AFTER, description="`next` of the page before")] = None,
    format: Annotated[Format, Query(description="json, or csv, which has no pages")] = Format.JSON,  # noqa: A002
) -> Response:
    """Show usage by the hour: a tenant's own to its administrators, everyone's to the operator, who may name a tenant.

    An hour that is over changes no more a few seconds later, so that an export can be repeated.
    """
    caller, now = caller_of(request), datetime.now(UTC)
    begin, end = _utc(since or now - DAY), _utc(until or now + DAY)
    await ctx.usage.settle()
    store, reading = ctx.uploads.components.catalogue.usage, ctx.uploads.components.pools.reading
    asked = _Asked(store, hour_of(begin), end, caller.sees)
    if format is Format.CSV:
        return StreamingResponse(_lines(asked, reading), media_type="text/csv", headers={"Cache-Control": "no-store"})
    return await reading(_page, asked, _parsed(after) if after else None, limit)


@dataclass(frozen=True, slots=True)
class _Asked:
    """Hours from `begin` on and before `end` of a tenant, or of all."""

    store: UsageStore
    begin: datetime
    end: datetime
    tenant: str | None

    def lines(self, after: UsedBy | None, most: int) -> tuple[tuple[UsedBy, Usage], ...]:
        """Return the lines after a place. Blocking."""
        return self.store.between(self.begin, self.end, self.tenant, after, most)


def _page(asked: _Asked, after: UsedBy | None, limit: int) -> Response:
    """Return a page. Blocking, and as long as its lines are many: to be called in a thread."""
    found = asked.lines(after, limit + 1)
    more = _text(found[limit - 1][0]) if len(found) > limit else None
    return UsagePage(usage=[_line(*one) for one in found[:limit]], next=more).response()


def _rows(asked: _Asked, after: UsedBy | None) -> tuple[bytes, UsedBy | None]:
    """Return some lines as CSV, and the place of the last one; None at the end. Blocking."""
    found = asked.lines(after, PAGE)
    rows = [[_line(*one).plain()[name] for name in COLUMNS] for one in found]
    return _csv(rows), found[-1][0] if found else None


async def _lines(asked: _Asked, reading: Pool) -> AsyncIterator[bytes]:
    yield _csv([COLUMNS])
    text, last = await reading(_rows, asked, None)
    while last is not None:
        yield text
        text, last = await reading(_rows, asked, last)


def _line(who: UsedBy, sums: Usage) -> UsageLine:
    return UsageLine(
        hour=who.hour,
        tenant=who.tenant,
        key=who.key,
        adapter=who.shown,
        version=who.version or None,
        requests=sums.requests,
        prompt_tokens=sums.prompt_tokens,
        cached_tokens=sums.cached_tokens,
        completion_tokens=sums.completion_tokens,
    )


def _csv(rows: list[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _text(who: UsedBy) -> str:
    return "|".join((who.hour.isoformat(), who.tenant, who.key, who.adapter, str(who.version)))


def _parsed(text: str) -> UsedBy:
    """Return the place that `_text` wrote. Raises Refused BAD_REQUEST."""
    try:
        hour, tenant, key, adapter, version = text.split("|")
        if not text.isprintable() or not 0 <= int(version) <= MAX_NUMBER:
            raise ValueError(text)
        return UsedBy(_utc(datetime.fromisoformat(hour)), tenant, key, adapter, int(version))
    except ValueError as error:
        raise Refused(BAD_REQUEST, "after must be the `next` of an answer", param="after") from error


def _utc(moment: datetime) -> datetime:
    """Return a moment in UTC, which it is in already if it names no zone. Raises Refused BAD_REQUEST."""
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError as error:
        raise Refused(BAD_REQUEST, f"there is no such time in UTC: {moment.isoformat()}") from error
