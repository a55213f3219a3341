"""Writer of the catalogue: changes of single versions and adapters, as steps of a transaction."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, select, update

from app.domain.errors import STORE_BUSY, Unavailable
from app.domain.tenant_limits import UNLIMITED, TenantLimits
from app.domain.version_state import IN_FLIGHT, Event, State, advance
from app.store.catalogue.beginning import error_columns
from app.store.catalogue.database import BUSY_SECONDS, Database
from app.store.catalogue.evaluated import NOT_EVALUATED, publishable
from app.store.catalogue.outbox import tell_move
from app.store.catalogue.queries import Name, version_numbered, versions_where
from app.store.catalogue.reader import CatalogueReader
from app.store.catalogue.tables import AdapterRecord, VersionRow, adapters, versions
from app.store.cluster.leases import BeatLog
from app.store.cluster.peers import TakenOver, next_revision, orphaned


class CatalogueWriter(CatalogueReader):
    """Base of the catalogue's methods that change something."""

    def __init__(
        self,
        url: str,
        *,
        busy_seconds: float = BUSY_SECONDS,
        patience_s: float = 0.0,
        gateway: str | None = None,
        beats: BeatLog | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        default_limits: TenantLimits = UNLIMITED,
    ) -> None:
        """Open the database at this SQLAlchemy URL (`sqlite_url(path)`). now: an aware clock, for the record only.

        patience_s: seconds to wait for a server that does not answer. gateway, beats: this gateway's id, and the log of
        its beats by which it judges the others, if several share the catalogue (cluster/peers.py). default_limits: of
        tenants for which none were set. Raises Unavailable: see `Database`.
        """
        super().__init__(Database(url, busy_seconds, patience_s), default_limits)
        self._gateway = gateway
        self._beats = beats or BeatLog()
        self._now = now

    def close(self) -> None:
        """Close every connection."""
        self._database.close()

    def _point(self, connection: Connection, adapter: AdapterRecord, row: VersionRow) -> VersionRow:
        """Make `row` the active version and retire the previous one."""
        if adapter.active is not None:
            self._move(connection, version_numbered(connection, adapter.name, adapter.active), Event.SUPERSEDE)
        connection.execute(update(adapters).where(adapters.c.id == adapter.id).values(active_version=row.number))
        return self._move(connection, row, Event.ACTIVATE)

    def _retire_waiting(self, connection: Connection, adapter: AdapterRecord, evaluation: str | None) -> None:
        """Retire the versions that wait for the engine; fail those that have not passed the evaluation with this key."""
        mine = versions.c.adapter_id == adapter.id
        for waiting in versions_where(connection, mine, versions.c.state == State.STORED):
            if publishable(waiting, evaluation):
                self._move(connection, waiting, Event.SUPERSEDE)
            else:
                self._move(connection, waiting, Event.FAIL, **error_columns(NOT_EVALUATED))

    def _own_version(self, connection: Connection, name: Name, number: int) -> VersionRow:
        """Return a version that this gateway works on. Raises TakenOver if another one has failed it or begun it again."""
        row = version_numbered(connection, name, number)
        if self._gateway is not None and (row.owner != self._gateway or row.state is State.FAILED):
            raise TakenOver(STORE_BUSY, f"{row.name} version {row.number} was given up by another gateway")
        return row

    def _move(self, connection: Connection, row: VersionRow, event: Event, **values: Any) -> VersionRow:
        others = row.owner not in (None, self._gateway) and row.state in IN_FLIGHT
        alone = (orphaned(self._beats),) if self._gateway is not None and others else ()
        self._set(connection, row, *alone, state=advance(row.state, event), **values)
        moved = version_numbered(connection, row.name, row.number)
        tell_move(connection, row, event, moved)
        return moved

    def _set(self, connection: Connection, row: VersionRow, *also: ColumnElement[bool], **values: Any) -> None:
        """Change one version, unless another transaction changed it since `row` was read (not on SQLite: writers queue)."""
        adapter = select(adapters.c.id).where(adapters.c.name_key == row.name.key).scalar_subquery()
        where = (
            versions.c.adapter_id == adapter,
            versions.c.number == row.number,
            versions.c.state == row.state,
            *also,
        )
        values |= {"updated_at": self._now(), "revision": next_revision(connection)}
        changed = connection.execute(update(versions).where(*where).values(**values))
        if changed.rowcount != 1:
            raise Unavailable(STORE_BUSY, f"{row.name} version {row.number} was changed by another process")
