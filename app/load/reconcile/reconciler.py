"""Reconciler: keeps one engine holding exactly the desired adapters, whatever happens to it or to us.

Each pass compares three sets: desired (the catalogue's), listed (what the engine says it answers to) and loaded (what
this process has verified, loaded and probed). It decides by the engine's list, never by what an earlier answer said.

All of it runs on the event loop. What other threads read (`loaded`, `failures`, `may_read`) are immutable values that are
replaced, never changed: metrics and the store's clean-up look at them from threads of their own.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass
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

LOADERS: Final = 4
"""Adapters being loaded at once: one that hangs must not stop the others; the engine itself loads one at a time."""

DOWN_S: Final = 1.0
"""Seconds between looks at an engine that is away."""

BACKOFF_S: Final = 2.0
BACKOFF_LIMIT_S: Final = 300.0
"""Seconds before an adapter that failed is tried again: doubled each time up to the limit."""

DRAIN_S: Final = 0.05
"""Seconds between looks at whether an adapter still has requests in flight."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """A failed load: the error, how many times in a row, and when (monotonic) it is tried again."""

    error: GatewayError
    count: int
    again: float

    @property
    def refused(self) -> bool:
        """Whether it says something of the adapter's bytes or files, not of an engine that was away."""
        return self.error.code is not ENGINE_UNAVAILABLE


class Reconciler:
    """Makes one engine hold `keeping.desired()`."""

    def __init__(self, engine: Engine, callbacks: Callbacks) -> None:
        self._engine = engine
        self._callbacks = callbacks
        self._verifying = Pool("verifying", LOADERS)
        self._loaded: frozenset[str] = frozenset()
        self._held: frozenset[str] = frozenset()
        self._failures: Mapping[str, _Failure] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._in_work: frozenset[str] = frozenset()  # names being loaded or unloaded now
        self._serves: Mapping[str, str | None] = {}  # its own models as it listed them when it was last found usable
        self._up = False
        self._caught_up = False
        self.objection = Objection(callbacks.identify)
        self.looked = False  # whether the engine was asked at all yet
        self._wake = asyncio.Event()
        self.number = 1  # its engine's, where there are several
        self._hung = HungWatch(engine, callbacks.silent_s, self._hangs_or_not)
        self._tasks: tuple[asyncio.Task[None], ...] = ()

    @property
    def each(self) -> tuple["Reconciler", ...]:
        """One for each engine: itself."""
        return (self,)

    @property
    def engine_up(self) -> bool:
        """Whether the engine answered when it was last asked, and does not hang."""
        return self._up and not self._hung.hung

    def hangs(self) -> bool:
        """Whether its core is known to hang behind a server that answers."""
        return self._hung.hung

    @property
    def loaded(self) -> frozenset[str]:
        """Engine names that were verified, loaded and probed and are still listed."""
        return self._loaded if self.engine_up else frozenset()

    @property
    def failures(self) -> Mapping[str, str]:
        """Engine name → why it is not loaded."""
        return {name: failure.error.message for name, failure in self._failures.items()}

    @property
    def caught_up(self) -> bool:
        """Whether, since it last came up, it was given all that is desired and holds more of it than it refused.

        Said at the end of a pass in which the engine was there throughout, until it goes away or forgets an adapter.
        """
        return self._caught_up and self.engine_up

    def is_loaded(self, name: str) -> bool:
        """Whether requests may be sent to `name` now."""
        return self.engine_up and name in self._loaded

    def may_read(self) -> frozenset[str]:
        """Engine names whose files the engine may read now: what it listed at the last pass, or is being told to load.

        Means something only while it is up; one that is merely silent may read anything.
        """
        return self._held | self._in_work

    @property
    def known(self) -> bool:
        """Whether `may_read` says all: one that does not answer may read anything."""
        return self._up

    def forget_failure(self, name: str) -> None:
        """What stood in the way of `name` is gone: try again now, not when its wait is over."""
        if name in self._failures:
            self._forget_failures({name})
            self._callbacks.on_change()
            self.poke()

    def away(self) -> None:
        """Somebody could not reach the engine: it is away until the next pass, which is now, finds it."""
        self._set(up=False, loaded=self._loaded)
        self.poke()

    def poke(self) -> None:
        """Look again now instead of at the next interval."""
        self._wake.set()

    def start(self) -> None:
        """Start the background tasks. Needs a running loop."""
        if not self._tasks:
            work = {"reconciler": self._run, "hung-watch": self._hung.run}
            self._tasks = tuple(asyncio.create_task(run(), name=name) for name, run in work.items())

    async def stop(self) -> None:
        """Stop the background tasks; the engine keeps what it holds."""
        tasks, self._tasks = self._tasks, ()
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def ensure(self, name: str) -> None:
        """Have `name` loaded and probed when this returns.

        Raises what `verify` raises, or Unavailable: LOAD_FAILED when the engine refuses these bytes, ENGINE_UNAVAILABLE
        when it is away or `name` is not desired now, which says nothing against the bytes.
        """
        async with self._alone_with(name):
            if name not in self._loaded:
                await self._load(name)

    async def warm(self, name: str) -> None:
        """Have the engine answer one token by `name`, so that it is in a slot now.

        Raises Unavailable: ENGINE_UNAVAILABLE when it does not hold it, or is away; LOAD_FAILED when it does not answer.
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

        Raises Unavailable ENGINE_UNAVAILABLE; then a later pass does it.
        """
        while not self._callbacks.idle(name):  # noqa: ASYNC110 - the counter belongs to serve, which knows no events of ours
            await asyncio.sleep(DRAIN_S)
        await self._unload(name)

    async def reconcile(self) -> None:
        """One pass. Failures of single adapters are kept in `failures`, none is raised."""
        before = self._loaded
        try:
            cards = await self._engine.cards()
        except Unavailable:
            self._set(up=False, loaded=self._loaded)  # a slow moment or a restart: the next list tells which
            return
        listed, serves = frozenset(cards), _checkpoints(cards)
        # Whether another process answers at its URL, which was never away when we looked.
        fresh = (bool(before) and not before & listed) or serves != self._serves
        if (fresh or not self._up) and await self.objection.stands(self._engine):
            self._set(up=False, loaded=self._loaded)
            return
        self._serves = serves
        if not self._up:
            self._failures = {}  # what failed on the old engine may work on this one
        self._held = listed
        desired = self._callbacks.desired()
        self._forget_failures(self._failures.keys() - desired.keys())
        forgotten = before - listed  # not `loaded - listed`: what was loaded while the list came is not on it
        if lost := len(self._loaded & forgotten):
            self._caught_up = False
            self._callbacks.on_lost(lost)
        self._set(up=True, loaded=(self._loaded - forgotten) & desired.keys())
        await self._load_missing(desired)
        self._caught_up = self._caught_up or self._holds_its_share(desired)
        await self._unload_strays(listed)
        await self._callbacks.after_pass()

    # ---- inside ----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self.reconcile()
            except Exception:  # a bug, ours or a callback's, must not end the watch over all adapters
                logging.getLogger("gateway").exception("reconcile pass broke")
            self.looked = True
            with contextlib.suppress(TimeoutError):  # not wait_for: in Python 3.11 it can swallow a cancellation
                async with asyncio.timeout(self._callbacks.interval_s if self._up else DOWN_S):
                    await self._wake.wait()

    def _holds_its_share(self, desired: Mapping[str, Path]) -> bool:
        """Whether every name was loaded or refused for its bytes, and fewer were refused: see `caught_up`."""
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
        """Verify, load, probe; under the name's lock. Every failure is recorded and raised."""
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
        """Raise Unavailable ENGINE_UNAVAILABLE for an engine that hangs, since it would be waited for, and for one that
        must not be used, which is asked before it counts as there: an upload may come before the first pass.
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
        """Probe, and leave nothing that failed the probe in the engine."""
        try:
            await probe(self._engine, name)
        except Unavailable as error:
            if error.code is LOAD_FAILED:
                with contextlib.suppress(Unavailable):
                    await self._engine.unload(name)
            raise

    def _fail(self, name: str, error: GatewayError) -> None:
        count = self._failures[name].count + 1 if name in self._failures else 1
        wait = min(BACKOFF_S * 2 ** min(count - 1, 16), BACKOFF_LIMIT_S)
        self._failures = {**self._failures, name: _Failure(error, count, time.monotonic() + wait)}
        if error.code is ENGINE_UNAVAILABLE:
            self._wake.set()  # is it away, or was it this adapter? the next pass knows
        self._callbacks.on_try(False)
        self._callbacks.on_change()

    async def _unload_strays(self, listed: frozenset[str]) -> None:
        """Unload engine names that nobody wants; names without `@` are the engine's own."""
        for name in listed:
            if "@" in name and name not in self._callbacks.desired() and self._callbacks.idle(name):
                with contextlib.suppress(Unavailable):
                    await self._unload(name)

    async def _unload(self, name: str) -> None:
        async with self._alone_with(name):
            if name in self._callbacks.desired():  # wanted again while we waited
                return
            self._set(up=self._up, loaded=self._loaded - {name})
            await self._engine.unload(name)
        self._locks.pop(name, None)

    def _hangs_or_not(self) -> None:
        self._callbacks.on_change()
        self.poke()

    @asynccontextmanager
    async def _alone_with(self, name: str) -> AsyncIterator[None]:
        """Load or unload `name`, one task at a time."""
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
    """The engine's own models, without `@` in their names, and the checkpoint that each is read from."""
    return {name: card["root"] for name, card in cards.items() if "@" not in name}
