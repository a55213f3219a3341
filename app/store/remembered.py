"""Published versions, each parsed once: thousands are asked for at every change, of which a handful changed."""

import threading
from typing import Final

from sqlalchemy import Connection, select, type_coerce
from sqlalchemy.types import NullType

from app.lifecycle import SERVABLE
from app.store.queries import versions_where
from app.store.schema import VersionRow, versions

ONE_BY_ONE: Final = 400
"""Changed versions that are asked for by their ids; more are read with all others (SQLite takes 999 variables)."""


class Remembered:
    """What was read last. Safe for threads; believes nothing but the database about what is published now."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[tuple[str, object], VersionRow]] = {}
        self._lock = threading.Lock()

    def published(self, connection: Connection) -> tuple[VersionRow, ...]:
        """Every published version in the order of their uploads. Rows that have not changed are the same objects again."""
        published = versions.c.state.in_(SERVABLE)
        with self._lock:
            marks = {at: (state, updated) for at, state, updated in connection.execute(_MARKS.where(published))}
            kept = {
                at: self._rows[at][1] for at, mark in marks.items() if at in self._rows and self._rows[at][0] == mark
            }
            changed = marks.keys() - kept.keys()
            if changed:
                few = (versions.c.id.in_(changed),) if len(changed) <= ONE_BY_ONE else ()
                fresh = versions_where(connection, published, *few)
                kept |= zip(sorted(changed) if few else marks, fresh, strict=True)
            self._rows = {at: (mark, kept[at]) for at, mark in marks.items()}
            return tuple(kept[at] for at in marks)


_MARKS: Final = select(versions.c.id, versions.c.state, type_coerce(versions.c.updated_at, NullType())).order_by(
    versions.c.id
)
"""What tells whether a row changed: every change sets its time, as the database has it, unparsed."""
