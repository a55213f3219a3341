"""Pages of the catalogue, for programs: adapters in the order of their names, each with all its versions."""

from dataclasses import dataclass

from sqlalchemy import Connection, and_, select

from app.domain.names import AdapterName
from app.domain.version_state import State
from app.store.catalogue.queries import of_tenant
from app.store.catalogue.tables import (
    VERSION_COLUMNS,
    AdapterRow,
    VersionRow,
    adapters,
    rollout_in,
    version_row,
    versions,
)


@dataclass(frozen=True, slots=True)
class Chapter:
    """Some adapters, each with its versions by number. next: full name to continue after; None at the end."""

    adapters: tuple[tuple[AdapterRow, tuple[VersionRow, ...]], ...]
    next: str | None


def adapters_after(connection: Connection, tenant: str, after: str, limit: int) -> Chapter:
    """Return up to `limit` (≥ 1) of a tenant's adapters whose names come after this one, ignoring case. One query.

    Continues in the right place even if the adapter of that name was deleted.
    """
    fits = (adapters.c.deleted.is_(False), of_tenant(tenant), adapters.c.name_key > after.casefold())
    some = select(adapters).where(*fits).order_by(adapters.c.name_key).limit(limit + 1).subquery()
    begun_at, whose = some.c.created_at.label("begun_at"), some.c.key_owner.label("whose")
    own = (some.c.name, some.c.active_version, begun_at, whose, some.c.traffic)
    not_deleted = and_(versions.c.adapter_id == some.c.id, versions.c.state != State.DELETED)
    query = select(*own, *VERSION_COLUMNS).select_from(some.outerjoin(versions, not_deleted))
    found: dict[str, tuple[AdapterRow, list[VersionRow]]] = {}
    for row in connection.execute(query.order_by(some.c.name_key, versions.c.id)):
        if row.name not in found:
            rollout = rollout_in(row.traffic)
            adapter = AdapterRow(AdapterName(row.name), row.active_version, row.begun_at, row.whose, rollout)
            found[row.name] = (adapter, [])
        if row.number is not None:  # an adapter whose first upload is just beginning has none
            found[row.name][1].append(version_row(row))
    page = [(adapter, tuple(rows)) for adapter, rows in found.values()]
    return Chapter(tuple(page[:limit]), str(page[limit - 1][0].name) if len(page) > limit else None)
