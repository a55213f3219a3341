"""Tally of the faults that a run of the tests injected, and of invariants found broken after them, over all its workers."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

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


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand a worker's counts to the process that prints them."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["tally"] = {"injected": dict(injected), "audits": dict(audits)}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add a worker's counts; one that crashed has none."""
    found = getattr(node, "workeroutput", {}).get("tally", {})
    injected.update(found.get("injected", {}))
    audits.update(found.get("audits", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line."""
    if injected:
        terminalreporter.write_line(line())
