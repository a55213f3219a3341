"""Gateways that share a catalogue on PostgreSQL, and the directory of artefacts that it names.

Each has a row in `gateways` and sends heartbeats to it; lateness is judged by the database's clock, so that different
local clocks do not matter. A gateway that has missed several beats (leases.py) is dead: the versions it worked on are
failed by the others. If it comes back after all, its writes are refused (TakenOver), because the rows have changed; it
then waits for their outcome, or begins them again. Nothing else is leased: every change is one transaction that
excludes other writers.

An artefact is removed only if no row needs it, no gateway claims it, and every gateway has reported that its engine
reads nothing that was unneeded since (`settled`, a revision of the catalogue).
"""

import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import ColumnElement, Connection, delete, func, insert, or_, select, update

from app.domain.digest import Digest
from app.domain.errors import STORE_FAILED, GatewayError, Unavailable
from app.domain.version_state import IN_FLIGHT, State
from app.store.artefacts.claims import MARK_S, GoOn, in_time, wait_while
from app.store.catalogue.database import Database
from app.store.catalogue.tables import catalogue_state, claims, deletions, gateways, versions
from app.store.cluster.leases import LEASE_S, BeatLog, ago

STALE_S: Final = 900.0
"""Seconds a gateway keeps serving from its last read of the catalogue; then it serves no adapter until it can read."""

FORGET_S: Final = 2 * STALE_S
"""Seconds of silence after which a gateway's engine no longer delays the removal of artefacts: it serves none then."""


def next_revision(connection: Connection) -> int:
    """Advance the catalogue's revision and return it. Inside a transaction that excludes other writers."""
    grown = update(catalogue_state).values(revision=catalogue_state.c.revision + 1)
    return int(connection.execute(grown.returning(catalogue_state.c.revision)).scalar_one())


class TakenOver(Unavailable):
    """STORE_BUSY: this gateway was silent for so long that another one failed the version, or has begun it again."""


def orphaned(beats: BeatLog) -> ColumnElement[bool]:
    """Return the condition for versions that no living gateway works on. beats: those of the calling gateway."""
    alive = select(gateways.c.id).where(~beats.dead())
    return or_(versions.c.owner.is_(None), versions.c.owner.not_in(alive))


class Peers:
    """One gateway among those on this catalogue. Blocking; thread-safe."""

    def __init__(self, url: str, parameters: str = "", patience_s: float = 0.0) -> None:
        """Open connections of its own, so that a heartbeat never waits for one. Raises Unavailable: `Database`."""
        self.id: Final = secrets.token_hex(8)
        self.beats: Final = BeatLog()
        self.settled = 0
        self.parameters = parameters
        self._database: Final = Database(url, patience_s=patience_s)
        self._held: Counter[str] = Counter()
        self._claiming: Final = threading.Lock()
        self._last_read = time.monotonic()
        if not self._database.shared:
            self._database.close()
            raise Unavailable(STORE_FAILED, "several gateways can share a catalogue on PostgreSQL only")
        self.beat()

    @property
    def fresh(self) -> bool:
        """True if the catalogue was read recently enough to serve from."""
        return time.monotonic() - self._last_read < STALE_S

    def revision(self) -> int:
        """Return the number of the catalogue's latest change."""
        asked = time.monotonic()
        with self._database.reading() as connection:
            found = int(connection.execute(select(catalogue_state.c.revision)).scalar_one())
        self._last_read = asked
        return found

    def beat(self) -> None:
        """Send a heartbeat with the revision our engine has settled.

        Deletes gateways silent for FORGET_S, and claims that this gateway no longer holds.
        """
        values = {"seen_at": ago(0), "settled": self.settled, "parameters": self.parameters}
        mine = update(gateways).where(gateways.c.id == self.id).values(**values).returning(gateways.c.seen_at)
        with self._database.beside() as connection:
            kept = connection.execute(mine).scalar_one_or_none()
            if kept is None:
                fresh = insert(gateways).values(id=self.id, **values).returning(gateways.c.seen_at)
                kept = connection.execute(fresh).scalar_one()
            connection.execute(delete(gateways).where(gateways.c.seen_at < ago(FORGET_S)))
        self.beats.add(kept)
        if self._claiming.acquire(blocking=False):  # else at the next beat: a heartbeat does not wait
            try:
                with self._database.beside() as connection:
                    lapsed = claims.c.digest.not_in(list(self._held))
                    connection.execute(delete(claims).where(claims.c.gateway == self.id, lapsed))
            finally:
                self._claiming.release()

    def others(self) -> tuple[str, ...]:
        """Return the parameters of the other living gateways."""
        with self._database.reading() as connection:
            alive = select(gateways.c.parameters).where(gateways.c.id != self.id, gateways.c.seen_at > ago(LEASE_S))
            return tuple(connection.execute(alive).scalars())

    def orphans(self) -> bool:
        """Return whether a version is in flight that no living gateway works on."""
        with self._database.reading() as connection:
            where = (versions.c.state.in_(IN_FLIGHT), orphaned(self.beats))
            return connection.execute(select(versions.c.id).where(*where).limit(1)).first() is not None

    def at_work_elsewhere(self, name: str, number: int) -> bool:
        """Return whether another living gateway works on this version."""
        mine = (versions.c.spelling == name, versions.c.number == number, versions.c.owner != self.id)
        query = select(versions.c.id).where(*mine, ~orphaned(self.beats))
        with self._database.reading() as connection:
            return connection.execute(query.where(versions.c.state.in_(IN_FLIGHT))).first() is not None

    def leave(self) -> None:
        """Delete this gateway's row and close the connections. Harmless if the database is away: the lease expires."""
        try:
            with self._database.beside() as connection:
                connection.execute(delete(gateways).where(gateways.c.id == self.id))
        except GatewayError as error:
            logging.getLogger("gateway").warning("could not sign off from the catalogue: %s", error.message)
        self._database.close()

    def same_store(self, mark: str) -> None:
        """Check that these rows name the artefacts in the directory with this mark; the first directory to come sets it.

        Raises Unavailable STORE_FAILED for any other.
        """
        with self._database.writing() as connection:
            known = connection.execute(select(catalogue_state.c.store)).scalar_one()
            if known is None:
                connection.execute(update(catalogue_state).values(store=mark))
            elif known != mark:
                raise Unavailable(STORE_FAILED, "this catalogue speaks of another directory of artefacts than ours")

    @contextmanager
    def claimed(self, digest: Digest) -> Iterator[None]:
        """See `Claims.claimed`."""
        self.keep(digest)
        try:
            yield
        finally:
            self._release(digest)

    def keep(self, digest: Digest) -> None:
        """Claim the digest for as long as this gateway lives. Waits until no deletion is in progress. Raises as
        `claimed`.
        """
        mine = {"digest": digest.hex, "gateway": self.id}
        there = (claims.c.digest == digest.hex, claims.c.gateway == self.id)
        with self._claiming, self._database.writing() as connection:
            if connection.execute(select(claims.c.digest).where(*there)).first() is None:
                connection.execute(insert(claims).values(**mine))
            self._held[digest.hex] += 1  # if the commit fails: one claim too many, for as long as we live
        try:  # outside the lock: no other claim waits for this
            wait_while(lambda: self._is_marked(digest), digest)
        except BaseException:
            self._release(digest)
            raise

    def _release(self, digest: Digest) -> None:
        """Release the claim; a later beat deletes its row."""
        with self._claiming:
            self._held[digest.hex] -= 1
            if not self._held[digest.hex]:
                del self._held[digest.hex]

    @contextmanager
    def removing(self, digest: Digest) -> Iterator[bool]:
        """See `Claims.removing`. If the block raises, undo a removal made inside: others may have claimed the artefact."""
        with self._database.writing() as connection:
            yield self._free(connection, digest)

    @contextmanager
    def deleting(self, digest: Digest) -> Iterator[GoOn | None]:
        """See `Claims.deleting`."""
        began = time.monotonic()
        if not self._mark(digest):
            yield None
            return
        yield lambda: in_time(began) and self._may_go_on(digest)
        with self._database.writing() as connection:  # not if the block raised
            connection.execute(delete(deletions).where(*self._mine(digest)))

    def _mark(self, digest: Digest) -> bool:
        """Mark the digest as being deleted if it is free and unmarked; return whether it was. Deletes lapsed marks."""
        with self._database.writing() as connection:
            connection.execute(delete(deletions).where(deletions.c.marked_at <= ago(MARK_S)))
            marked = connection.execute(select(deletions.c.digest).where(deletions.c.digest == digest.hex)).first()
            if marked or not self._free(connection, digest):
                return False
            connection.execute(insert(deletions).values(digest=digest.hex, gateway=self.id, marked_at=ago(0)))
            return True

    def _mine(self, digest: Digest) -> tuple[ColumnElement[bool], ...]:
        return deletions.c.digest == digest.hex, deletions.c.gateway == self.id

    def _is_marked(self, digest: Digest) -> bool:
        valid = (deletions.c.digest == digest.hex, deletions.c.marked_at > ago(MARK_S))
        with self._database.reading() as connection:
            return connection.execute(select(deletions.c.digest).where(*valid)).first() is not None

    def _may_go_on(self, digest: Digest) -> bool:
        """Return whether our mark still exists and no gateway has claimed the digest since."""
        with self._database.reading() as connection:
            marked = connection.execute(select(deletions.c.digest).where(*self._mine(digest))).first()
            claimed = connection.execute(select(claims.c.gateway).where(claims.c.digest == digest.hex)).first()
            return marked is not None and claimed is None

    def _free(self, connection: Connection, digest: Digest) -> bool:
        here = versions.c.artefact == digest.hex
        needed = select(versions.c.id).where(here, versions.c.state != State.DELETED).limit(1)
        claimed = select(claims.c.gateway).where(claims.c.digest == digest.hex).limit(1)
        if connection.execute(needed).first() or connection.execute(claimed).first():
            return False
        last = connection.execute(select(func.max(versions.c.revision)).where(here)).scalar_one() or 0
        behind = select(gateways.c.id).where(gateways.c.settled < last).limit(1)
        return connection.execute(behind).first() is None
