"""Clock of the catalogue: the database server's, where several gateways share it."""

from collections.abc import Callable
from datetime import UTC, datetime

from sqlalchemy import Connection, select

from app.store.cluster.leases import ago


def clock(connection: Connection, alone: Callable[[], datetime] = lambda: datetime.now(UTC)) -> datetime:
    """Return the time by the database's clock. alone: clock of a database that is one gateway's only."""
    if connection.dialect.name != "postgresql":
        return alone()
    found: datetime = connection.execute(select(ago(0))).scalar_one()
    return found.replace(tzinfo=UTC)
