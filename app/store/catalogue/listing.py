"""Overview of the catalogue, for people: adapters, each with its active and its newest version."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, or_, select, tuple_

from app.domain.tenants import full_name
from app.domain.version_state import State
from app.store.catalogue.queries import of_tenant, versions_where
from app.store.catalogue.tables import (
    VERSION_COLUMNS,
    AdapterRow,
    VersionRow,
    adapter_record,
    adapters,
    version_row,
    versions,
)


@dataclass(frozen=True, slots=True)
class Overview:
    """One adapter. versions: its active and its newest version by number, which may be the same one; () if it has none."""

    adapter: AdapterRow
    versions: tuple[VersionRow, ...]


def overviews(connection: Connection, tenant: str, contains: str) -> tuple[Overview, ...]:
    """Return a tenant's adapters whose names contain this text in any case, by name, in two queries for any number."""
    plain = func.substr(adapters.c.name_key, len(full_name(tenant, "")) + 1)
    fits = (
        adapters.c.deleted.is_(False),
        of_tenant(tenant),
        plain.contains(contains.casefold(), autoescape=True),
    )
    query = select(adapters).where(*fits).order_by(adapters.c.name_key)
    rows = [adapter_record(row).public for row in connection.execute(query)]
    there = versions.alias()
    newest = select(func.max(there.c.number)).where(
        there.c.adapter_id == versions.c.adapter_id, there.c.state != State.DELETED
    )
    of_interest = or_(versions.c.number == adapters.c.active_version, versions.c.number == newest.scalar_subquery())
    found: dict[str, list[VersionRow]] = {row.name.key: [] for row in rows}
    for version in versions_where(connection, *fits, of_interest):
        found[version.name.key].append(version)
    return tuple(Overview(row, tuple(found[row.name.key])) for row in rows)


def uploaded_since(connection: Connection, tenant: str | None, since: datetime, limit: int) -> tuple[VersionRow, ...]:
    """Return the newest `limit` versions of a tenant, or of all, that were begun from this time on, newest first."""
    fits = (of_tenant(tenant), versions.c.created_at >= since, versions.c.state != State.DELETED)
    query = select(*VERSION_COLUMNS).join_from(versions, adapters).where(*fits)
    return tuple(version_row(row) for row in connection.execute(query.order_by(versions.c.id.desc()).limit(limit)))


def reports_of(connection: Connection, keys: Sequence[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """Return (name, number) → report (JSON text) of those of these versions that have one."""
    wanted = tuple_(versions.c.spelling, versions.c.number).in_(keys)
    query = select(versions.c.spelling, versions.c.number, versions.c.report)
    query = query.where(wanted, versions.c.report.is_not(None), versions.c.state != State.DELETED)
    return {(row.spelling, row.number): row.report for row in connection.execute(query)}
