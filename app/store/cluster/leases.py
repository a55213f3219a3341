"""Leases of gateways that share a catalogue: the silence after which a gateway counts as dead."""

import threading
from collections import deque
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, DateTime, and_, false, func

from app.store.catalogue.tables import gateways

LEASE_S: Final = 20.0
"""Seconds of silence, by the database's clock, after which a gateway may count as dead: several missed beats."""

MISSED_BEATS: Final = 5
"""Beats of the judging gateway that the database has stored since it stored one of the other's.

Time alone proves nothing: if the database was unreachable, or the whole machine was suspended, every gateway was
silent, and the first one back must not find the others dead."""


def ago(seconds: float) -> ColumnElement[Any]:
    """Return the time this many seconds ago by the database's clock, in the form of `gateways.seen_at`."""
    return func.timezone("utc", func.clock_timestamp(), type_=DateTime()) - timedelta(seconds=seconds)


class BeatLog:
    """Database times of one gateway's latest beats: how far back it may judge the silence of others. Thread-safe."""

    def __init__(self) -> None:
        self._times: deque[datetime] = deque(maxlen=MISSED_BEATS)
        self._lock: Final = threading.Lock()

    def add(self, at: datetime) -> None:
        """Record a beat that the database stored with this time."""
        with self._lock:
            self._times.append(at)

    def dead(self) -> ColumnElement[bool]:
        """Return the condition for rows of `gateways` that missed MISSED_BEATS beats and LEASE_S.

        No row meets it before this gateway has sent that many beats itself.
        """
        with self._lock:
            since = self._times[0] if len(self._times) == MISSED_BEATS else None
        if since is None:
            return false()
        return and_(gateways.c.seen_at <= ago(LEASE_S), gateways.c.seen_at < since)
