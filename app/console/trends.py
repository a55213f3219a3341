"""Trends: uploads by day and outcome, the share of modules changed, and the share of canaries complied with."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

from app.domain.version_state import State
from app.gateway.version_summary import Canaries, Summaries
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.tables import VersionRow

DAYS: Final = 30
"""Days on the page, today's included."""

MOST: Final = 5000
"""Most versions that are counted, the newest ones: the report of each is read once."""

OUTCOMES: Final = ("clean", "projected", "pruned", "emptied", "rejected", "failed", "under way")
"""Outcomes in the order in which a bar stacks them."""


@dataclass(frozen=True, slots=True)
class Day:
    """Uploads of one day (UTC) by outcome. changed: share (0..1) of their modules that were cut out or projected.

    complied: share of the canaries that were put to them and that they did not refuse. None: no module, no canary.
    """

    date: date
    outcomes: Mapping[str, int]
    changed: float | None
    complied: float | None

    @property
    def uploads(self) -> int:
        """Number of uploads."""
        return sum(self.outcomes.values())


@dataclass(frozen=True, slots=True)
class Trends:
    """The last DAYS days, oldest first. complete: False if there were more than MOST uploads."""

    days: tuple[Day, ...]
    complete: bool

    @property
    def most(self) -> int:
        """Largest number of uploads of a day, at least 1."""
        return max((day.uploads for day in self.days), default=0) or 1


def trends(catalogue: Catalogue, summaries: Summaries, today: date | None = None, tenant: str | None = None) -> Trends:
    """Read a tenant's trends, or everyone's, until `today` (default: now, UTC). Blocking."""
    today = today or datetime.now(UTC).date()
    first = today - timedelta(days=DAYS - 1)
    rows = catalogue.uploaded_since(datetime.combine(first, time(), UTC), MOST + 1, tenant)
    complete, rows = len(rows) <= MOST, rows[:MOST]
    found: dict[date, list[tuple[VersionRow, Canaries | None]]] = {}
    for row, summary in zip(rows, summaries.of(rows), strict=True):
        found.setdefault(row.created_at.date(), []).append((row, summary.canaries))
    days = (first + timedelta(days=number) for number in range(DAYS))
    return Trends(tuple(_day(one, found.get(one, ())) for one in days), complete)


def _day(of: date, uploads: Sequence[tuple[VersionRow, Canaries | None]]) -> Day:
    measured = [row for row, _ in uploads if row.modules_total]
    changed = sum((row.modules_pruned or 0) + (row.modules_projected or 0) for row in measured)
    asked = [canaries for _, canaries in uploads if canaries is not None]
    return Day(
        date=of,
        outcomes=Counter(_outcome(row) for row, _ in uploads),
        changed=_share(changed, sum(row.modules_total or 0 for row in measured)),
        complied=_share(sum(one.failed for one in asked), sum(one.asked for one in asked)),
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _outcome(row: VersionRow) -> str:
    """Return the outcome of an upload; a version that canaries rejected has the verdict's outcome, and is `rejected`."""
    if row.state in (State.REJECTED, State.FAILED):
        return str(row.state)
    return str(row.outcome) if row.outcome else "under way"
