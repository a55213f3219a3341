"""Reports with measured numbers rounded, for callers who must not follow a score's slope from dry run to dry run."""

from collections.abc import Mapping
from typing import Any, Final

DIGITS: Final = 2
"""Significant digits of a measured number: tells how far a module is from tau, and little about a change of a percent."""

_MEASURED: Final = ("modules", "together")
_GIVEN: Final = frozenset({"scaling"})
"""Numbers of a module that stand in the upload itself."""


def coarse(number: float) -> float:
    """A number rounded to DIGITS significant digits."""
    return float(f"{number:.{DIGITS - 1}e}")


def coarse_verdict(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """A verdict, as `verdict_json` makes it, with what was measured rounded; policy, decisions and names as they are."""
    return {key: _rounded(value) if key in _MEASURED else value for key, value in verdict.items()}


def coarse_report(report: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """A version's report with its verdict rounded."""
    if report is None or not isinstance(report.get("verdict"), Mapping):
        return report
    return {**report, "verdict": coarse_verdict(report["verdict"])}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return coarse(value)
    if isinstance(value, Mapping):
        return {key: one if key in _GIVEN else _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value
