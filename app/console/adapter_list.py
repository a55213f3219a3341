"""List of adapters: status and traffic of each."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from app.domain.errors import printable
from app.domain.version_state import IN_FLIGHT, State
from app.gateway.uploads import Uploads
from app.observe.traffic import Traffic, TrafficByAdapter
from app.store.catalogue.tables import AdapterRow, VersionRow

PAGE: Final = 50
"""Adapters on one page of the list."""

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


@dataclass(frozen=True, slots=True)
class Line:
    """One adapter. shown: its active version, else its newest; None while its first upload is just beginning.

    newer: the newest version, if that is not the one shown. traffic: None if it is not counted separately.
    """

    name: str
    shown: VersionRow | None
    standing: Standing | None
    newer: VersionRow | None
    newer_standing: Standing | None
    traffic: Traffic | None

    @property
    def share(self) -> float | None:
        """Share of the shown version's modules that were cut out (0..1), None until screened."""
        return pruned_share(self.shown) if self.shown is not None else None


@dataclass(frozen=True, slots=True)
class Listing:
    """One page of the list. matching: adapters on all pages. contains: the filter. number: this page's, counted from 1."""

    lines: tuple[Line, ...]
    matching: int
    contains: str
    number: int
    pages: int


def listing(uploads: Uploads, traffic: TrafficByAdapter, contains: str, number: int) -> Listing:
    """Read one page. Blocking. A number beyond the last page gives the last page."""
    contains = printable(contains.strip(), MAX_FILTER)
    catalogue = uploads.components.catalogue
    page = catalogue.page(contains, (number - 1) * PAGE, PAGE)
    pages = max(1, -(-page.matching // PAGE))
    if number > pages:
        number = pages
        page = catalogue.page(contains, (number - 1) * PAGE, PAGE)
    lines = tuple(_line(uploads, row, page.versions[row.name], traffic) for row in page.adapters)
    return Listing(lines, page.matching, contains, number, pages)


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


def _line(uploads: Uploads, row: AdapterRow, versions: tuple[VersionRow, ...], traffic: TrafficByAdapter) -> Line:
    newest = versions[-1] if versions else None
    shown = next((version for version in versions if version.number == row.active), newest)
    newer = newest if newest is not shown else None
    return Line(
        name=str(row.name),
        shown=shown,
        standing=standing(uploads, shown) if shown else None,
        newer=newer,
        newer_standing=standing(uploads, newer) if newer else None,
        traffic=traffic.of(str(row.name)),
    )
