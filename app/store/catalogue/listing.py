"""Page of the catalogue, for people: some adapters, each with its active and its newest version."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, func, or_, select

from app.domain.names import AdapterName
from app.domain.version_state import State
from app.store.catalogue.queries import versions_where
from app.store.catalogue.tables import AdapterRow, VersionRow, adapter_record, adapters, versions


@dataclass(frozen=True, slots=True)
class Page:
    """Page of adapters. matching: number of adapters that match, on all pages.

    versions: the active and the newest version of each adapter on this page.
    """

    matching: int
    adapters: tuple[AdapterRow, ...]
    versions: Mapping[AdapterName, tuple[VersionRow, ...]]


def page_of(connection: Connection, contains: str, offset: int, limit: int) -> Page:
    """Return adapters whose names contain this text in any case, by name, in three queries for any number of adapters."""
    fits = (adapters.c.deleted.is_(False), adapters.c.name_key.contains(contains.casefold(), autoescape=True))
    matching = connection.execute(select(func.count()).select_from(adapters).where(*fits)).scalar_one()
    query = select(adapters).where(*fits).order_by(adapters.c.name_key).offset(offset).limit(limit)
    records = [adapter_record(row) for row in connection.execute(query)]
    there = versions.alias()
    newest = select(func.max(there.c.number)).where(
        there.c.adapter_id == versions.c.adapter_id, there.c.state != State.DELETED
    )
    rows = versions_where(
        connection,
        versions.c.adapter_id.in_([record.id for record in records]),
        or_(versions.c.number == adapters.c.active_version, versions.c.number == newest.scalar_subquery()),
    )
    found: dict[AdapterName, tuple[VersionRow, ...]] = {record.name: () for record in records}
    spelled = {name.key: name for name in found}
    for row in rows:
        name = spelled[row.name.key]
        found[name] = (*found[name], row)
    return Page(matching, tuple(record.public for record in records), found)
