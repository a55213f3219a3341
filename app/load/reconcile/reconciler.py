"""Reconciler: keeps one engine holding exactly the desired adapters, also after crashes of the engine or the gateway.

Each pass compares three sets: desired (from the catalogue), listed (the names that the engine says it answers to) and
loaded (the names that this process has verified, loaded and probed). It decides by the engine's list, never by an
earlier answer.

All of it runs on the event loop. The values that other threads read (`loaded`, `failures`, `may_read`) are immutable
and are replaced, never mutated: metrics and the store's clean-up read them from threads of their own.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping, Set
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from app.concurrency.pools import Pool
from app.domain.errors import ENGINE_UNAVAILABLE, LOAD_FAILED, STORE_FAILED, GatewayError, Unavailable
from app.load.client.engine import Engine
from app.load.client.model_list import Cards
from app.load.client.probe import probe
from app.load.reconcile.callbacks import Callbacks
from app.load.reconcile.hung import HungWatch
from app.load.reconcile.objection import Objection
from app.observe.log import event

LOADERS: Final = 4
"""Adapters loaded at the same time: one that hangs must not stop the others; the engine itself loads one at a time."""

DOWN_S: Final = 1.0
"""Seconds between checks of an engine that is down."""

BACKOFF_S: Final = 2.0
BACKOFF_LIMIT_S: Final = 300.0
"""Seconds before an adapter that failed is tried again: doubled each time up to the limit."""

DRAIN_S: Final = 0.05
"""Seconds between checks for requests in flight on an adapter."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """Failed load: the error, the number of failures in a row, and the time (monotonic) of the next attempt."""

    error: GatewayError
    count: int
    again: float

    @property
    def refused(self) -> bool:
        """True if the error is about the adapter's bytes or files, not about an engine that was down."""
        return self.error.code is not ENGINE_UNAVAILABLE


@dataclass(frozen=True, slots=True)
class LastError:
    """Last problem with an engine, for people. at: UTC."""

    at: datetime
    what: str


class Reconciler:
    """Reconciler of one engine: makes it hold `callbacks.desired()`."""

    def __init__(self, engine: Engine, callbacks: Callbacks) -> None:
        self._engine = engine
        self._callbacks = callbacks
        self._verifying = Pool("verifying", LOADERS)
        self._loaded: frozenset[str] = frozenset()
        self._held: frozenset[str] = frozenset()
        self._failures: Mapping[str, _Failure] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._in_work: frozenset[str] = frozenset()  # names being loaded or unloaded now
        self._serves: Mapping[str, str | None] = {}  # the engine's own models, as listed when it was last found usable
        self._up = False
        self._caught_up = False
        self.objection = Objection(callbacks.identify)
        self.looked = False  # whether a pass has run
        self.last_error: LastError | None = None
        self._wake = asyncio.Event()
        self.number = 1  # number of the engine in a fleet
        self._hung = HungWatch(engine, callbacks.silent_s, self._hung_changed)
        self._tasks: tuple[asyncio.Task[None], ...] = ()

    @property
    def each(self) -> tuple["Reconciler", ...]:
        """Reconcilers of the engines: this one."""
        return (self,)

    @property
    def engine_up(self) -> bool:
        """True if the engine answered when it was last asked, and does not hang."""
        return self._up and not self._hung.hung

    def hangs(self) -> bool:
        """Return whether the core is known to hang behind a server that answers."""
        return self._hung.hung

    @property
    def loaded(self) -> frozenset[str]:
        """Engine names that were verified, loaded and probed, and are still listed."""
        return self._loaded if self.engine_up else frozenset()

    @property
    def failures(self) -> Mapping[str, str]:
        """Engine name → reason why it is not loaded."""
        return {name: failure.error.message for name, failure in self._failures.items()}

    @property
    def caught_up(self) -> bool:
        """True if the engine, since it last came up, was given all desired adapters and holds more than it refused.

        Set at the end of a pass during which the engine was up throughout, and until it goes down or loses an adapter.
        """
        return self._caught_up and self.engine_up

    def is_loaded(self, name: str) -> bool:
        """Return whether requests may be sent to `name` now."""
        return self.engine_up and name in self._loaded

    def may_read(self) -> frozenset[str]:
        """Return the engine names whose files the engine may read now: those listed at the last pass, or being loaded.

        Valid only while the engine is up; one that is merely silent may read anything.
        """
        return self._held | self._in_work

    @property
    def known(self) -> bool:
        """True if `may_read` is complete: an engine that does not answer may read anything."""
        return self._up

    def forget_failure(self, name: str) -> None:
        """Forget the failure of `name`, whose cause is gone, and try again now instead of after its backoff."""
        if name in self._failures:
            self._forget_failures({name})
            self._callbacks.on_change()
            self.poke()

    def away(self) -> None:
        """Mark the engine as down because a request could not reach it; the next pass starts now and may find it again."""
        self._set(up=False, loaded=self._loaded)
        self.poke()

    def poke(self) -> None:
        """Start the next pass now instead of after the interval."""
        self._wake.set()

    def start(self) -> None:
        """Start the background tasks. Needs a running loop."""
        if not self._tasks:
            work = {"reconciler": self._run, "hung-watch": self._hung.run}
            self._tasks = tuple(asyncio.create_task(run(), name=name) for name, run in work.items())

    async def stop(self) -> None:
        """Stop the background tasks; the engine keeps its adapters."""
        tasks, self._tasks = self._tasks, ()
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def ensure(self, name: str) -> None:
        """Load and probe `name` unless that is done.

        Raises the errors of `verify`, or Unavailable: LOAD_FAILED if the engine refuses these bytes, ENGINE_UNAVAILABLE
        if it is down or `name` is not desired now, which says nothing against the bytes.
        """
        async with self._exclusive(name):
            if name not in self._loaded:
                await self._load(name)

    def tried_at_one(self, _name: str, _like: str) -> AbstractContextManager[None]:
        """See Fleet.tried_at_one."""
        return contextlib.nullcontext()

    async def warm(self, name: str) -> None:
        """Request one token from `name`, so that it is in one of the engine's slots now.

        Raises Unavailable: ENGINE_UNAVAILABLE if the engine does not hold it, or is down; LOAD_FAILED if it does not
        answer.
        """
        if not self.is_loaded(name):
            raise Unavailable(ENGINE_UNAVAILABLE, f"{name} is not loaded there")
        try:
            await probe(self._engine, name)
        except Unavailable:
            self.poke()
            raise

    async def retire(self, name: str) -> None:
        """Unload `name` once no request is in flight on it. It must not be desired any more.

        Raises Unavailable ENGINE_UNAVAILABLE; a later pass then unloads it.
        """
        while not self._callbacks.idle(name):  # noqa: ASYNC110 - the counter belongs to serve, which cannot signal an event
            await asyncio.sleep(DRAIN_S)
        await self._unload(name)

    async def reconcile(self) -> None:
        """Run one pass. Failures of single adapters are recorded in `failures`; none is raised."""
        before = self._loaded
        try:
            cards = await self._engine.cards()
        except Unavailable as error:
            self._note(error.message)
            self._set(up=False, loaded=self._loaded)  # slow for a moment, or restarting: the next list shows which
            return
        listed, serves = frozenset(cards), _checkpoints(cards)
        # True if another process answers at its URL, although no check found the engine down in between.
        fresh = (bool(before) and not before & listed) or serves != self._serves
        if (fresh or not self._up) and await self.objection.stands(self._engine):
            self._note(self.objection.why or "it does not answer")
            self._set(up=False, loaded=self._loaded)
            return
        self._serves = serves
        if not self._up:
            self._failures = {}  # what failed on the old engine may work on this one
        self._held = listed
        desired = self._callbacks.desired()
        self._forget_failures(self._failures.keys() - desired.keys())
        forgotten = before - listed  # not `loaded - listed`: adapters loaded while the list arrived are not on it
        if lost := len(self._loaded & forgotten):
            self._caught_up = False
            self._callbacks.on_lost(lost)
        self._set(up=True, loaded=(self._loaded - forgotten) & desired.keys())
        await self._load_missing(desired)
        self._caught_up = self._caught_up or self._holds_its_share(desired)
        await self._unload_strays(listed)
        await self._callbacks.after_pass()

    # ---- internals -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self.reconcile()
            except GatewayError as error:  # of a callback: the catalogue's database is away, say
                event("pass_incomplete", logging.WARNING, engine=self.number, why=error.message)
            except Exception:  # a bug, here or in a callback, must not end the reconciliation
                logging.getLogger("gateway").exception("reconcile pass broke")
            self.looked = True
            with contextlib.suppress(TimeoutError):  # not wait_for: in Python 3.11 it can swallow a cancellation
                async with asyncio.timeout(self._callbacks.interval_s if self._up else DOWN_S):
                    await self._wake.wait()

    def _holds_its_share(self, desired: Mapping[str, Path]) -> bool:
        """Return whether each name was loaded, or refused for its bytes, and fewer were refused: see `caught_up`."""
        missing = desired.keys() - self._loaded
        refused = [name for name in missing if name in self._failures and self._failures[name].refused]
        return self.engine_up and len(refused) == len(missing) and (not missing or len(refused) < len(self._loaded))

    async def _load_missing(self, desired: Mapping[str, Path]) -> None:
        now = time.monotonic()
        due = [
            name
            for name in desired
            if name not in self._loaded and (name not in self._failures or self._failures[name].again <= now)
        ]
        gate = asyncio.Semaphore(LOADERS)

        async def load(name: str) -> None:
            async with gate:
                if self.engine_up:
                    with contextlib.suppress(GatewayError):
                        await self.ensure(name)

        await asyncio.gather(*map(load, due))

    async def _load(self, name: str) -> None:
        """Verify, load and probe `name`, under its lock. A failure of these steps is recorded and raised."""
        await self._check_usable()
        path = self._callbacks.desired().get(name)
        if path is None:
            raise Unavailable(ENGINE_UNAVAILABLE, f"{name} is not wanted now")  # says nothing against its bytes
        try:
            await self._check(name, path)
            await self._engine.load(name, path)
            await self._probe(name)
        except GatewayError as error:
            self._fail(name, error)
            raise
        self._forget_failures({name})
        self._held |= {name}
        self._callbacks.on_try(True)
        self._set(up=True, loaded=self._loaded | {name})

    async def _check_usable(self) -> None:
        """Raise Unavailable ENGINE_UNAVAILABLE if the engine hangs or must not be used.

        A load would wait for an engine that hangs. An engine that does not count as up yet is checked for objections
        here, because an upload may come before the first pass.
        """
        if self._hung.hung:
            raise Unavailable(ENGINE_UNAVAILABLE, "the engine computes nothing at present")
        if not self._up and await self.objection.stands(self._engine):
            raise Unavailable(ENGINE_UNAVAILABLE, self.objection.why or "the engine does not answer")

    async def _check(self, name: str, path: Path) -> None:
        try:
            await self._verifying(self._callbacks.verify, name, path)
        except OSError as error:
            raise Unavailable(STORE_FAILED, f"{name} cannot be read: {error.strerror}") from error

    async def _probe(self, name: str) -> None:
        """Probe `name`, and unload it if it fails the probe."""
        try:
            await probe(self._engine, name)
        except Unavailable as error:
            if error.code is LOAD_FAILED:
                with contextlib.suppress(Unavailable):
                    await self._engine.unload(name)
            raise

    def _fail(self, name: str, error: GatewayError) -> None:
        self._note(f"{name}: {error.message}")
        count = self._failures[name].count + 1 if name in self._failures else 1
        wait = min(BACKOFF_S * 2 ** min(count - 1, 16), BACKOFF_LIMIT_S)
        self._failures = {**self._failures, name: _Failure(error, count, time.monotonic() + wait)}
        if error.code is ENGINE_UNAVAILABLE:
            self._wake.set()  # the next pass finds out whether the engine is down
        self._callbacks.on_try(False)
        self._callbacks.on_change()

    async def _unload_strays(self, listed: frozenset[str]) -> None:
        """Unload engine names that are not desired; names without `@` are the engine's own models."""
        for name in listed:
            if "@" in name and name not in self._callbacks.desired() and self._callbacks.idle(name):
                with contextlib.suppress(Unavailable):
                    await self._unload(name)

    async def _unload(self, name: str) -> None:
        async with self._exclusive(name):
            if name in self._callbacks.desired():  # desired again in the meantime
                return
            self._set(up=self._up, loaded=self._loaded - {name})
            await self._engine.unload(name)
        self._locks.pop(name, None)

    def _note(self, what: str) -> None:
        self.last_error = LastError(datetime.now(UTC), what)

    def _hung_changed(self) -> None:
        if self._hung.hung:
            self._note("it computes nothing")
        self._callbacks.on_change()
        self.poke()

    @asynccontextmanager
    async def _exclusive(self, name: str) -> AsyncIterator[None]:
        """Hold the lock of `name` while it is loaded or unloaded, so that one task at a time does either."""
        async with self._locks.setdefault(name, asyncio.Lock()):
            self._in_work |= {name}
            try:
                yield
            finally:
                self._in_work -= {name}

    def _forget_failures(self, names: Set[str]) -> None:
        if names & self._failures.keys():
            self._failures = {name: failure for name, failure in self._failures.items() if name not in names}

    def _set(self, *, up: bool, loaded: frozenset[str]) -> None:
        if not up:
            self._caught_up = False
        if (up, loaded) != (self._up, self._loaded):
            self._up, self._loaded = up, loaded
            self._callbacks.on_change()


def _checkpoints(cards: Cards) -> Mapping[str, str | None]:
    """Return the engine's own models, without `@` in their names, each with the checkpoint it is read from."""
    return {name: card["root"] for name, card in cards.items() if "@" not in name}
