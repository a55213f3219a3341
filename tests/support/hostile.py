"""What the suites tried of hostile inputs, counted by the tests themselves: `make hostile`.

`@pytest.mark.hostile(…)`: every case of the test is one input, and the test asserts the code it is refused with.
`@pytest.mark.ruling(…)`: a kind whose right answer is no refusal (harmless, a race, a fault), and the test asserts that.
Arguments name kinds (tests/attacks/kinds.py); a case whose id begins with a kind's number is of it too.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from tests.attacks.kinds import KINDS

REFUSED: Final = "hostile"
RULED: Final = "ruling"
_IN_ID = re.compile(r"(?<![A-Za-z0-9])([A-Z][0-9]{2})(?=_)")


@dataclass
class Count:
    """Cases of one mark. tried: begun; right: passed."""

    tried: int = 0
    right: int = 0


@dataclass
class Tally:
    """One run's counts. kinds: those of which at least one case passed, and none failed."""

    counts: dict[str, Count] = field(default_factory=lambda: {REFUSED: Count(), RULED: Count()})
    passed: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)

    def add(self, mark: str, kinds: set[str], *, right: bool) -> None:
        """One case is over."""
        self.counts[mark].tried += 1
        self.counts[mark].right += right
        (self.passed if right else self.failed).update(kinds)

    def lines(self) -> Iterator[str]:
        """For the end of the run."""
        refused, ruled = self.counts[REFUSED], self.counts[RULED]
        kept = (self.passed - self.failed) & KINDS.keys()
        untried = ", ".join(sorted(KINDS.keys() - self.passed - self.failed)) or "none"
        yield f"hostile inputs: {refused.tried} tried, {refused.right} refused with the right code"
        yield f"races, faults and harmless oddities: {ruled.tried} tried, {ruled.right} answered as ruled"
        yield f"kinds of the list: {len(kept)} of {len(KINDS)} held; not tried in this run: {untried}"


def kinds_of(item: pytest.Item) -> set[str]:
    """The kinds a case is of. Raises KeyError for one that the list does not have."""
    named = {kind for mark in (REFUSED, RULED) for found in item.iter_markers(mark) for kind in found.args}
    if unknown := named - KINDS.keys():
        raise KeyError(f"{item.nodeid} names {sorted(unknown)}")
    return named | (set(_IN_ID.findall(item.nodeid.partition("[")[2])) & KINDS.keys())


TALLY = Tally()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Count a case when its body is over, or when it could not begin."""
    report: pytest.TestReport = yield  # type: ignore[assignment]  # a hook wrapper gets what the others made
    mark = next((name for name in (REFUSED, RULED) if item.get_closest_marker(name)), None)
    if mark is not None and (report.when == "call" or report.failed) and not report.skipped:
        TALLY.add(mark, kinds_of(item), right=report.passed)
    return report  # type: ignore[return-value]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand a worker's counts to the process that prints them."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        counts = {mark: [count.tried, count.right] for mark, count in TALLY.counts.items()}
        output["hostile"] = {"counts": counts, "passed": sorted(TALLY.passed), "failed": sorted(TALLY.failed)}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add a worker's counts; one that crashed has none."""
    found = getattr(node, "workeroutput", {}).get("hostile", {"counts": {}, "passed": [], "failed": []})
    for mark, (tried, right) in found["counts"].items():
        TALLY.counts[mark].tried += tried
        TALLY.counts[mark].right += right
    TALLY.passed.update(found["passed"])
    TALLY.failed.update(found["failed"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the counts where anything was counted."""
    if any(count.tried for count in TALLY.counts.values()):
        for line in TALLY.lines():
            terminalreporter.write_line(line)
