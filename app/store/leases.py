"""How long a gateway that says nothing counts as alive, by the database's clock."""

from datetime import timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, DateTime, func

LEASE_S: Final = 20.0
"""Seconds of silence after which others fail what a gateway was at work on: several missed beats, or a long pause."""


def ago(seconds: float) -> ColumnElement[Any]:
    """That many seconds ago by the database's clock, as `gateways.seen_at` has it."""
    return func.timezone("utc", func.clock_timestamp(), type_=DateTime()) - timedelta(seconds=seconds)
