"""Reports with rounded measurements, for callers who must not be able to follow a score's slope from dry run to dry run."""

from collections.abc import Mapping
from typing import Any, Final

DIGITS: Final = 2
"""Significant digits of a measured number: they show how far a module is from tau, and hide changes of about a percent."""

_VERDICTS: Final = ("verdict", "floor")
_MEASURED: Final = ("modules", "together")
_GIVEN: Final = frozenset({"scaling"})
"""Numbers of a module that the upload itself contains; they are not rounded."""


def coarse(number: float) -> float:
    """Round a number to DIGITS significant digits."""
    return float(f"{number:.{DIGITS - 1}e}")


def coarse_verdict(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Round the measurements of a verdict made by `verdict_json`; policy, decisions and names stay as they are."""
    return {key: _rounded(value) if key in _MEASURED else value for key, value in verdict.items()}


def coarse_report(report: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Round the verdicts in a version's report: that of the served artefact, and the floor's."""
    if report is None:
        return None
    verdicts = {name: report[name] for name in _VERDICTS if isinstance(report.get(name), Mapping)}
    return {**report, **{name: coarse_verdict(verdict) for name, verdict in verdicts.items()}}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return coarse(value)
    if isinstance(value, Mapping):
        return {key: one if key in _GIVEN else _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value
