"""Makes what is served follow the catalogue: routes, the engine's desired set, the per-adapter gauges."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from app.domain.digest import Digest
from app.domain.errors import (
    LOAD_FAILED,
    RESERVED_NAME,
    VERSION_NOT_READY,
    Refused,
    Stage,
    Unavailable,
)
from app.domain.names import AdapterName, engine_name
from app.domain.version_state import State
from app.gateway.components import Rooms
from app.gateway.desired_state import PublishedVersions, answerable, held_by, kept_and_old, refuse_a_lost_catalogue
from app.gateway.garbage import Litter, collect_garbage, forget_originals
from app.gateway.shielded import unbroken
from app.gateway.showing import VersionRefused
from app.observe.log import event
from app.store.audit.policy_in_force import Standing
from app.store.catalogue.tables import VersionRow

NOOP: Final = AdapterName("base")
"""Name of the zero adapter in the engine; reserved, so no upload has it."""


def noop_engine_name(digest: Digest) -> str:
    """What the engine calls the zero adapter of this digest."""
    return engine_name(NOOP, digest)


class Publishing:
    """Everything that changes what a name means goes through here."""

    def __init__(self, rooms: Rooms, why_not: Callable[[VersionRow], str | None]) -> None:
        """why_not: what the policy in force has against a stored version's artefact, None when it passes. Blocking."""
        self._rooms = rooms
        self._why_not = why_not
        self._withheld: Mapping[tuple[str, int], str] = {}
        self._judged: set[tuple[str, int]] = set()
        self._stood = False
        self.followed = 0  # the revision of the catalogue that is served by
        self._litter = Litter()
        self._collecting: asyncio.Future[bool] | None = None  # not awaited: object storage may take minutes
        self._desired: Mapping[str, Path] = {}
        self._waiting: frozenset[str] = frozenset()
        self._wanted: Mapping[tuple[str, int], int] = {}  # old versions on their way back, and how many ask for each
        self._published = PublishedVersions(rooms.blobs)
        rooms.blobs.spare(held_by(rooms))
        self._one_at_a_time = asyncio.Lock()
        # of threads: holds through a cancellation, and an older read never comes last
        self._following = threading.Lock()

    def desired(self) -> Mapping[str, Path]:
        """Engine name → artefact directory of all that the engine should hold."""
        return self._desired

    def waiting(self) -> frozenset[str]:
        """Engine names among the desired that wait for an engine before they are published."""
        return self._waiting

    def open(self) -> None:
        """At start, blocking, before uploads and engine: recover what a stop interrupted, sweep, set the desired state."""
        catalogue = self._rooms.catalogue
        if catalogue.has_named(namesake := AdapterName(self._rooms.target.name).key):
            why = f"adapter {namesake!r} has the served model's name: one of them must be called otherwise"
            raise Refused(RESERVED_NAME, why)
        refuse_a_lost_catalogue(self._rooms)
        recovered = catalogue.recover()
        for row in recovered.to_load:
            if row.emptied:  # waits for no engine
                catalogue.activate(row.name, row.number)
        self._follow()
        forget_originals(self._rooms)  # the first pass does it again
        event("recovered", interrupted=len(recovered.interrupted), to_load=len(recovered.to_load))

    async def take_over(self) -> None:
        """Another gateway died: fail what it was at work on."""
        recovered = await self._rooms.pools.store(self._rooms.catalogue.recover)
        self.littered()
        event("took_over", logging.WARNING, interrupted=len(recovered.interrupted))

    def withheld(self, row: VersionRow) -> str | None:
        """Why a published version is not served under the policy in force; None when it is."""
        return self._withheld.get((str(row.name), row.number))

    def is_unloaded(self, row: VersionRow) -> bool:
        """Whether it was published once and is too old to be kept in the engines: `rollback` brings it back."""
        return row.state is State.RETIRED and (str(row.name), row.number) in self._rooms.routes.snapshot.unloaded

    async def load(self, row: VersionRow) -> VersionRow:
        """Bring a stored version into the engine and publish it; leave it `stored` while the engine is away.

        Raises VersionRefused when the engine, answering, refuses these very bytes.
        """
        if row.state is not State.STORED:
            return row
        if row.engine_name is not None:
            if row.engine_name not in self._desired:  # who waited for another's upload of it may be here first
                await self.refresh()
            try:
                whose = {"adapter": str(row.name), "version": row.number, "digest": str(row.artefact)}
                with self._rooms.metrics.stage(Stage.LOAD, **whose):
                    await self._rooms.reconciler.ensure(row.engine_name)
            except Unavailable as error:
                return await self._not_loaded(row, error)
        return await self._publish(row)

    async def stored(self, row: VersionRow) -> None:
        """Its artefact was just written: follow, and load what could not be loaded while those bytes were damaged."""
        if row.artefact is not None:
            for name in self._rooms.reconciler.failures:
                if name.partition("@")[2].startswith(row.artefact.short):
                    self._rooms.reconciler.forget_failure(name)
        await self.refresh()

    async def settle(self) -> None:
        """Publish what was stored while the engine was away and is loaded now. Called after each reconcile pass."""
        reconciler, peers = self._rooms.reconciler, self._rooms.peers
        followed, desired = self.followed, self._desired
        every = reconciler.known
        if peers is not None and every and {name for name in reconciler.may_read() if "@" in name} <= desired.keys():
            peers.settled = followed
        for row in await self._rooms.pools.store(self._rooms.catalogue.pending):
            if self.withheld(row):
                continue
            if row.engine_name is not None and row.engine_name not in self._desired:
                await self.refresh()  # stored, and who asked went before that was followed
            with contextlib.suppress(Refused):  # deleted meanwhile, or refused by the engine and recorded as such
                if row.engine_name is None or reconciler.is_loaded(row.engine_name):
                    await self._publish(row)
                elif row.engine_name in reconciler.failures:
                    await self.load(row)
        seen = self._litter.uncollected() if every else None
        if seen is not None and (self._collecting is None or self._collecting.done()):
            self._collecting = self._rooms.pools.background.start(collect_garbage, self._rooms)
            self._collecting.add_done_callback(partial(self._collected, seen))

    async def refresh(self) -> None:
        """Follow the catalogue after a change, and have the reconciler look at once."""
        await self._rooms.pools.following(self._follow)
        self._rooms.reconciler.poke()

    async def rollback(self, name: str, to: int | None) -> VersionRow:
        """Point a name to an earlier version; one that is not kept loaded is loaded and probed first.

        Raises Unavailable when it cannot be; then the name stays where it is.
        """
        wanted = await self._rooms.pools.store(self._earlier, name, to)
        async with self._brought_back(wanted):
            row = await self._rooms.pools.store(self._rooms.catalogue.rollback, name, wanted.number if wanted else to)
            await self.refresh()
        event("rolled_back", adapter=name, version=row.number)
        return row

    async def delete(self, name: str) -> None:
        """Forget an adapter: new requests find nothing, running ones finish, then the engine unloads it."""
        rows = await self._rooms.pools.store(self._rooms.catalogue.delete, name)
        self.littered()
        for row in rows:
            self._rooms.progress.tell(replace(row, state=State.DELETED))
        await self.refresh()
        if await self._rooms.pools.store(forget_originals, self._rooms):  # now: the engine never knew of them
            self.littered()
        event("deleted", adapter=name, versions=len(rows))

    def littered(self) -> None:
        """Something may have been stored or kept that no version needs: look for it after the next reconcile pass."""
        self._litter.left()

    # ---- inside --------------------------------------------------------------------------------------------------

    def _collected(self, seen: int, collecting: asyncio.Future[bool]) -> None:
        if collecting.cancelled():
            return
        if (error := collecting.exception()) is not None:
            logging.getLogger("gateway").error("collecting garbage broke", exc_info=error)
        elif not collecting.result():
            self._litter.collected(seen)

    def _earlier(self, name: str, to: int | None) -> VersionRow | None:
        """The version that is meant; None where the catalogue says what is wrong. Raises Refused when it is withheld."""
        catalogue = self._rooms.catalogue
        if to is not None:
            row = catalogue.version(name, to)
            if why := self.withheld(row):
                raise Refused(VERSION_NOT_READY, f"{name} version {to} is withheld: {why}", param="to")
            return row if row.state is State.RETIRED else None
        active = catalogue.adapter(name).active or 0
        earlier = [row for row in catalogue.versions(name) if row.state is State.RETIRED and row.number < active]
        return next((row for row in reversed(earlier) if not self.withheld(row)), None)

    @asynccontextmanager
    async def _brought_back(self, row: VersionRow | None) -> AsyncIterator[None]:
        """An old version is loaded and probed, and kept so for as long as this lasts. Raises as Reconciler.ensure."""
        if row is None or not self.is_unloaded(row):
            yield
            return
        at = (str(row.name), row.number)
        self._wanted = {**self._wanted, at: self._wanted.get(at, 0) + 1}
        try:
            await self.refresh()
            if row.engine_name is not None:
                await self._rooms.reconciler.ensure(row.engine_name)
            yield
        finally:
            left = {**self._wanted, at: self._wanted[at] - 1}
            self._wanted = {at: count for at, count in left.items() if count}
            await self.refresh()

    @unbroken
    async def _not_loaded(self, row: VersionRow, error: Unavailable) -> VersionRow:
        store, catalogue = self._rooms.pools.store, self._rooms.catalogue
        async with self._one_at_a_time:  # several may have waited for the same load
            if error.code is LOAD_FAILED:
                now = await store(catalogue.record_try_failed, row, error)
            else:
                now = await store(catalogue.version, row.name, row.number)
            if now.state is State.FAILED:
                self._rooms.progress.tell(now)
                await self.refresh()
        if now.state is State.STORED and now.revision != row.revision:
            return await self.load(
                now
            )  # its bytes came again: that try is not this one's to fail, and tells how it ends
        if now.state is State.FAILED:
            raise VersionRefused(Unavailable(LOAD_FAILED, now.error_message or error.message), now) from error
        event("load_postponed", logging.WARNING, adapter=row.name, version=row.number, why=error.message)
        return now

    @unbroken  # a keeper that is stopped, or a client that leaves, must not part the catalogue from the routes
    async def _publish(self, row: VersionRow) -> VersionRow:
        async with self._one_at_a_time:  # an upload and a reconcile pass may both find it loaded
            current = await self._rooms.pools.store(self._rooms.catalogue.version, row.name, row.number)
            if current.state is not State.STORED:
                return current
            published = await self._rooms.pools.store(self._rooms.catalogue.activate, row.name, row.number)
            await self.refresh()
        self._rooms.progress.tell(published)
        event("published", adapter=row.name, version=row.number, state=published.state, engine_name=row.engine_name)
        return published

    def _stand(self) -> None:
        """Write down what is in force, for the auditor."""
        catalogue, parameters = self._rooms.catalogue, self._rooms.parameters
        rows = (*catalogue.served(), *catalogue.pending())
        older = (row for row in rows if row.parameters != parameters and self.withheld(row) is None)
        passed = (row.artefact for row in older if row.artefact is not None)
        keep = self._rooms.keep_versions
        Standing.make(parameters, passed, self._withheld, keep).write(self._rooms.blobs.root)

    def _measure_again(self, rows: Iterable[VersionRow]) -> None:
        """What was screened under another policy or reference is measured again, once, before it is served."""
        found = dict(self._withheld)
        judged, first = len(self._judged), not self._stood
        for row in rows:
            if row.parameters == self._rooms.parameters or row.emptied:
                continue
            at = (str(row.name), row.number)
            if at in self._judged:
                continue
            if (why := self._why_not(row)) is not None:
                found[at] = why
                event("withheld", logging.WARNING, adapter=row.name, version=row.number, why=why)
            self._judged.add(at)
        self._withheld = found
        if first or len(self._judged) > judged:
            self._stand()
            self._stood = True

    def _follow(self) -> None:
        with self._following:
            self._follow_alone()

    def _follow_alone(self) -> None:
        r = self._rooms
        revision = r.peers.revision() if r.peers else 0  # first: what changes from here on is followed again
        # waiting first: what is published between the two reads is then in both, never in neither
        pending, published = r.catalogue.pending(), r.catalogue.served()
        self._measure_again((*published, *pending))
        waiting = [row for row in pending if not self.withheld(row)]
        kept, old = kept_and_old([row for row in published if self._may_serve(row)], r.keep_versions)
        wanted = (*waiting, *(row for row in old if (str(row.name), row.number) in self._wanted))
        served = self._published.of(kept)
        desired = {one.row.engine_name: one.path for one in served if one.row.engine_name and one.path}
        for row in wanted:
            if row.engine_name and row.artefact:
                desired[row.engine_name] = r.blobs.path(row.artefact)
        if r.noop is not None:
            desired[noop_engine_name(r.noop.digest)] = r.blobs.path(r.noop.digest)
        if self._desired.keys() - desired.keys():
            self.littered()
        self._waiting = frozenset(row.engine_name for row in wanted if row.engine_name)  # before they are wanted
        self._desired = desired
        r.routes.replace(tuple(one.served for one in served), {(str(row.name), row.number) for row in old})
        counts = {one.served.adapter: one.fates for one in served if one.served.active}
        self.followed = revision
        r.metrics.show_adapters(counts, {one.served.adapter for one in served} - counts.keys(), len(waiting))

    def _may_serve(self, row: VersionRow) -> bool:
        if not answerable(row):  # a damaged catalogue: the served model must not answer in its place
            event("not_served", logging.ERROR, adapter=row.name, version=row.number, why="it has no artefact")
            return False
        return not self._withheld or not self.withheld(row)
