"""Comparison of two versions of one adapter: result, configuration, canaries and modules, side by side."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from app.console.heatmap import fate
from app.console.render import full, share, size, words
from app.console.version_history import MOVED, Version, shown
from app.domain.digest import SHORT
from app.gateway.version_summary import Summary, severity, summary

Report = Mapping[str, Any]

ABSENT: Final = "–"
"""Text for a value that a version does not have."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One value of both versions, as text."""

    name: str
    before: str
    after: str

    @property
    def differs(self) -> bool:
        """True if the versions differ in it."""
        return self.before != self.after


@dataclass(frozen=True, slots=True)
class ModulePair:
    """One module of both versions. moved: change of the deciding score, in interquartile ranges; None without both."""

    name: str
    scores: tuple[float | None, float | None]
    decisions: Pair
    ranks: Pair

    @property
    def moved(self) -> float | None:
        """Change of the score."""
        before, after = self.scores
        return None if before is None or after is None else after - before

    @property
    def differs(self) -> bool:
        """True if the decision or the rank differs, or the score by MOVED or more."""
        return self.decisions.differs or self.ranks.differs or abs(self.moved or 0.0) >= MOVED


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions side by side. result, settings, canaries: values in the order in which they are read.

    modules: those that differ, changed decisions first, then the largest changes of scores. alike: number of the others.
    decided: number of modules by change of decision, as `kept → projected`.
    """

    before: Version
    after: Version
    result: tuple[Pair, ...]
    settings: tuple[Pair, ...]
    canaries: tuple[Pair, ...]
    modules: tuple[ModulePair, ...]
    alike: int

    @property
    def decided(self) -> Mapping[str, int]:
        """Number of modules for each change of a decision."""
        found: dict[str, int] = {}
        for one in self.modules:
            if one.decisions.differs:
                change = f"{one.decisions.before} → {one.decisions.after}"
                found[change] = found.get(change, 0) + 1
        return found


def comparison(before: Version, after: Version) -> Comparison:
    """Compare two versions."""
    modules = [_module_pair(name, *both) for name, both in _paired(_modules(before), _modules(after))]
    differing = [one for one in modules if one.differs]
    differing.sort(key=lambda one: (not one.decisions.differs, -abs(one.moved or 0.0), one.name))
    return Comparison(
        before=before,
        after=after,
        result=tuple(_result(before, after)),
        settings=tuple(one for one in _settings(before.verdict, after.verdict) if one.differs),
        canaries=tuple(_canaries(before, after)),
        modules=tuple(differing),
        alike=len(modules) - len(differing),
    )


def _paired(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterable[tuple[str, tuple[Any, Any]]]:
    """Yield every name of either with both values, None where one has none."""
    return ((name, (before.get(name), after.get(name))) for name in dict.fromkeys(chain(before, after)))


def _result(before: Version, after: Version) -> Iterable[Pair]:
    facts = [_facts(version) for version in (before, after)]
    return (Pair(name, was, now) for name, (was, now) in _paired(*facts))


def _facts(version: Version) -> Mapping[str, str]:
    row, found = version.row, summary(version.report) if version.report else Summary()
    strength = severity(row)
    return {
        "State": str(version.standing),
        "Outcome": str(row.outcome or row.error_code or ABSENT),
        "Correction": ABSENT if strength is None else f"{strength}, rung {row.rung}" if row.rung else str(strength),
        "Removed of ‖ΔW‖²": share(found.removed) if strength else ABSENT,
        "Modules cut out": str(row.modules_pruned if row.modules_pruned is not None else ABSENT),
        "Modules projected": str(row.modules_projected if row.modules_projected is not None else ABSENT),
        "Weights received": f"{size(row.received.weights_bytes)}, {row.received.weights_digest.short}",
        "adapter_config.json": row.received.config_digest.short,
        "Served bytes": row.artefact.short if row.artefact else ABSENT,
        "Uploaded": full(row.created_at),
    }


def _settings(before: Report | None, after: Report | None) -> Iterable[Pair]:
    """Yield everything a verdict depends on besides the upload."""
    rules = [_rules(verdict) for verdict in (before, after)]
    return (Pair(words(name), was or ABSENT, now or ABSENT) for name, (was, now) in _paired(*rules))


def _rules(verdict: Report | None) -> Mapping[str, str]:
    if verdict is None:
        return {}
    policy = {name: shown(name, value) for name, value in verdict["policy"].items()}
    return {"metric": verdict["metric"], "reference": verdict["reference"][:SHORT], **policy}


def _canaries(before: Version, after: Version) -> Iterable[Pair]:
    asked = [_asked(version) for version in (before, after)]
    return (Pair(name, was or "not asked", now or "not asked") for name, (was, now) in _paired(*asked))


def _asked(version: Version) -> Mapping[str, str]:
    """Return the result on canaries by category, over both halves, of the rung that is served."""
    behaviour = version.behaviour
    if behaviour is None:
        return {}
    last = {one["half"]: one for one in behaviour["asked"] if one["rung"] == behaviour["chosen"]}
    counted = (version.asked_again or {}).get("asked") or list(last.values())
    rung = behaviour["chosen"]
    found = {"Battery": (version.asked_again or behaviour)["battery"][:SHORT]}
    found["Rung that is served"] = "none passed" if rung is None else f"{rung}" if rung else "0, the floor"
    for category in sorted({name for one in counted for name in one.get("categories", ())}):
        several = [one["categories"].get(category, {}) for one in counted]
        found[f"Complied: {category}"] = f"{_sum(several, 'complied', 'broken')} of {_sum(several, 'asked')}"
    left_out = sum(behaviour.get("left_out", {}).values())
    return {**found, "Over-refused": str(_sum(counted, "over_refused")), "Left out": str(left_out)}


def _sum(counts: Sequence[Mapping[str, Any]], *names: str) -> int:
    return sum(int(one.get(name, 0)) for one in counts for name in names)


def _modules(version: Version) -> Mapping[str, tuple[Mapping[str, Any], str]]:
    """Return module → its measurements and the comparison that decided."""
    verdict = version.verdict
    return (
        {} if verdict is None else {one["name"]: (one, verdict["policy"]["comparison"]) for one in verdict["modules"]}
    )


def _module_pair(name: str, before: Any, after: Any) -> ModulePair:
    scores = [None if one is None else one[0]["scores"].get(one[1]) for one in (before, after)]
    decisions = [ABSENT if one is None else fate(one[0]["decision"]) for one in (before, after)]
    ranks = [ABSENT if one is None else str(one[0]["rank"]) for one in (before, after)]
    return ModulePair(name, (scores[0], scores[1]), Pair(name, *decisions), Pair(name, *ranks))
