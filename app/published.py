"""What a published version is to those who serve, load and count it, worked out once for each."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from app.domain.digest import SHORT, Digest
from app.observe.metrics import Fates
from app.rooms import Rooms
from app.serve.routes import Served
from app.showing import fates_of, served_as
from app.store.blobs import BlobStore
from app.store.schema import VersionRow


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
        if not all(one.known for one in rooms.reconciler.each):
            return None
        return standing.union(name.partition("@")[2][:SHORT] for name in rooms.reconciler.may_read())

    return held


def answerable(row: VersionRow) -> bool:
    """Whether it has what it is answered with. Only an emptied version is answered by the served model in its place."""
    return row.emptied if row.engine_name is None or row.artefact is None else True
