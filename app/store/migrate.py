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
from sqlalchemy import Connection, inspect, select, update

from app.errors import STORE_FAILED, Unavailable
from app.store.schema import SCHEMA_VERSION, metadata, schema_info

SCRIPTS: Final = Path(__file__).parent / "migrations"
_ALEMBIC: Final = "alembic_version"


def migrate(connection: Connection) -> None:
    """Make the tables where there are none, bring older ones up. Raises Unavailable STORE_FAILED for any other version."""
    tables = set(inspect(connection).get_table_names())
    found = _schema(connection, tables)
    if found == SCHEMA_VERSION and _ALEMBIC in tables:
        return
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    if found:
        MigrationContext.configure(connection).stamp(ScriptDirectory.from_config(config), f"{found:04}")
    if found != SCHEMA_VERSION:
        command.upgrade(config, f"{SCHEMA_VERSION:04}")
        connection.execute(update(schema_info).values(version=SCHEMA_VERSION))


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
