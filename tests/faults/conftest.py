"""Every fault counts: what a run of these tests injected is printed at its end (tests/support/tally.py)."""

from collections.abc import Iterator

import pytest

from tests.support import tally


@pytest.fixture(autouse=True)
def _counted() -> Iterator[None]:
    """A test whose faults nothing else counts is one: a process killed, a disk full, bytes that are spoiled."""
    before = tally.injected.total()
    yield
    if tally.injected.total() == before:
        tally.injected["of other kinds"] += 1


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test that fails here found something broken."""
    if report.failed and report.nodeid.startswith("tests/faults/"):
        tally.audits["broken"] += 1
