"""Desired state: the catalogue's rows in the form that routing table, engines, gauges and garbage collector follow.

Pure: rows in, one immutable value out. catalogue_follower.py reads the rows and puts the value in force.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from app.domain.digest import Digest
from app.domain.retention import unloaded
from app.domain.rollout import Rollout
from app.domain.version_state import State
from app.observe.metrics import ModuleCounts
from app.serve.routing_table import Served
from app.store.catalogue.tables import VersionRow

Key = tuple[str, int]
"""Adapter's name and version number."""


@dataclass(frozen=True, slots=True)
class DesiredState:
    """Desired state at one revision of the catalogue.

    revision: the catalogue's revision.
    adapters: engine name → artefact directory of all adapters that the engines should hold.
    waiting: engine names among them that are not served yet: stored versions, and old ones being brought back.
    stored: number of versions that wait for an engine.
    served: rows of the routing table.
    unloaded: retired versions too old to be kept in the engines.
    withheld: version that the policy in force does not pass → reason.
    modules: adapter → module counts of its active version; None if it has none.
    rollouts: adapter → its roll-out, if one is under way.
    """

    revision: int = 0
    adapters: Mapping[str, Path] = field(default_factory=dict)
    waiting: frozenset[str] = frozenset()
    stored: int = 0
    served: tuple[Served, ...] = ()
    unloaded: frozenset[Key] = frozenset()
    withheld: Mapping[Key, str] = field(default_factory=dict)
    modules: Mapping[str, ModuleCounts | None] = field(default_factory=dict)
    rollouts: Mapping[str, Rollout] = field(default_factory=dict)

    def is_unloaded(self, row: VersionRow) -> bool:
        """Return whether a version was published once and is now too old to be kept in the engines.

        A rollback brings it back.
        """
        return row.state is State.RETIRED and row.key in self.unloaded


class StateInForce:
    """Holder of the desired state in force. The state is replaced as a whole, so any thread may read it."""

    def __init__(self) -> None:
        self.state = DesiredState()

    def adapters(self) -> Mapping[str, Path]:
        """Return engine name → artefact directory of all adapters that the engines should hold."""
        return self.state.adapters

    def waiting(self) -> frozenset[str]:
        """Return the engine names that an engine must load before they are served."""
        return self.state.waiting


@dataclass(frozen=True, slots=True)
class Entry:
    """Published version in the form that routing table, gauges and engines use. path: None if the version is emptied."""

    served: Served
    modules: ModuleCounts
    path: Path | None


class Entries:
    """Cache of entries by adapter, version and revision: each change needs thousands, of which a handful are new."""

    def __init__(self, path_of: Callable[[Digest], Path]) -> None:
        self.path_of = path_of
        self._entries: dict[tuple[Key, int], Entry] = {}

    def of(self, rows: Iterable[VersionRow]) -> tuple[Entry, ...]:
        """Return the entries in the rows' order, and forget those of other rows. Not thread-safe."""
        entries: dict[tuple[Key, int], Entry] = {}
        for row in rows:
            at = (row.key, row.revision)
            entries[at] = self._entries.get(at) or self._make(row)
        self._entries = entries
        return tuple(entries.values())

    def _make(self, row: VersionRow) -> Entry:
        served = Served(
            adapter=str(row.name),
            version=row.number,
            engine_name=row.engine_name,
            digest=str(row.artefact) if row.artefact else None,
            active=row.state is State.READY,
            created=int(row.created_at.timestamp()),
        )
        pruned, projected = row.modules_pruned or 0, row.modules_projected or 0
        beyond = pruned + projected if row.rung else 0
        modules = ModuleCounts((row.modules_total or 0) - pruned - projected, pruned, projected, beyond)
        return Entry(served, modules, self.path_of(row.artefact) if row.artefact is not None else None)


def desired_state(
    revision: int,
    *,
    stored: Sequence[VersionRow],
    published: Sequence[VersionRow],
    withheld: Mapping[Key, str],
    recalled: AbstractSet[Key],
    candidates: Mapping[str, Path],
    keep_versions: int,
    standing: Mapping[str, Path],
    entries: Entries,
    rollouts: Mapping[str, Rollout] = MappingProxyType({}),
) -> DesiredState:
    """Return the desired state for these rows.

    stored, published: results of the catalogue's `pending` and `served`. recalled: old versions being brought back.
    candidates: engine name → artefact directory of adapters that are being asked canaries. keep_versions: number of each
    adapter's retired versions that stay loaded. standing: engine name → artefact directory of adapters that the engines
    hold regardless of the catalogue. rollouts: those under way, by adapter; their versions stay loaded, however old.
    """
    waiting = [row for row in stored if row.key not in withheld]
    needed = {(name, number) for name, rollout in rollouts.items() for number in rollout.versions}
    allowed = [row for row in published if row.key not in withheld and answerable(row)]
    kept, old = kept_and_old(allowed, keep_versions, needed)
    loading = (*waiting, *(row for row in old if row.key in recalled))
    shown = entries.of(kept)
    adapters = {one.served.engine_name: one.path for one in shown if one.served.engine_name and one.path}
    for row in loading:
        if row.engine_name and row.artefact:
            adapters[row.engine_name] = entries.path_of(row.artefact)
    modules: dict[str, ModuleCounts | None] = {one.served.adapter: None for one in shown}
    modules |= {one.served.adapter: one.modules for one in shown if one.served.active}
    return DesiredState(
        revision=revision,
        adapters={**candidates, **adapters, **standing},
        waiting=frozenset(row.engine_name for row in loading if row.engine_name),
        stored=len(waiting),
        served=tuple(one.served for one in shown),
        unloaded=frozenset(row.key for row in old),
        withheld=withheld,
        modules=modules,
        rollouts=rollouts,
    )


def answerable(row: VersionRow) -> bool:
    """Return whether a version can be answered: it has an engine name and an artefact, or is emptied.

    Only an emptied version is answered by the served model in its place.
    """
    return row.emptied if row.engine_name is None or row.artefact is None else True


def kept_and_old(
    rows: Sequence[VersionRow], keep: int, needed: AbstractSet[Key] = frozenset()
) -> tuple[Sequence[VersionRow], Sequence[VersionRow]]:
    """Return the versions that stay loaded and the others: each adapter's active one, its `keep` newest others, and those
    `needed` besides."""
    retired: defaultdict[str, list[int]] = defaultdict(list)
    for row in rows:
        if row.state is State.RETIRED:
            retired[str(row.name)].append(row.number)
    old = {name: unloaded(numbers, keep) for name, numbers in retired.items() if len(numbers) > keep}
    if not old:
        return rows, ()
    kept: list[VersionRow] = []
    dropped: list[VersionRow] = []
    for row in rows:
        is_old = row.state is State.RETIRED and row.number in old.get(str(row.name), ()) and row.key not in needed
        (dropped if is_old else kept).append(row)
    return kept, dropped
