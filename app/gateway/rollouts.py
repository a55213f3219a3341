"""Roll-outs: a new version gets some of an adapter's requests first, then more, then all, or none."""

import contextlib
import logging
from typing import Any

from app.domain.errors import VERSION_NOT_READY, Refused
from app.domain.rollout import Rollout, Wanted
from app.domain.tenants import split_name
from app.domain.version_state import SERVABLE
from app.gateway.catalogue_follower import CatalogueFollower
from app.gateway.components import Components
from app.gateway.publishing import Publishing
from app.gateway.shielded import shielded
from app.observe.log import event
from app.store.catalogue.beginning import not_ready
from app.store.catalogue.rollouts import no_traffic, promoted
from app.store.catalogue.tables import AdapterRow, VersionRow


class Rollouts:
    """Use case of changing which versions an adapter's plain name means."""

    def __init__(self, components: Components, follower: CatalogueFollower, publishing: Publishing) -> None:
        self._components = components
        self._follower = follower
        self._publishing = publishing

    async def set(self, name: str, wanted: Wanted) -> AdapterRow:
        """Begin a roll-out, or change its weights, once the engines hold all of its versions.

        Raises Refused if a version does not exist, was never published or is withheld, and Unavailable if one cannot be
        loaded; nothing has changed then.
        """
        c = self._components
        rows = await c.pools.store(self._servable, name, sorted(wanted.versions))
        if any(row.engine_name is not None and row.engine_name not in c.desired.state.adapters for row in rows):
            await self._follower.refresh()  # another gateway may just have published it
        async with contextlib.AsyncExitStack() as recalled:
            for row in rows:
                if c.desired.state.is_unloaded(row):
                    await recalled.enter_async_context(self._follower.recalled(row))
                if row.engine_name is not None:
                    await c.reconciler.ensure(row.engine_name)
            adapter: AdapterRow = await self._recorded(c.catalogue.set_traffic, name, wanted)
        event("traffic", adapter=name, stable=adapter.active, **_described(adapter.rollout))
        return adapter

    async def promote(self, name: str, number: int | None = None) -> VersionRow:
        """Give all requests to one version of the roll-out and end it. None: the only one besides the stable version.

        Raises Refused NO_TRAFFIC, or VERSION_NOT_READY if the version has no part in it, or is withheld.
        """
        c = self._components
        adapter = await c.pools.store(c.catalogue.adapter, name)
        number = promoted(adapter, number)
        await c.pools.store(self._servable, name, [number])
        row: VersionRow = await self._recorded(c.catalogue.promote, name, number, self._evaluation(name))
        c.metrics.rollouts.over("promoted")
        event("promoted", adapter=name, version=row.number)
        return row

    async def abort(self, name: str, rollout: Rollout | None = None, why: str | None = None) -> AdapterRow:
        """End the roll-out: the stable version gets all requests.

        rollout: the guard's: end it only if it is still this one. why: its reason. Raises Refused NO_TRAFFIC.
        """
        abort = self._components.catalogue.abort
        adapter: AdapterRow = await self._recorded(abort, name, rollout, self._evaluation(name))
        self._components.metrics.rollouts.over("aborted" if rollout is None else "guard")
        event("traffic_aborted", logging.WARNING, adapter=name, version=adapter.active, why=why)
        return adapter

    async def shown(self, name: str) -> AdapterRow:
        """Return an adapter with its roll-out. Raises Refused ADAPTER_NOT_FOUND or NO_TRAFFIC."""
        adapter = await self._components.pools.reading(self._components.catalogue.adapter, name)
        if adapter.rollout is None:
            raise no_traffic(adapter)
        return adapter

    def _evaluation(self, name: str) -> str | None:
        return self._components.rules.of(split_name(name)[0]).evaluation

    def _servable(self, name: str, numbers: list[int]) -> list[VersionRow]:
        """Return these versions. Blocking. Raises Refused unless every one was published and is not withheld."""
        rows = [self._components.catalogue.version(name, number) for number in numbers]
        for row in rows:
            if row.state not in SERVABLE:
                raise not_ready(row)
            if why := self._components.desired.state.withheld.get(row.key):
                message = f"{row.name.plain} version {row.number} is withheld: {why}"
                raise Refused(VERSION_NOT_READY, message, param="version", remedy="Leave it out; it answers nobody.")
        return rows

    @shielded  # a client that disconnects must not leave catalogue and routing table different
    async def _recorded(self, change: Any, *given: Any) -> Any:
        """Make a change of the catalogue and put it in force."""
        with self._publishing.change():
            row = await self._components.pools.store(change, *given)
            await self._follower.refresh()
        return row


def _described(rollout: Rollout | None) -> dict[str, Any]:
    """Return the fields of a log line about a roll-out."""
    if rollout is None:
        return {}
    weights = " ".join(f"{number}={weight}" for number, weight in rollout.weights.items())
    return {"weights": weights, "shadow": rollout.shadow, "guard": rollout.guard}
