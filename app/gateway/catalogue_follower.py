"""Follower of the catalogue: computes the desired state after each change and puts it in force."""

import logging
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from app.domain.digest import Digest
from app.domain.version_state import State
from app.gateway.components import Components
from app.gateway.desired_state import DesiredState, Entries, Key, answerable, desired_state
from app.gateway.garbage import GarbageCollector
from app.gateway.policy_recheck import PolicyRecheck
from app.gateway.rules_in_force import own_rules
from app.gateway.zero_adapter import zero_adapter_name
from app.observe.log import event
from app.store.catalogue.tables import VersionRow


class CatalogueFollower:
    """Follower of the catalogue: the only place in which the desired state is computed and applied."""

    def __init__(self, components: Components, recheck: PolicyRecheck, garbage: GarbageCollector) -> None:
        self._components = components
        self._recheck = recheck
        self._garbage = garbage
        self._entries = Entries(components.blobs.path)
        self._recalled: Mapping[Key, int] = {}  # old versions being brought back → callers that need each
        self._candidates: Mapping[str, Path] = {}  # engine name → artefact directory, while canaries are asked
        # Held by a thread, so also if the caller is cancelled: an older state is never applied after a newer one.
        self._one_at_a_time: Final = threading.Lock()
        self._noting: Final = threading.Lock()
        self._artefacts_written: frozenset[Digest] = frozenset()
        self._rules_revision = 0  # of the tenants' rules in force
        self._behind = False  # True after a refresh that failed or was cancelled: a change may not be in force

    async def refresh(self) -> None:
        """Follow the catalogue after a change, and start a reconcile pass at once.

        Raises Unavailable if the catalogue cannot be read; it is then due again.
        """
        try:
            await self._components.pools.following(self.follow)
        except BaseException:
            self._behind = True
            raise
        self._components.reconciler.poke()

    def follow(self) -> None:
        """Read the catalogue, compute the desired state and apply it. Blocking."""
        with self._one_at_a_time:
            self._behind = False  # before the catalogue is read: a refresh that fails meanwhile is due again
            self._apply(self._compute())

    def artefact_written(self, digest: Digest) -> None:
        """Note that an artefact was written again: a version that could not be measured may be, at the next refresh."""
        with self._noting:
            self._artefacts_written |= {digest}

    @property
    def due(self) -> bool:
        """True if a refresh is due although the catalogue has not changed since the last one."""
        return self._behind or self._recheck.due

    def in_force(self, row: VersionRow) -> bool:
        """Return whether requests for a published version, or for its adapter's name if it is active, reach it."""
        target = self._components.routing_table.snapshot.targets.get(
            str(row.name) if row.state is State.READY else f"{row.name}@{row.number}"
        )
        return target is not None and target.version == row.number

    @asynccontextmanager
    async def recalled(self, row: VersionRow) -> AsyncIterator[None]:
        """Make the engines hold an old version for the duration of the context."""
        self._recalled = {**self._recalled, row.key: self._recalled.get(row.key, 0) + 1}
        try:
            await self.refresh()
            yield
        finally:
            left = {**self._recalled, row.key: self._recalled[row.key] - 1}
            self._recalled = {key: count for key, count in left.items() if count}
            await self.refresh()

    @asynccontextmanager
    async def candidate(self, engine_name: str, directory: Path) -> AsyncIterator[None]:
        """Make the engines hold an artefact that no version names, for the duration of the context."""
        self._candidates = {**self._candidates, engine_name: directory}
        try:
            await self.refresh()
            yield
        finally:
            self._candidates = {name: path for name, path in self._candidates.items() if name != engine_name}
            await self.refresh()

    def _compute(self) -> DesiredState:
        c = self._components
        revision = c.peers.revision() if c.peers else 0  # read first: later changes are then followed again
        self._follow_rules()
        rollouts = c.catalogue.rollouts()
        # Stored before published: a version published between the two reads is then in both, never in neither.
        stored, published = c.catalogue.pending(), c.catalogue.served()
        for row in published:
            if not answerable(row):  # damaged catalogue: the served model must not answer in its place
                event("not_served", logging.ERROR, adapter=row.name, version=row.number, why="it has no artefact")
        return desired_state(
            revision,
            stored=stored,
            published=published,
            withheld=self._recheck.check((*published, *stored), self._take_written()),
            recalled=self._recalled.keys(),
            candidates=self._candidates,
            keep_versions=c.keep_versions,
            standing={zero_adapter_name(c.zero.digest): c.blobs.path(c.zero.digest)} if c.zero else {},
            entries=self._entries,
            rollouts=rollouts,
        )

    def _follow_rules(self) -> None:
        """Put the rules in force that tenants got since the last look. Raises Refused BAD_BATTERY for damaged ones."""
        changed = self._components.catalogue.tenant_rules.changed_since(self._rules_revision)
        if changed:
            own = {one.tenant: own_rules(one.override, one.battery) for one in changed}
            self._components.rules.replace_own(own)
            self._rules_revision = changed[-1].revision
            event("tenant_rules", tenants=len(own))

    def _take_written(self) -> frozenset[Digest]:
        with self._noting:
            written, self._artefacts_written = self._artefacts_written, frozenset()
        return written

    def _apply(self, state: DesiredState) -> None:
        c = self._components
        if c.desired.state.adapters.keys() - state.adapters.keys():
            self._garbage.suspect()
        c.desired.state = state
        c.routing_table.replace(state.served, state.unloaded, state.rollouts)
        c.metrics.rollouts.show(state.rollouts)
        c.metrics.show_adapters(state.modules, state.stored, len(state.withheld))
