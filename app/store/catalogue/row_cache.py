"""Cache of published versions: thousands are asked for at every change, of which a handful changed."""

import threading
from typing import Final

from sqlalchemy import Connection, select

from app.domain.version_state import SERVABLE
from app.store.catalogue.queries import versions_where
from app.store.catalogue.tables import VersionRow, versions

ONE_BY_ONE: Final = 400
"""Changed versions that are asked for by their ids; more are read with all others (SQLite takes 999 variables)."""


class RowCache:
    """Rows as last read, by their ids. Safe for threads; believes nothing but the database about what is published now."""

    def __init__(self) -> None:
        self._rows: dict[int, VersionRow] = {}
        self._lock = threading.Lock()

    def published(self, connection: Connection) -> tuple[VersionRow, ...]:
        """Every published version in the order of their uploads. Rows that have not changed are the same objects again."""
        published = versions.c.state.in_(SERVABLE)
        with self._lock:
            revisions: dict[int, int] = {
                row.id: row.revision for row in connection.execute(_REVISIONS.where(published))
            }
            kept = {at: row for at, row in self._rows.items() if revisions.get(at) == row.revision}
            changed = revisions.keys() - kept.keys()
            if changed:
                few = (versions.c.id.in_(changed),) if len(changed) <= ONE_BY_ONE else ()
                fresh = versions_where(connection, published, *few)
                kept |= zip(sorted(changed) if few else revisions, fresh, strict=True)
            self._rows = {at: kept[at] for at in revisions}
            return tuple(self._rows.values())


_REVISIONS: Final = select(versions.c.id, versions.c.revision).order_by(versions.c.id)
"""Tells which rows changed: every change of a version sets its revision."""
