"""Reconciler of an engine that fetches adapters itself when a request names them (plugin/), without load or unload.

Such an engine can answer for every published adapter from its first moment on: it requests missing ones from the
gateway. An engine that comes back empty therefore serves as soon as it is healthy, without a call to fill it. Only a
version that no engine has held yet is tested first: its bytes are verified, and one engine that answers a token with
finite numbers is enough proof for all.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from app.domain.errors import ENGINE_UNAVAILABLE, GatewayError, Unavailable
from app.load.client.engine import Engine
from app.load.client.probe import probe
from app.load.reconcile.callbacks import Callbacks
from app.load.reconcile.reconciler import Reconciler

NOT_FETCHED: Final = frozenset({404, 502, 503, 507})
"""Statuses by which the plugin reports that it could not fetch an adapter: they say nothing against the adapter's bytes."""


ReconcilerFactory = Callable[[Engine, Callbacks], Reconciler]
"""Creates the reconciler of one engine."""


class Proved:
    """Names that an engine has answered to; one set for all engines of a gateway."""

    def __init__(self) -> None:
        self.names: frozenset[str] = frozenset()  # replaced, never mutated: other threads read it
        self._locks: dict[str, asyncio.Lock] = {}

    def lock(self, name: str) -> asyncio.Lock:
        """Return the lock that is held while an engine tests `name`, one engine at a time."""
        return self._locks.setdefault(name, asyncio.Lock())

    def keep(self, wanted: frozenset[str]) -> None:
        """Forget every name that is not in `wanted`."""
        self.names &= wanted
        for name in [name for name, lock in self._locks.items() if name not in wanted and not lock.locked()]:
            del self._locks[name]


class PluginReconciler(Reconciler):
    """Reconciler of one engine with the plugin. unproved: returns the desired names that have not been published yet."""

    def __init__(
        self, engine: Engine, callbacks: Callbacks, unproved: Callable[[], frozenset[str]], proved: Proved | None = None
    ) -> None:
        super().__init__(engine, callbacks)
        self._unproved = unproved
        self._proved = proved or Proved()

    @property
    def loaded(self) -> frozenset[str]:
        """Engine names it answers to: all that are desired, except those not published and not proved yet."""
        if not self.engine_up:
            return frozenset()
        return frozenset(self._callbacks.desired()) - (self._unproved() - self._proved.names)

    def is_loaded(self, name: str) -> bool:
        """Return whether requests may be sent to `name` now."""
        known = name not in self._unproved() or name in self._proved.names
        return self.engine_up and known and name in self._callbacks.desired()

    def may_read(self) -> frozenset[str]:
        """Return no names: the engine reads its own copies."""
        return frozenset()

    @property
    def known(self) -> bool:
        """Always True: even an engine that is down reads no files of this gateway."""
        return True

    async def ensure(self, name: str) -> None:
        """Prove `name` by this engine, unless another engine has proved it first. Raises like Reconciler.ensure."""
        async with self._proved.lock(name):
            if name in self._proved.names:
                return
            await self._load(name)

    async def retire(self, name: str) -> None:
        """Do nothing: the engine keeps its copy, and gets no more requests for it."""

    async def reconcile(self) -> None:
        """Run one pass: check the engine's health, and prove the names that are to be proved."""
        if not await self._engine.healthy():
            self._set(up=False, loaded=frozenset())
            return
        if not self._up:
            if await self.objection.stands(self._engine):
                return
            self._failures = {}  # what failed on the old engine may work on this one
        desired, unproved = self._callbacks.desired(), self._unproved()
        self._forget_failures(self._failures.keys() - desired.keys())
        self._proved.keep(unproved & desired.keys())
        self._set(up=True, loaded=frozenset())
        await self._load_missing({name: desired[name] for name in unproved - self._proved.names if name in desired})
        self._caught_up = self.engine_up
        await self._callbacks.after_pass()

    async def _load(self, name: str) -> None:
        await self._check_usable()
        path = self._callbacks.desired().get(name)
        if path is None:
            raise Unavailable(ENGINE_UNAVAILABLE, f"{name} is not wanted now")
        try:
            await self._check(name, path)
            await probe(self._engine, name, not_fetched=NOT_FETCHED)
        except GatewayError as error:
            self._fail(name, error)
            raise
        self._forget_failures({name})
        self._proved.names |= {name}
        self._callbacks.on_try(True)
        self._callbacks.on_change()


def reconciler_factory(resolves: bool, unproved: Callable[[], frozenset[str]]) -> ReconcilerFactory:
    """Return the factory of reconcilers for a gateway's engines. resolves: whether engines fetch adapters themselves."""
    return partial(PluginReconciler, unproved=unproved, proved=Proved()) if resolves else Reconciler
