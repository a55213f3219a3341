"""Version history of an adapter, with the changes from each version to the next."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, Final

from app.console.adapter_list import Standing, pruned_share, standing
from app.console.heatmap import MARKS
from app.console.render import number, words
from app.domain.coarse import coarse_report
from app.domain.combined_score import block_of
from app.domain.errors import CODES
from app.domain.policy import EVERY_MODULE, NO_MODULE
from app.domain.rungs import NO_BOUND
from app.domain.version_state import IN_FLIGHT, State
from app.gateway.uploads import Uploads
from app.store.catalogue.tables import VersionRow

SHOWN: Final = 20
"""Versions on one page: each requires reading its report, tens to hundreds of kilobytes."""

MOVED: Final = 0.5
"""Least difference of a score that is shown, in interquartile ranges."""

MOVES_TOLD: Final = 3

UNBOUNDED: Final[Mapping[tuple[str, object], str]] = {
    ("tau", EVERY_MODULE): "every module",
    ("tau", NO_MODULE): "no module",
    ("top_k", NO_BOUND): "no bound",
}
"""Values of a policy's settings that no number says well."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes from one measured version to a later one. facts: differences other than modules, as `name: before → after`.

    corrected, spared: modules cut out or projected only in the later, or only in the earlier, version; came, went: modules
    that only the later, or only the earlier, version has. moved: the largest changes of scores. All are lines of text.
    """

    since: int
    facts: tuple[str, ...]
    corrected: tuple[str, ...]
    spared: tuple[str, ...]
    came: tuple[str, ...]
    went: tuple[str, ...]
    moved: tuple[str, ...]
    more: int
    fewer: int

    @property
    def nothing(self) -> bool:
        """True if there is no change."""
        return not (self.facts or self.corrected or self.spared or self.came or self.went or self.moved)


@dataclass(frozen=True, slots=True)
class Version:
    """One version as the page shows it. withheld: why it is not served although published. changes: None for the first
    measured version and for versions never measured. can_return: a rollback to it is possible."""

    row: VersionRow
    standing: Standing
    withheld: str | None
    unloaded: bool
    hint: str | None
    changes: Changes | None
    report: Mapping[str, Any] | None
    can_return: bool
    under_other_rules: bool

    @property
    def share(self) -> float | None:
        """Share of its modules that were cut out (0..1), None until screened."""
        return pruned_share(self.row)

    @property
    def verdict(self) -> Mapping[str, Any] | None:
        """Its verdict about the upload as JSON values (see `measurement`), None until measured."""
        return measurement(self.row, self.report) if self.report and self.report.get("verdict") else None

    @property
    def asked_again(self) -> Mapping[str, Any] | None:
        """Canaries that it was asked after it was published, as JSON values; None if it was not asked again."""
        return None if self.report is None else self.report.get("asked_again")

    @property
    def behaviour(self) -> Mapping[str, Any] | None:
        """Its evaluation on canaries as JSON values; None if its behaviour was not looked at."""
        return None if self.report is None else self.report.get("behaviour")

    @property
    def under_way(self) -> bool:
        """True if its state will change without further requests."""
        return self.row.state in IN_FLIGHT or self.row.state is State.STORED


def history(
    uploads: Uploads, name: str, before: int | None = None, at_most: int = SHOWN, *, exact: bool = False
) -> tuple[tuple[Version, ...], bool]:
    """Return the versions below `before` (None: all), newest first, and whether there are older ones. Blocking.

    exact: with unrounded scores, which only administrators may see.

    Raises Refused ADAPTER_NOT_FOUND.
    """
    catalogue = uploads.components.catalogue
    active = catalogue.adapter(name).active
    rows = [row for row in catalogue.versions(name) if before is None or row.number < before]
    shown, older = rows[-at_most:], rows[:-at_most]
    compared = [row for row in older if row.verdict_id is not None][-1:]  # predecessor of the oldest version shown
    reports = {row.number: _report(uploads, row, exact) for row in (*compared, *shown)}
    changed = _all_changes([*compared, *shown], reports)
    made = [_version(uploads, row, reports[row.number], changed.get(row.number), active) for row in shown]
    return tuple(reversed(made)), bool(older)


def version_of(uploads: Uploads, name: str, number: int, *, exact: bool = False) -> Version:
    """Return one version, with the changes since the version measured before it. Blocking.

    Raises Refused ADAPTER_NOT_FOUND or VERSION_NOT_FOUND.
    """
    uploads.components.catalogue.version(name, number)
    versions, _ = history(uploads, name, number + 1, 1, exact=exact)
    return versions[0]


def _report(uploads: Uploads, row: VersionRow, exact: bool) -> Mapping[str, Any] | None:
    if row.verdict_id is None:
        return None
    text = uploads.components.catalogue.report(row.name, row.number)
    measured = None if text is None else json.loads(text)
    return measured if exact else coarse_report(measured)


def _version(
    uploads: Uploads, row: VersionRow, report: Mapping[str, Any] | None, changes: Changes | None, active: int | None
) -> Version:
    withheld = uploads.components.desired.state.withheld.get(row.key)
    code = CODES.get(row.error_code or "")
    return Version(
        row=row,
        standing=standing(uploads, row),
        withheld=withheld,
        unloaded=uploads.components.desired.state.is_unloaded(row),
        hint=code.hint if code else None,
        changes=changes,
        report=report,
        can_return=row.state is State.RETIRED and row.number != active and withheld is None,
        under_other_rules=report is not None and row.parameters != uploads.components.rules_of(row).parameters,
    )


def _all_changes(rows: Sequence[VersionRow], reports: Mapping[int, Mapping[str, Any] | None]) -> Mapping[int, Changes]:
    measured = [(row, report) for row in rows if (report := reports[row.number]) is not None]
    return {after[0].number: changes(before, after) for before, after in pairwise(measured)}


Measured = tuple[VersionRow, Mapping[str, Any]]


def changes(before: Measured, after: Measured) -> Changes:
    """Return the changes between two measured versions, each given as its row and report."""
    (old_row, _), (new_row, _) = before, after
    old, new = measurement(*before), measurement(*after)
    was, now = _modules(old), _modules(new)
    both = was.keys() & now.keys()
    corrected = [name for name in both if _corrected(now[name]) and not _corrected(was[name])]
    spared = [name for name in both if _corrected(was[name]) and not _corrected(now[name])]
    return Changes(
        since=old_row.number,
        facts=tuple(_facts(old_row, old, new_row, new)),
        corrected=grouped(corrected),
        spared=grouped(spared),
        came=grouped(now.keys() - was.keys()),
        went=grouped(was.keys() - now.keys()),
        moved=tuple(_moves(was, now, new["policy"]["comparison"])),
        more=len(corrected) + sum(_corrected(now[name]) for name in now.keys() - was.keys()),
        fewer=len(spared) + sum(_corrected(was[name]) for name in was.keys() - now.keys()),
    )


def measurement(row: VersionRow, report: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the verdict about the upload itself, each module with the decision that is served.

    If canaries asked for a stronger correction, the report's `verdict` measures the floor's artefact: its scores say
    nothing about the upload, and cannot be compared with another version's.
    """
    served, floor = report["verdict"], report.get("floor")
    if not floor:
        return dict(served)
    final = {module["name"]: module["decision"] for module in served["modules"]}
    modules = [
        {**module, "decision": final[module["name"]], "reason": f"rung_{row.rung}"}
        if final.get(module["name"], module["decision"]) != module["decision"]
        else module
        for module in floor["modules"]
    ]
    final_parts = {name: served[name] for name in ("outcome", "reason", "modules_pruned", "modules_projected")}
    final_parts["together"] = {**floor["together"], "kept": served["together"]["kept"]}
    return {**floor, **final_parts, "modules": modules}


def _modules(verdict: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {module["name"]: module for module in verdict["modules"]}


def _corrected(module: Mapping[str, Any]) -> bool:
    """Return whether a module is cut out or projected."""
    return module["decision"] in MARKS


def _facts(old_row: VersionRow, old: Mapping[str, Any], new_row: VersionRow, new: Mapping[str, Any]) -> Iterable[str]:
    pairs = [
        ("outcome", old["outcome"], new["outcome"]),
        ("rung", shown("rung", old_row.rung), shown("rung", new_row.rung)),
    ]
    pairs += [("canonical bytes", _short(old_row.artefact), _short(new_row.artefact))]
    pairs += [("reference", old["reference"][:12], new["reference"][:12]), ("metric", old["metric"], new["metric"])]
    settings = dict.fromkeys((*old["policy"], *new["policy"]))
    pairs += [(words(key), shown(key, old["policy"].get(key)), shown(key, new["policy"].get(key))) for key in settings]
    return [f"{what}: {before} → {after}" for what, before, after in pairs if before != after]


def _short(digest: Any) -> str:
    return digest.short if digest is not None else "none"


def shown(setting: str, value: object) -> str:
    """Format the value of a policy's setting; the values that stand for no bound in words."""
    if (setting, value) in UNBOUNDED:
        return UNBOUNDED[setting, value]
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _moves(was: Mapping[str, Any], now: Mapping[str, Any], comparison: str) -> Iterable[str]:
    scores = [
        (name, was[name]["scores"].get(comparison), now[name]["scores"].get(comparison)) for name in now if name in was
    ]
    known = [(name, old, new) for name, old, new in scores if old is not None and new is not None]
    most = sorted(known, key=lambda move: (-abs(move[2] - move[1]), move[0]))[:MOVES_TOLD]
    return [f"{name}: {number(old)} → {number(new)}" for name, old, new in most if abs(new - old) >= MOVED]


def grouped(modules: Iterable[str]) -> tuple[str, ...]:
    """Group modules by type, as lines with their blocks: `mlp.up_proj in 1–3, 7`."""
    kinds: dict[str, list[str]] = {}
    for module in sorted(modules):
        block = block_of(module)
        kinds.setdefault(module.removeprefix(block).lstrip("."), []).append(block.rsplit(".", 1)[-1])
    return tuple(f"{kind} in {_ranges(blocks)}" if any(blocks) else kind for kind, blocks in kinds.items())


def _ranges(blocks: Iterable[str]) -> str:
    """Format numbers as ranges: 1, 2, 3, 7 → `1–3, 7`."""
    numbers = sorted(int(block) for block in blocks if block)
    runs = (list(run) for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]))
    spans = [(run[0][1], run[-1][1]) for run in runs]
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in spans)
