"""Migration of the catalogue's tables to this gateway's schema, in the one transaction that opens it, or not at all.

alembic runs the revisions (migrations/). `schema_info` remains the record of a catalogue's version, so that a gateway
from before alembic refuses a newer catalogue, too; alembic's own table follows it.
"""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, func, inspect, select, update

from app.domain.errors import STORE_BUSY, STORE_FAILED, Unavailable
from app.store.catalogue.tables import SCHEMA_VERSION, gateways, schema_info
from app.store.catalogue.tenant_tables import metadata
from app.store.cluster.leases import LEASE_S, ago

SCRIPTS: Final = Path(__file__).parent / "migrations"
_ALEMBIC: Final = "alembic_version"


def migrate(connection: Connection) -> None:
    """Create the tables if there are none, migrate older ones.

    Raises Unavailable: STORE_FAILED for any other version; STORE_BUSY for an older one that a gateway is using.
    """
    tables = set(inspect(connection).get_table_names())
    found = _schema(connection, tables)
    if found == SCHEMA_VERSION and _ALEMBIC in tables:
        return
    if found != SCHEMA_VERSION and gateways.name in tables:
        _refuse_while_in_use(connection, found)
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    if found:
        MigrationContext.configure(connection).stamp(ScriptDirectory.from_config(config), f"{found:04}")
    if found != SCHEMA_VERSION:
        command.upgrade(config, f"{SCHEMA_VERSION:04}")
        connection.execute(update(schema_info).values(version=SCHEMA_VERSION))


def still_ours(connection: Connection) -> None:
    """Check the schema version before a write: a newer gateway may have migrated while this one was paused or cut off.

    Raises Unavailable STORE_FAILED.
    """
    found = connection.execute(select(schema_info.c.version)).scalars().first()
    if found != SCHEMA_VERSION:
        why = f"the catalogue has schema {found} now, by another release"
        raise Unavailable(STORE_FAILED, f"{why}; this gateway knows {SCHEMA_VERSION} and writes no more")


def _refuse_while_in_use(connection: Connection, found: int) -> None:
    """Raise Unavailable STORE_BUSY while gateways of an older release run: they cannot use the new tables."""
    if connection.dialect.name != "postgresql":
        return  # one gateway only: the store's lock ensures it
    alive = select(func.count()).select_from(gateways).where(gateways.c.seen_at > ago(LEASE_S))
    if count := connection.execute(alive).scalar_one():
        why = f"{count} gateways of an older release are at work on this catalogue (schema {found}): stop them first"
        raise Unavailable(STORE_BUSY, why)


def _schema(connection: Connection, tables: set[str]) -> int:
    """Return the schema version found; 0 in an empty database. Raises Unavailable STORE_FAILED for an unknown one."""
    if schema_info.name not in tables:
        if others := tables & {*metadata.tables, _ALEMBIC}:
            raise Unavailable(STORE_FAILED, f"the database has tables {sorted(others)} but no schema version")
        return 0
    found = connection.execute(select(schema_info.c.version)).scalars().all()
    if len(found) != 1 or not 1 <= found[0] <= SCHEMA_VERSION:
        known = ", ".join(str(version) for version in found) or "none"
        raise Unavailable(STORE_FAILED, f"catalogue schema is {known}, this gateway knows only {SCHEMA_VERSION}")
    return int(found[0])
