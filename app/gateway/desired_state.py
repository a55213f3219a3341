"""What a published version is to those who serve, load and count it, worked out once for each."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.domain.digest import SHORT, Digest
from app.domain.errors import STORE_FAILED, Unavailable
from app.domain.names import AdapterName
from app.domain.retention import unloaded
from app.domain.version_state import State
from app.gateway.components import Rooms
from app.gateway.showing import fates_of, served_as
from app.observe.metrics import Fates
from app.serve.routing_table import Served
from app.store.artefacts.local import BlobStore
from app.store.catalogue.tables import VersionRow


@dataclass(frozen=True, slots=True, eq=False)
class Published:
    """One version. path: its artefact's directory; None where it is emptied."""

    row: VersionRow
    served: Served
    fates: Fates
    path: Path | None


class PublishedVersions:
    """Makes Published of rows; a row that comes again, the same object, gives what it gave before."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._made: dict[int, Published] = {}  # by the row's identity; each holds its row, so no identity comes twice

    def of(self, rows: Iterable[VersionRow]) -> tuple[Published, ...]:
        """In the rows' order. For one thread at a time."""
        before = self._made
        found = tuple(before.get(id(row)) or self._make(row) for row in rows)
        self._made = {id(one.row): one for one in found}
        return found

    def _make(self, row: VersionRow) -> Published:
        return Published(row, served_as(row), fates_of(row), self._path(row.artefact))

    def _path(self, artefact: Digest | None) -> Path | None:
        return self._blobs.path(artefact) if artefact is not None else None


def held_by(rooms: Rooms) -> Callable[[], frozenset[str] | None]:
    """Short digests of what the engines may read now; None while one of them does not say."""
    standing = frozenset((rooms.noop.digest.short,) if rooms.noop is not None else ())

    def held() -> frozenset[str] | None:
        if not rooms.reconciler.known:
            return None
        return standing.union(name.partition("@")[2][:SHORT] for name in rooms.reconciler.may_read())

    return held


def answerable(row: VersionRow) -> bool:
    """Whether it has what it is answered with. Only an emptied version is answered by the served model in its place."""
    return row.emptied if row.engine_name is None or row.artefact is None else True


def kept_and_old(rows: Sequence[VersionRow], keep: int) -> tuple[Sequence[VersionRow], Sequence[VersionRow]]:
    """Versions that stay loaded: each adapter's active one and its `keep` newest others; and those that do not."""
    retired: defaultdict[AdapterName, list[int]] = defaultdict(list)
    for row in rows:
        if row.state is State.RETIRED:
            retired[row.name].append(row.number)
    old = {name: unloaded(numbers, keep) for name, numbers in retired.items() if len(numbers) > keep}
    if not old:
        return rows, ()
    kept: list[VersionRow] = []
    gone: list[VersionRow] = []
    for row in rows:
        away = row.state is State.RETIRED and row.number in old.get(row.name, ())
        (gone if away else kept).append(row)
    return kept, gone


def refuse_a_lost_catalogue(rooms: Rooms) -> None:
    """Artefacts of uploads and no row at all: no new store but one whose catalogue was lost. Nothing is thrown away."""
    if rooms.catalogue.ever_used():
        return
    if theirs := [digest for digest in rooms.blobs.digests() if rooms.blobs.received_bytes(digest)]:
        why = f"the catalogue is empty and {len(theirs)} artefacts of uploads are there: restore it, or move them away"
        raise Unavailable(STORE_FAILED, why)
