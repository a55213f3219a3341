"""Desired state: the catalogue's rows as routing table, engines, gauges and garbage collector are to follow them.

Pure: rows in, one immutable value out. catalogue_follower.py reads the rows and puts the value in force.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

from app.domain.digest import Digest
from app.domain.retention import unloaded
from app.domain.version_state import State
from app.observe.metrics import ModuleCounts
from app.serve.routing_table import Served
from app.store.catalogue.tables import VersionRow

Key = tuple[str, int]
"""Adapter's name and version number."""


@dataclass(frozen=True, slots=True)
class DesiredState:
    """One moment of the catalogue.

    revision: the catalogue's. adapters: engine name → artefact directory, all that the engines should hold. waiting: engine
    names among them that are not published yet. stored: versions that wait for an engine. served: rows of the routing
    table. unloaded: retired versions too old to be kept in the engines. withheld: versions that the policy in force does
    not pass, and why. modules: adapter → modules of its active version, None when it has none.
    """

    revision: int = 0
    adapters: Mapping[str, Path] = field(default_factory=dict)
    waiting: frozenset[str] = frozenset()
    stored: int = 0
    served: tuple[Served, ...] = ()
    unloaded: frozenset[Key] = frozenset()
    withheld: Mapping[Key, str] = field(default_factory=dict)
    modules: Mapping[str, ModuleCounts | None] = field(default_factory=dict)

    def is_unloaded(self, row: VersionRow) -> bool:
        """Whether it was published once and is too old to be kept in the engines: a rollback brings it back."""
        return row.state is State.RETIRED and row.key in self.unloaded


class StateInForce:
    """Desired state in force; replaced as a whole, so any thread may read it."""

    def __init__(self) -> None:
        self.state = DesiredState()

    def adapters(self) -> Mapping[str, Path]:
        """Engine name → artefact directory of all that the engines should hold."""
        return self.state.adapters

    def waiting(self) -> frozenset[str]:
        """Engine names that wait for an engine before they are published."""
        return self.state.waiting


@dataclass(frozen=True, slots=True)
class Entry:
    """One published version as the routing table, the gauges and the engines see it. path: None when it is emptied."""

    served: Served
    modules: ModuleCounts
    path: Path | None


class Entries:
    """Cache of entries by adapter, version and revision: thousands are asked for at every change, a handful changed."""

    def __init__(self, path_of: Callable[[Digest], Path]) -> None:
        self.path_of = path_of
        self._entries: dict[tuple[Key, int], Entry] = {}

    def of(self, rows: Iterable[VersionRow]) -> tuple[Entry, ...]:
        """Entries in the rows' order; forgets those of other rows. For one thread at a time."""
        before = self._entries
        self._entries = {at: before.get(at) or self._make(row) for row in rows for at in ((row.key, row.revision),)}
        return tuple(self._entries.values())

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
        modules = ModuleCounts((row.modules_total or 0) - pruned - projected, pruned, projected)
        return Entry(served, modules, self.path_of(row.artefact) if row.artefact is not None else None)


def desired_state(
    revision: int,
    *,
    stored: Sequence[VersionRow],
    published: Sequence[VersionRow],
    withheld: Mapping[Key, str],
    recalled: AbstractSet[Key],
    keep_versions: int,
    standing: Mapping[str, Path],
    entries: Entries,
) -> DesiredState:
    """The desired state of these rows.

    stored, published: the catalogue's `pending` and `served`. recalled: old versions on their way back. keep_versions: of
    each adapter's retired versions so many stay loaded. standing: what the engines hold whatever the catalogue says.
    """
    waiting = [row for row in stored if row.key not in withheld]
    kept, old = kept_and_old([row for row in published if row.key not in withheld and answerable(row)], keep_versions)
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
        adapters={**adapters, **standing},
        waiting=frozenset(row.engine_name for row in loading if row.engine_name),
        stored=len(waiting),
        served=tuple(one.served for one in shown),
        unloaded=frozenset(row.key for row in old),
        withheld=withheld,
        modules=modules,
    )


def answerable(row: VersionRow) -> bool:
    """Whether it has what it is answered with. Only an emptied version is answered by the served model in its place."""
    return row.emptied if row.engine_name is None or row.artefact is None else True


def kept_and_old(rows: Sequence[VersionRow], keep: int) -> tuple[Sequence[VersionRow], Sequence[VersionRow]]:
    """Versions that stay loaded: each adapter's active one and its `keep` newest others; and those that do not."""
    retired: defaultdict[str, list[int]] = defaultdict(list)
    for row in rows:
        if row.state is State.RETIRED:
            retired[str(row.name)].append(row.number)
    old = {name: unloaded(numbers, keep) for name, numbers in retired.items() if len(numbers) > keep}
    if not old:
        return rows, ()
    kept: list[VersionRow] = []
    gone: list[VersionRow] = []
    for row in rows:
        away = row.state is State.RETIRED and row.number in old.get(str(row.name), ())
        (gone if away else kept).append(row)
    return kept, gone
