"""Brings the catalogue's tables to this gateway's schema, in the one transaction that opens it, or not at all.

alembic walks the revisions (migrations/); which version a catalogue has is what `schema_info` says, as it always did, so
that a gateway from before alembic refuses a newer catalogue too. alembic's own table follows that.
"""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, func, inspect, select, update

from app.domain.errors import STORE_BUSY, STORE_FAILED, Unavailable
from app.store.catalogue.tables import SCHEMA_VERSION, gateways, metadata, schema_info
from app.store.cluster.leases import LEASE_S, ago

SCRIPTS: Final = Path(__file__).parent / "migrations"
_ALEMBIC: Final = "alembic_version"


def migrate(connection: Connection) -> None:
    """Make the tables where there are none, bring older ones up.

    Raises Unavailable: STORE_FAILED for any other version; STORE_BUSY for an older one that a gateway is at work on.
    """
    tables = set(inspect(connection).get_table_names())
    found = _schema(connection, tables)
    if found == SCHEMA_VERSION and _ALEMBIC in tables:
        return
    if found != SCHEMA_VERSION and gateways.name in tables:
        _nobody_lives(connection, found)
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    if found:
        MigrationContext.configure(connection).stamp(ScriptDirectory.from_config(config), f"{found:04}")
    if found != SCHEMA_VERSION:
        command.upgrade(config, f"{SCHEMA_VERSION:04}")
        connection.execute(update(schema_info).values(version=SCHEMA_VERSION))


def still_ours(connection: Connection) -> None:
    """Asked before every write: a newer gateway may have brought the tables up while this one was paused or cut off.

    Raises Unavailable STORE_FAILED.
    """
    found = connection.execute(select(schema_info.c.version)).scalars().first()
    if found != SCHEMA_VERSION:
        why = f"the catalogue has schema {found} now, by another release"
        raise Unavailable(STORE_FAILED, f"{why}; this gateway knows {SCHEMA_VERSION} and writes no more")


def _nobody_lives(connection: Connection, found: int) -> None:
    """Older gateways would read and write tables that are not theirs any more."""
    if connection.dialect.name != "postgresql":
        return  # one gateway only: the store's lock has told
    alive = select(func.count()).select_from(gateways).where(gateways.c.seen_at > ago(LEASE_S))
    if count := connection.execute(alive).scalar_one():
        why = f"{count} gateways of an older release are at work on this catalogue (schema {found}): stop them first"
        raise Unavailable(STORE_BUSY, why)


def _schema(connection: Connection, tables: set[str]) -> int:
    """The schema version that is there; 0 in an empty database."""
    if schema_info.name not in tables:
        if others := tables & (set(metadata.tables) | {_ALEMBIC}):
            raise Unavailable(STORE_FAILED, f"the database has tables {sorted(others)} but no schema version")
        return 0
    found = connection.execute(select(schema_info.c.version)).scalars().all()
    if len(found) != 1 or not 1 <= found[0] <= SCHEMA_VERSION:
        known = ", ".join(str(version) for version in found) or "none"
        raise Unavailable(STORE_FAILED, f"catalogue schema is {known}, this gateway knows only {SCHEMA_VERSION}")
    return int(found[0])
