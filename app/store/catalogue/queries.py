"""Queries of `reader` and `catalogue`, each run in a transaction of theirs. Deleted rows are left out unless noted."""

from sqlalchemy import ColumnElement, Connection, and_, func, select, true

from app.domain.digest import Digest
from app.domain.errors import ADAPTER_NOT_FOUND, VERSION_NOT_FOUND, VERSION_NOT_READY, Refused
from app.domain.lora import Received
from app.domain.names import AdapterName, engine_name
from app.domain.tenants import DEFAULT, SEPARATOR
from app.domain.version_state import ENDED, IN_FLIGHT, State
from app.store.catalogue.tables import (
    VERSION_COLUMNS,
    AdapterRecord,
    VersionRow,
    adapter_record,
    adapters,
    version_row,
    versions,
)

Name = AdapterName | str
"""Adapter's name, parsed or as a caller wrote it: a string that is not a valid name finds nothing."""


_AFTER_SEPARATOR = chr(ord(SEPARATOR) + 1)


def of_tenant(tenant: str | None) -> ColumnElement[bool]:
    """Return the condition that an adapter belongs to a tenant; None: to any. A range of the index, except of `default`."""
    if tenant is None:
        return true()
    if tenant == DEFAULT:
        return adapters.c.name_key.not_like(f"%{SEPARATOR}%")
    key = adapters.c.name_key
    return and_(key > f"{tenant}{SEPARATOR}", key < f"{tenant}{_AFTER_SEPARATOR}")


def adapter_named(connection: Connection, name: Name, *, lock: bool = False) -> AdapterRecord:
    """Return the adapter of exactly this name. lock: exclude other writers from it. Raises Refused ADAPTER_NOT_FOUND."""
    query = select(adapters).where(adapters.c.name == str(name), adapters.c.deleted.is_(False))
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise Refused(ADAPTER_NOT_FOUND, f"no adapter {str(name)[:80]!r}", param="name")
    return adapter_record(row)


def adapter_keyed(connection: Connection, name: AdapterName) -> AdapterRecord | None:
    """Return the adapter of this name in any case, deleted or not, and lock it; None if there is none."""
    row = connection.execute(select(adapters).where(adapters.c.name_key == name.key).with_for_update()).one_or_none()
    return None if row is None else adapter_record(row)


def versions_where(connection: Connection, *where: ColumnElement[bool]) -> tuple[VersionRow, ...]:
    """Return the versions of all adapters that meet every condition, in the order of their uploads."""
    query = select(*VERSION_COLUMNS).join_from(versions, adapters).where(versions.c.state != State.DELETED, *where)
    return tuple(version_row(row) for row in connection.execute(query.order_by(versions.c.id)))


def version_numbered(connection: Connection, name: Name, number: int) -> VersionRow:
    """Return one version, by the name as its upload spelled it.

    Raises Refused ADAPTER_NOT_FOUND or VERSION_NOT_FOUND.
    """
    rows = versions_where(connection, versions.c.spelling == str(name), versions.c.number == number)
    if not rows:
        adapter = adapter_named(connection, name)
        raise Refused(VERSION_NOT_FOUND, f"no version {number} of {adapter.name}", param="version")
    return rows[0]


def version_before(connection: Connection, adapter: AdapterRecord) -> int:
    """Return the number of the latest retired version before the active one. Raises Refused VERSION_NOT_READY."""
    query = select(func.max(versions.c.number)).where(
        versions.c.adapter_id == adapter.id,
        versions.c.state == State.RETIRED,
        versions.c.number < (adapter.active or 0),
    )
    number: int | None = connection.execute(query).scalar_one()
    if number is None:
        raise Refused(VERSION_NOT_READY, f"{adapter.name} has no earlier version to go back to")
    return number


def same_version(
    connection: Connection,
    name: Name,
    received: Received,
    parameters: str | None,
    *where: ColumnElement[bool],
    failed: bool = False,
) -> VersionRow | None:
    """Return the newest version of this name with these received digests that has not failed; parameters None: any.

    failed: return one in progress or accepted instead; if there is none, the newest, however it ended.
    """
    rows = versions_where(
        connection,
        *where,
        versions.c.spelling == str(name),
        versions.c.config_digest == received.config_digest.hex,
        versions.c.weights_digest == received.weights_digest.hex,
        *([] if parameters is None else [versions.c.parameters == parameters]),
    )
    if failed:
        found = [row for row in rows if row.state not in ENDED] or rows
    else:
        found = [row for row in rows if row.state is not State.FAILED]
    return found[-1] if found else None


def overtaken(connection: Connection, adapter: AdapterRecord, number: int) -> bool:
    """Return whether a later version has the adapter's name, or may still get it."""
    later = (versions.c.adapter_id == adapter.id, versions.c.number > number)
    coming = versions_where(connection, *later, versions.c.state.in_((*IN_FLIGHT, State.STORED)))
    return (adapter.active or 0) > number or bool(coming)


def free_engine_name(connection: Connection, row: VersionRow, artefact: Digest) -> str:
    """Return `<adapter>@<digest12>`, with `-<number>` appended if any version, even a deleted one, ever had that name."""
    plain = engine_name(row.name, artefact)
    taken = connection.execute(select(versions.c.id).where(versions.c.engine_name == plain)).first()
    return plain if taken is None else f"{plain}-{row.number}"
