"""How many faults a run of the tests injected, and how many invariants were found broken after them."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

injected: Counter[str] = Counter()
"""Faults by kind."""

audits: Counter[str] = Counter()
"""`sound`: audits that found nothing; `broken`: invariants that others found broken."""


class Faults(dict[str, str]):
    """Route → fault; each that is set counts."""

    def __setitem__(self, route: str, fault: str) -> None:
        injected["by the engine"] += 1
        super().__setitem__(route, fault)

    def __ior__(self, more: Any) -> "Faults":  # type: ignore[override, misc]
        faults: Mapping[str, str] = dict(more)
        for route, fault in faults.items():
            self[route] = fault
        return self


def line() -> str:
    """For a person, and for docs/security.md."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(injected.items()))
    found = f"{audits['sound']} audits after them, broken invariants: {audits['broken']}"
    return f"faults injected: {injected.total()} ({kinds}); {found}"
