"""Tables of adapters and versions for a terminal."""

from collections.abc import Iterable, Mapping
from typing import Any

from app.observe.fitted_table import FittedTable


def version_table(versions: Iterable[Mapping[str, Any]]) -> FittedTable:
    """Return one row a version, as the API shows it; the one that its adapter's name points to is marked."""
    rows = [
        (
            f"{'▶' if one['active'] else ' '} {one['name']}@{one['version']}",
            *_state(one),
            _changed(one),
            str(one["created_at"])[:16].replace("T", " "),
            _why(one),
        )
        for one in versions
    ]
    return FittedTable(("  adapter", "state", "outcome", "changed", "since", "why"), rows, numbers={"changed"})


def changes(version: Mapping[str, Any]) -> str:
    """Return what screening did to a version, in words."""
    if version["modules_total"] is None:
        return str((version["error"] or {}).get("code", ""))
    parts = [f"{version['modules_pruned']} of {version['modules_total']} modules pruned"]
    if version["modules_projected"]:
        parts.append(f"{version['modules_projected']} projected")
    return ", ".join(parts)


def version_line(version: Mapping[str, Any]) -> str:
    """Return a version in one line."""
    state, outcome = _state(version)
    return f"{version['name']}@{version['version']}  {state}  {outcome or '–'}  {changes(version)}"


def _state(version: Mapping[str, Any]) -> tuple[str, str]:
    withheld = " (withheld)" if version.get("withheld") else ""
    return f"{version['state']}{withheld}", version["outcome"] or ""


def _changed(version: Mapping[str, Any]) -> str:
    """Return the number of modules that were pruned or projected, of all."""
    if version["modules_total"] is None:
        return ""
    return f"{version['modules_pruned'] + (version['modules_projected'] or 0)} of {version['modules_total']}"


def _why(version: Mapping[str, Any]) -> str:
    return str((version["error"] or {}).get("code", ""))
