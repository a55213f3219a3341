"""Fixtures every test may ask for; those with a real engine start it only when asked."""

pytest_plugins = [
    *("tests.support.engine", "tests.support.demo_gateway", "tests.support.house", "tests.support.prometheus"),
    "tests.support.postgres",
    "tests.support.hostile",
]
