"""Publishing: points names to stored versions, rolls names back, and deletes adapters."""

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from app.domain.errors import (
    CANARIES_TIMEOUT,
    CANARIES_UNUSABLE,
    CODES,
    LOAD_FAILED,
    VERSION_NOT_READY,
    Refused,
    Stage,
    Unavailable,
    recall,
)
from app.domain.tenants import split_name
from app.domain.version_state import SERVABLE, State
from app.gateway.catalogue_follower import CatalogueFollower
from app.gateway.components import Components
from app.gateway.desired_state import Key
from app.gateway.evaluation import Evaluation
from app.gateway.garbage import GarbageCollector
from app.gateway.shielded import shielded
from app.gateway.version_refused import VersionRefused
from app.observe.log import event
from app.store.catalogue.tables import VersionRow

_ABOUT_VERSION: Final = frozenset({LOAD_FAILED, CANARIES_TIMEOUT, CANARIES_UNUSABLE})
"""Errors after which the version has failed, until its bytes are sent again; after others it waits for the engine."""


class Publishing:
    """Use case of changing the version that a name points to: publish, roll back, delete."""

    def __init__(
        self,
        components: Components,
        follower: CatalogueFollower,
        garbage: GarbageCollector,
        evaluation: Evaluation | None = None,
    ) -> None:
        """evaluation: looks at a version's behaviour before it gets its name; None: nobody does."""
        self._components = components
        self._follower = follower
        self._garbage = garbage
        self._evaluation = evaluation
        self._one_at_a_time = asyncio.Lock()
        self._changes: set[asyncio.Future[None]] = set()  # recorded in the catalogue, and not in force yet
        self._loading: dict[Key, asyncio.Task[None]] = {}  # started by a reconcile pass, which must not wait for them

    async def load(self, row: VersionRow) -> VersionRow:
        """Load a stored version into the engine, evaluate and publish it; leave it `stored` if the engine is down.

        A version that is published already is followed if it is not in force: the call that published it, or another
        gateway, may not have got that far. Raises VersionRefused if the engine answers and refuses these bytes, or if they
        fail the evaluation; Unavailable if the catalogue cannot be followed.
        """
        c = self._components
        if row.state in SERVABLE and not self._follower.in_force(row):
            await self._follower.refresh()
        if row.state is not State.STORED:
            return row
        if row.engine_name is not None:
            if row.engine_name not in c.desired.state.adapters:  # a caller that waited for an equal upload may be first
                await self._follower.refresh()
            try:
                labels = {"adapter": str(row.name), "version": row.number, "digest": str(row.artefact)}
                with c.metrics.stage(Stage.LOAD, **labels):
                    await c.reconciler.ensure(row.engine_name)
                if self._evaluation is not None and self._evaluation.is_due(row):
                    row = await self._evaluation.run(row)
                    if (
                        row.engine_name is not None
                    ):  # another correction, which one engine has tried: now in all of them
                        await c.reconciler.ensure(row.engine_name)
            except Unavailable as error:
                return await self._record_load_error(row, error)
        return await self._publish(row)

    async def stored(self, row: VersionRow) -> None:
        """Follow the catalogue after the row's artefact was written, and retry loads that failed while it was damaged."""
        if row.artefact is not None:
            self._follower.artefact_written(row.artefact)
            for name in self._components.reconciler.failures:
                if name.partition("@")[2].startswith(row.artefact.short):
                    self._components.reconciler.forget_failure(name)
        await self._follower.refresh()

    async def settle(self) -> None:
        """Publish versions that were stored while the engine was down and are loaded now. Called after each reconcile pass.

        Also records the settled revision for the other gateways, and starts a garbage collection if one is due.
        """
        c, reconciler, state = self._components, self._components.reconciler, self._components.desired.state
        every = reconciler.known
        if c.peers and every and {name for name in reconciler.may_read() if "@" in name} <= state.adapters.keys():
            c.peers.settled = state.revision
        if self._follower.due:
            await self._follower.refresh()
        for row in await c.pools.store(c.catalogue.pending):
            if row.key in c.desired.state.withheld:
                continue
            if row.engine_name is not None and row.engine_name not in c.desired.state.adapters:
                await self._follower.refresh()  # its caller was cancelled before it was followed
            with contextlib.suppress(Refused):  # deleted meanwhile, or refused by the engine and recorded as such
                loaded = row.engine_name is None or reconciler.is_loaded(row.engine_name)
                if not loaded and row.engine_name not in reconciler.failures:
                    continue
                if self._evaluation is not None and self._evaluation.is_due(row):
                    self._load_in_background(row)
                else:
                    await (self._publish(row) if loaded else self.load(row))
        if every:
            self._garbage.start_if_due()

    async def in_force(self) -> None:
        """Wait until all changes are in force that the catalogue may show by now.

        To be called between reading the catalogue and answering: what an answer shows as served is served from then on.
        """
        if self._changes:
            await asyncio.wait(tuple(self._changes))

    async def stop(self) -> None:
        """Cancel evaluations; their versions stay `stored`."""
        for task in self._loading.values():
            task.cancel()
        if self._evaluation is not None:
            await self._evaluation.stop()

    async def rollback(self, name: str, to: int | None) -> VersionRow:
        """Point a name to an earlier version; one that is not kept loaded is loaded and probed first.

        to: its number; None: the newest earlier one. Raises Unavailable if it cannot be loaded; the name then does not
        move. Raises Refused if there is no such version, or it is withheld.
        """
        c = self._components
        wanted = await c.pools.store(self._earlier, name, to)
        async with contextlib.AsyncExitStack() as recalled:
            if wanted is not None and c.desired.state.is_unloaded(wanted):
                await recalled.enter_async_context(self._follower.recalled(wanted))
                if wanted.engine_name is not None:
                    await c.reconciler.ensure(wanted.engine_name)
            with self.change():
                evaluation = c.rules.of(split_name(name)[0]).evaluation
                row = await c.pools.store(c.catalogue.rollback, name, wanted.number if wanted else to, evaluation)
                await self._follower.refresh()
        event("rolled_back", adapter=name, version=row.number)
        return row

    async def delete(self, name: str) -> None:
        """Delete an adapter: new requests do not find it, running ones finish, then the engine unloads it."""
        c = self._components
        rows = await c.pools.store(c.catalogue.delete, name)
        self._garbage.suspect()
        for row in rows:
            c.progress.report(replace(row, state=State.DELETED))
        await self._follower.refresh()
        if await c.pools.store(self._garbage.forget_uploads):  # at once: no engine reads them
            self._garbage.suspect()
        event("deleted", adapter=name, versions=len(rows))

    @contextlib.contextmanager
    def change(self) -> Iterator[None]:
        """Mark a change from before it is recorded until it is in force."""
        done = asyncio.get_running_loop().create_future()
        self._changes.add(done)
        try:
            yield
        finally:
            self._changes.remove(done)
            done.set_result(None)

    # ---- internals -----------------------------------------------------------------------------------------------

    def _load_in_background(self, row: VersionRow) -> None:
        if row.key not in self._loading and (self._evaluation is None or self._evaluation.may_start(row)):
            self._loading[row.key] = task = asyncio.create_task(self._load_quietly(row), name="loading")
            task.add_done_callback(lambda _: self._loading.pop(row.key, None))

    async def _load_quietly(self, row: VersionRow) -> None:
        try:
            await self.load(row)
        except Refused:  # deleted meanwhile, or recorded on the version
            return
        except Unavailable as error:
            event("load_postponed", logging.WARNING, adapter=row.name, version=row.number, why=error.message)

    def _earlier(self, name: str, to: int | None) -> VersionRow | None:
        """Return the version to roll back to; None if the catalogue is to decide. Raises Refused if it is withheld."""
        catalogue, withheld = self._components.catalogue, self._components.desired.state.withheld
        if to is not None:
            row = catalogue.version(name, to)
            if why := withheld.get(row.key):
                raise Refused(VERSION_NOT_READY, f"{name} version {to} is withheld: {why}", param="to")
            return row if row.state is State.RETIRED else None
        active = catalogue.adapter(name).active or 0
        earlier = [row for row in catalogue.versions(name) if row.state is State.RETIRED and row.number < active]
        return next((row for row in reversed(earlier) if row.key not in withheld), None)

    @shielded
    async def _record_load_error(self, row: VersionRow, error: Unavailable) -> VersionRow:
        store, catalogue = self._components.pools.store, self._components.catalogue
        async with self._one_at_a_time:  # several callers may have waited for the same load
            if error.code in _ABOUT_VERSION:
                now = await store(catalogue.record_try_failed, row, error)
            else:
                now = await store(catalogue.version, row.name, row.number)
            if now.state is State.FAILED:
                self._components.progress.report(now)
                await self._follower.refresh()
        # If its bytes were uploaded again meanwhile, the result of that try counts.
        if now.state is State.STORED and now.revision != row.revision:
            return await self.load(now)
        if now.state is State.FAILED:
            code = CODES.get(now.error_code or "", LOAD_FAILED)
            raise VersionRefused(recall(code, now.error_message or error.message), now) from error
        event("load_postponed", logging.WARNING, adapter=row.name, version=row.number, why=error.message)
        return now

    @shielded  # a stopped reconciler, or a client that disconnects, must not leave catalogue and routing table different
    async def _publish(self, row: VersionRow) -> VersionRow:
        c = self._components
        async with self._one_at_a_time:  # an upload and a reconcile pass may both find it loaded
            current = await c.pools.store(c.catalogue.version, row.name, row.number)
            if current.state is not State.STORED:
                return await self.load(current)
            if self._evaluation is not None and self._evaluation.is_due(current):
                return current  # begun again meanwhile: the next pass evaluates it
            with self.change():
                published = await c.pools.store(c.catalogue.activate, row.name, row.number, c.rules_of(row).evaluation)
                await self._follower.refresh()
        c.progress.report(published)
        event("published", adapter=row.name, version=row.number, state=published.state, engine_name=row.engine_name)
        return published
