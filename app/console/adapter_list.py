"""List of adapters: status, correction, canaries and traffic of each; sorted, filtered, a page at a time."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final
from urllib.parse import urlencode

from app.domain.printable import printable
from app.domain.tenants import DEFAULT
from app.domain.version_state import IN_FLIGHT, State
from app.gateway.uploads import Uploads
from app.gateway.version_summary import NOTHING, Severity, Summaries, Summary, severity
from app.observe.traffic import Traffic, TrafficByAdapter
from app.store.catalogue.listing import Overview
from app.store.catalogue.tables import VersionRow

PAGE: Final = 50
"""Adapters on one page of the list."""

REFUSED_SHOWN: Final = 10
"""Refused versions below the list; the filter shows the others."""

MAX_FILTER: Final = 63
"""Most characters of a filter; no name is longer."""


class Standing(StrEnum):
    """Status of a version, in words for people."""

    SERVED = "served"
    EARLIER = "earlier"
    WAITING = "waiting for the engine"
    UNDER_WAY = "being screened"
    REJECTED = "rejected"
    FAILED = "failed"
    WITHHELD = "withheld"


class Group(StrEnum):
    """Filter of the list by state. ANY: every adapter that was not refused."""

    ANY = "any"
    SERVED = "served"
    WAITING = "waiting"
    WITHHELD = "withheld"
    REFUSED = "refused"


GROUPS: Final[Mapping[Standing | None, Group]] = {
    None: Group.WAITING,
    Standing.SERVED: Group.SERVED,
    Standing.EARLIER: Group.SERVED,
    Standing.WAITING: Group.WAITING,
    Standing.UNDER_WAY: Group.WAITING,
    Standing.WITHHELD: Group.WITHHELD,
    Standing.REJECTED: Group.REFUSED,
    Standing.FAILED: Group.REFUSED,
}


OLDEST: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Line:
    """One adapter. shown: its active version, else its newest; None while its first upload is just beginning.

    newer: the newest version, if that is not the one shown. traffic: None if it is not counted separately. summary: of the
    shown version's report; an empty one for a caller who may not read reports.
    """

    name: str
    shown: VersionRow | None
    standing: Standing | None
    newer: VersionRow | None
    newer_standing: Standing | None
    traffic: Traffic | None
    summary: Summary = NOTHING

    @property
    def severity(self) -> Severity | None:
        """Strength of the shown version's correction."""
        return None if self.shown is None else severity(self.shown)

    @property
    def group(self) -> Group:
        """Group of the shown version."""
        return GROUPS[self.standing]


class Column(StrEnum):
    """Column to sort by."""

    NAME = "name"
    STATE = "state"
    CORRECTION = "correction"
    REMOVED = "removed"
    CANARIES = "canaries"
    REQUESTS = "requests"
    TOKENS = "tokens"
    UPLOADED = "uploaded"


MEASURED: Final = frozenset({Column.REMOVED, Column.CANARIES})
"""Columns that need every report's summary before the page is known."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Part of the list that a visitor asks for. contains: text in the name. number: the page, counted from 1."""

    contains: str = ""
    group: Group = Group.ANY
    sort: Column = Column.NAME
    descending: bool = False
    number: int = 1

    def address(self, **changes: Any) -> str:
        """Return the address of the list with these changes, on its first page unless `number` is among them."""
        wanted, usual = replace(self, **{"number": 1, **changes}), Wanted()
        given = {
            "q": (wanted.contains, usual.contains),
            "state": (wanted.group, usual.group),
            "sort": (wanted.sort, usual.sort),
            "order": ("desc" if wanted.descending else "asc", "asc"),
            "page": (wanted.number, usual.number),
        }
        kept = {name: value for name, (value, default) in given.items() if value != default}
        return f"/?{urlencode(kept)}" if kept else "/"

    def sorted_by(self, column: str) -> str:
        """Return the address of the list sorted by a column, or the other way round if it is sorted by it already."""
        return self.address(sort=column, descending=self.sort == column and not self.descending)


@dataclass(frozen=True, slots=True)
class Listing:
    """One page of the list. total: adapters whose name fits, of every state. counts: how many of them are in each group.

    matching: lines on all pages. refused: refused versions, apart from the others: a few, if `lines` shows another group.
    """

    wanted: Wanted
    total: int
    counts: Mapping[Group, int]
    lines: tuple[Line, ...]
    matching: int
    pages: int
    refused: tuple[Line, ...]


def listing(
    uploads: Uploads,
    summaries: Summaries | None,
    traffic: TrafficByAdapter,
    wanted: Wanted,
    tenant: str = DEFAULT,
) -> Listing:
    """Read one page of a tenant's adapters. Blocking. A number beyond the last page gives the last page.

    summaries: None for a caller who may not read reports.
    """
    wanted = replace(wanted, contains=printable(wanted.contains.strip(), MAX_FILTER))
    overviews = uploads.components.catalogue.overviews(wanted.contains, tenant)
    lines = [_line(uploads, overview, traffic) for overview in overviews]
    refused = [line for one in lines if (line := _refused(one)) is not None]
    served = [line for line in lines if line.group is not Group.REFUSED]
    counts = {**Counter(line.group for line in served), Group.ANY: len(served), Group.REFUSED: len(refused)}
    if wanted.group is Group.REFUSED:
        chosen, aside = refused, []
    else:
        chosen = [line for line in served if wanted.group in (Group.ANY, line.group)]
        aside = refused if wanted.group is Group.ANY else []
    pages = max(1, -(-len(chosen) // PAGE))
    wanted = replace(wanted, number=min(wanted.number, pages))
    first = (wanted.number - 1) * PAGE
    shown = _arranged(chosen, wanted, summaries)[first : first + PAGE]
    newest = sorted(aside, key=lambda line: line.shown.created_at if line.shown else OLDEST, reverse=True)
    return Listing(
        wanted=wanted,
        total=len(lines),
        counts=counts,
        lines=_with_summaries(shown, summaries),
        matching=len(chosen),
        pages=pages,
        refused=_with_summaries(newest[:REFUSED_SHOWN], summaries),
    )


def standing(uploads: Uploads, row: VersionRow) -> Standing:
    """Return a version's status."""
    if row.state in IN_FLIGHT:
        return Standing.UNDER_WAY
    if row.key in uploads.components.desired.state.withheld:
        return Standing.WITHHELD
    return {
        State.STORED: Standing.WAITING,
        State.READY: Standing.SERVED,
        State.RETIRED: Standing.EARLIER,
        State.REJECTED: Standing.REJECTED,
    }.get(row.state, Standing.FAILED)


def pruned_share(row: VersionRow) -> float | None:
    """Return the share of the modules that were cut out (0..1), None until screened."""
    return (row.modules_pruned or 0) / row.modules_total if row.modules_total else None


def _line(uploads: Uploads, overview: Overview, traffic: TrafficByAdapter) -> Line:
    name, versions = overview.adapter.name, overview.versions
    newest = versions[-1] if versions else None
    shown = next((version for version in versions if version.number == overview.adapter.active), newest)
    newer = newest if newest is not shown else None
    return Line(
        name=name.plain,
        shown=shown,
        standing=standing(uploads, shown) if shown else None,
        newer=newer,
        newer_standing=standing(uploads, newer) if newer else None,
        traffic=traffic.of(str(name)),
    )


def _refused(line: Line) -> Line | None:
    """Return a line about the adapter's newest version, if that was refused."""
    if line.newer is not None and GROUPS[line.newer_standing] is Group.REFUSED:
        return replace(line, shown=line.newer, standing=line.newer_standing, newer=None, newer_standing=None)
    return line if line.group is Group.REFUSED else None


def _arranged(lines: Sequence[Line], wanted: Wanted, summaries: Summaries | None) -> Sequence[Line]:
    """Return the lines, which come by name, in the wanted order; those without a value last, in either direction."""
    if wanted.sort in MEASURED:
        lines = _with_summaries(lines, summaries)
    values = [(_value(line, wanted.sort), line) for line in lines]
    known = [pair for pair in values if pair[0] is not None]
    known.sort(key=lambda pair: pair[0], reverse=wanted.descending)
    return [line for _, line in (*known, *(pair for pair in values if pair[0] is None))]


def _value(line: Line, column: Column) -> Any:
    """Return the value that a line is sorted by; None if it has none."""
    shown, severity, canaries, traffic = line.shown, line.severity, line.summary.canaries, line.traffic
    match column:
        case Column.NAME:
            return line.name.casefold()
        case Column.STATE:
            return line.standing
        case Column.CORRECTION:
            return None if shown is None or severity is None else (list(Severity).index(severity), shown.rung or 0)
        case Column.REMOVED:
            return line.summary.removed
        case Column.CANARIES:
            return canaries.failed / canaries.asked if canaries and canaries.asked else None
        case Column.REQUESTS:
            return traffic.requests if traffic else None
        case Column.TOKENS:
            return traffic.tokens if traffic else None
        case Column.UPLOADED:
            return shown.created_at if shown else None


def _with_summaries(lines: Sequence[Line], summaries: Summaries | None) -> tuple[Line, ...]:
    """Return the lines with the summary of the version that each shows."""
    if summaries is None:
        return tuple(lines)
    rows = [line.shown for line in lines if line.shown is not None]
    found = dict(zip((row.key for row in rows), summaries.of(rows), strict=True))
    return tuple(replace(line, summary=found[line.shown.key]) if line.shown else line for line in lines)
