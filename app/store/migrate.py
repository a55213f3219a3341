"""What an older gateway's catalogue lacks, added when it is opened: in the one transaction that opens it, or not at all."""

import json
from collections.abc import Callable, Mapping
from typing import Final

from sqlalchemy import Connection, select, update

from app.store.schema import schema_info, versions


def migrate(connection: Connection) -> None:
    """Bring the tables from an older schema version to the next, and on; leave any other version alone."""
    while len(found := connection.execute(select(schema_info.c.version)).scalars().all()) == 1 and found[0] in _STEPS:
        _STEPS[found[0]](connection)
        connection.execute(update(schema_info).values(version=found[0] + 1))


def _count_projected(connection: Connection) -> None:
    """1 → 2: how many modules were projected stood only in the report."""
    connection.exec_driver_sql("ALTER TABLE versions ADD COLUMN modules_projected INTEGER")
    measured = select(versions.c.id, versions.c.report).where(versions.c.modules_total.is_not(None))
    for row in connection.execute(measured).all():
        connection.execute(
            update(versions).where(versions.c.id == row.id).values(modules_projected=_projected(row.report))
        )


def _projected(report: str | None) -> int | None:
    try:
        decisions = [module["decision"] for module in json.loads(report or "")["verdict"]["modules"]]
        return decisions.count("project")
    except (ValueError, KeyError, TypeError):  # a damaged report: the auditor says so
        return None


_STEPS: Final[Mapping[int, Callable[[Connection], None]]] = {1: _count_projected}
