"""Fixtures every test may ask for; those with a real engine start it only when asked."""

import gc

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")  # how long an example takes says how busy the machine is

pytest_plugins = [
    "tests.support.tally",  # before those that import it
    *("tests.support.engine", "tests.support.demo_gateway", "tests.support.gateway", "tests.support.prometheus"),
    *("tests.support.postgres", "tests.support.joining"),
    "tests.support.hostile",
    *("tests.support.issuer", "tests.support.real_issuer"),
]

ONE_WORKER = frozenset({"engine", "demo_gateway"})
"""Fixtures that start a real engine: with several workers (`make test` has two) one of them has all the tests that ask."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file together, and those of the engine: their fixtures are made once."""
    for item in items:
        shares = isinstance(item, pytest.Function) and not ONE_WORKER.isdisjoint(item.fixturenames)
        item.add_marker(pytest.mark.xdist_group("engine" if shares else item.location[0]))


def pytest_collection_finish() -> None:
    """Leave what was imported and collected out of every later garbage collection: it lives until the end."""
    gc.collect()
    gc.freeze()
