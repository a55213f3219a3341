"""Fixtures every test may ask for; those with a real engine start it only when asked."""

import gc

from hypothesis import HealthCheck, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")  # how long an example takes says how busy the machine is

pytest_plugins = [
    *("tests.support.engine", "tests.support.demo_gateway", "tests.support.gateway", "tests.support.prometheus"),
    *("tests.support.postgres", "tests.support.joining"),
    "tests.support.hostile",
]


def pytest_collection_finish() -> None:
    """Leave what was imported and collected out of every later garbage collection: it lives until the end."""
    gc.collect()
    gc.freeze()
