"""Cache of published versions: every change reads thousands of them, of which a handful changed."""

import threading
from typing import Final

from sqlalchemy import Connection, select

from app.domain.version_state import SERVABLE
from app.store.catalogue.queries import versions_where
from app.store.catalogue.tables import VersionRow, versions

ONE_BY_ONE: Final = 400
"""Most changed versions that are read by their ids; if there are more, all are read (SQLite takes 999 variables)."""


class RowCache:
    """Rows as last read, by their ids. Thread-safe; only the database decides which versions are published now."""

    def __init__(self) -> None:
        self._rows: dict[int, VersionRow] = {}
        self._lock = threading.Lock()

    def published(self, connection: Connection) -> tuple[VersionRow, ...]:
        """Return every published version in the order of their uploads. Unchanged rows are the same objects as before."""
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
"""Query that shows which rows changed: every change of a version sets its revision."""
