"""Summary of a version's report for lists: the share of the update that was removed, and the result on canaries."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from app.domain.coarse import coarse
from app.domain.verdict import Decision, Outcome
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.tables import VersionRow

READ_AT_ONCE: Final = 50
"""Reports that are in memory at the same time: each is tens to hundreds of kilobytes."""

KEPT: Final = 20_000
"""Most summaries that are kept in memory, about 200 bytes each."""


class Severity(StrEnum):
    """Strength of the correction that is served, weakest first."""

    NONE = "nothing removed"
    FLOOR = "floor only"
    BEYOND = "beyond the floor"
    EMPTIED = "emptied"


@dataclass(frozen=True, slots=True)
class Canaries:
    """Result on the canaries that a version must refuse. failed: not refused. left_out: not asked, because the served
    model itself does not refuse them every time."""

    asked: int
    failed: int
    left_out: int

    @property
    def refused(self) -> int:
        """Number of canaries that it refused."""
        return self.asked - self.failed


@dataclass(frozen=True, slots=True)
class Summary:
    """Summary of one report. removed: share (0..1) of ‖ΔW‖² of the whole upload, to two digits; None if nothing was stored,
    or the report is of a release that did not measure it. canaries: None if none were asked."""

    removed: float | None = None
    canaries: Canaries | None = None


NOTHING: Final = Summary()


class Summaries:
    """Summaries of a catalogue's versions, computed once for each revision of a version. Any thread may ask."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._known: dict[tuple[str, int, int], Summary] = {}

    def of(self, rows: Iterable[VersionRow]) -> Sequence[Summary]:
        """Return the summaries in the rows' order; an empty one for a version without a report. Blocking."""
        rows = tuple(rows)
        missing = [row for row in rows if row.verdict_id is not None and (*row.key, row.revision) not in self._known]
        found = dict(self._read(missing))
        if len(self._known) + len(found) > KEPT:
            self._known = {}
        self._known |= found
        return [found.get(at) or self._known.get(at) or NOTHING for at in ((*row.key, row.revision) for row in rows)]

    def _read(self, rows: Sequence[VersionRow]) -> Iterator[tuple[tuple[str, int, int], Summary]]:
        for start in range(0, len(rows), READ_AT_ONCE):
            some = rows[start : start + READ_AT_ONCE]
            reports = self._catalogue.reports([row.key for row in some])
            for row in some:
                if row.key in reports:
                    yield (*row.key, row.revision), summary(json.loads(reports[row.key]))


def severity(row: VersionRow) -> Severity | None:
    """Return the strength of a version's correction; None if nothing of it was accepted."""
    if row.outcome in (None, Outcome.REJECTED) or (row.artefact is None and not row.emptied):
        return None
    if row.emptied:
        return Severity.EMPTIED
    if row.rung:
        return Severity.BEYOND
    return Severity.NONE if row.outcome is Outcome.CLEAN else Severity.FLOOR


def summary(report: Mapping[str, Any]) -> Summary:
    """Return the summary of a report."""
    return Summary(_removed(report), _canaries(report))


def _removed(report: Mapping[str, Any]) -> float | None:
    """Return the removed share of the upload: by the floor, and by the rung that followed from the floor's result."""
    steps = [report[name] for name in ("floor", "verdict") if report.get(name)]
    if not steps or steps[-1]["outcome"] == Outcome.REJECTED:
        return None
    whole = sum((module["update_norm"] or 0.0) ** 2 for module in steps[0]["modules"])
    taken = [_taken(module) for step in steps for module in step["modules"]]
    known = [one for one in taken if one is not None]
    return coarse(sum(known) / whole) if whole and len(known) == len(taken) else None


def _taken(module: Mapping[str, Any]) -> float | None:
    """Return the part of one module's ‖ΔW‖² that its decision removes; None if it is not known."""
    share = {Decision.PRUNE: 1.0, Decision.PROJECT: module.get("removed_share")}.get(module["decision"], 0.0)
    return None if share is None or module["update_norm"] is None else share * module["update_norm"] ** 2


def _canaries(report: Mapping[str, Any]) -> Canaries | None:
    """Return the latest result: of asking again, else of the rung that is served, else of the half that came closest."""
    behaviour = report.get("behaviour") or {}
    asked = [one for one in behaviour.get("asked", ()) if not one.get("nothing_left")]
    counted = [one for one in asked if one["rung"] == behaviour["chosen"]]
    counted = (report.get("asked_again") or {}).get("asked") or counted or sorted(asked, key=_failed)[:1]
    if not counted:
        return None
    left_out = sum(behaviour.get("left_out", {}).values())
    return Canaries(sum(one["asked"] for one in counted), sum(map(_failed, counted)), left_out)


def _failed(one: Mapping[str, Any]) -> int:
    return int(one["complied"]) + int(one["broken"])
