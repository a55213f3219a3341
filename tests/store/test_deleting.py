"""Deletions from object storage that stall, fail or die half-way, beside gateways that claim the same artefact."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from app.domain.digest import Digest
from app.domain.errors import STORE_BUSY, STORE_FAILED, Unavailable
from app.store.artefacts import claims
from app.store.artefacts.claims import GO_S, MARK_S, LocalClaims
from app.store.artefacts.local import FILES, BlobStore
from app.store.artefacts.s3 import RemoteBlobs
from app.store.artefacts.s3_client import DELETE_S, Objects
from app.store.catalogue.catalogue import Catalogue
from app.store.cluster.peers import Peers
from tests.store.making import NAME, artefact, begun, published, received, verdict
from tests.store.test_s3_artefacts import NO_GRACE, STEADY, keys, nobody_reads, nothing_needed
from tests.support.gateway import OpenHouse
from tests.support.postgres import Server
from tests.support.s3 import Storage, storage

__all__ = ["storage"]

SOON_S = 60.0
MADE = artefact(1)


class Stalling(Objects):
    """Object storage whose deletion number `at` (from 0) stalls until it is let go, or breaks off with `broken`.

    stalled: it has come so far. go: lets it go.
    """

    def __init__(self, url: str, at: int = 0, broken: BaseException | None = None) -> None:
        super().__init__(url, STEADY)
        self.stalled, self.go = threading.Event(), threading.Event()
        self.deleted: list[str] = []
        self._at, self._broken = at, broken

    def delete(self, key: str) -> None:
        """As Objects."""
        if len(self.deleted) == self._at:
            self.stalled.set()
            assert self.go.wait(SOON_S)
            if self._broken is not None:
                raise self._broken
        super().delete(key)
        self.deleted.append(key)


class Gateways:
    """Gateways on one catalogue and one object storage, each with a directory of copies of its own."""

    def __init__(self, root: Path, url: str, storage: Storage, postgres: Server, closers: ExitStack) -> None:
        self.url, self.postgres, self.storage = url, postgres, storage
        self._root, self._doors = root, closers

    def join(self, objects: Objects | None = None) -> tuple[Peers, RemoteBlobs]:
        """One more."""
        peers = Peers(self.url)
        self._doors.callback(peers.leave)
        blobs = RemoteBlobs(
            self._root / peers.id, objects or Objects(self.storage.url, STEADY), "catalogue", NO_GRACE, peers
        )
        return peers, self._doors.enter_context(blobs)

    def catalogue(self, peers: Peers) -> Catalogue:
        """The catalogue as that gateway has it open."""
        found = Catalogue(self.url, gateway=peers.id)
        self._doors.callback(found.close)
        return found

    def sql(self, statement: str) -> str:
        """What the database says."""
        return self.postgres.psql(statement, self.url.rpartition("/")[2])

    def until(self, statement: str, answer: str) -> None:
        """Block until the database says so."""
        waiting = threading.Event()
        for _ in range(int(SOON_S / 0.05)):
            if self.sql(statement) == answer:
                return
            waiting.wait(0.05)
        raise AssertionError(f"{statement}: {self.sql(statement)}, not {answer}")


@pytest.fixture
def gateways(tmp_path: Path, postgres: Server, storage: Storage) -> Iterator[Gateways]:
    with ExitStack() as closers:
        yield Gateways(tmp_path, postgres.fresh(), storage, postgres, closers)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as made:
        yield made


def upload(blobs: RemoteBlobs, peers: Peers, catalogue: Catalogue) -> None:
    """Store MADE as an upload does: claimed, put, named by a row."""
    number = begun(catalogue, NAME, received(1)).number
    catalogue.record_validated(NAME, number)
    catalogue.record_screened(NAME, number, verdict(), "{}")
    with peers.claimed(MADE.digest):
        blobs.put(MADE)
        catalogue.record_stored(NAME, number, MADE.digest)


def test_a_stalled_deletion_holds_up_no_writer_and_loses_nothing_that_is_acknowledged_meanwhile(
    gateways: Gateways, pool: ThreadPoolExecutor
) -> None:
    stalling = Stalling(gateways.storage.url)
    _, deleter = gateways.join(stalling)
    peers, blobs = gateways.join()
    deleter.put(MADE)
    deleter._evict(MADE.digest)  # nothing can be put back from here
    catalogue = gateways.catalogue(peers)
    deleting = pool.submit(deleter.collect, nothing_needed, nobody_reads)
    assert stalling.stalled.wait(SOON_S)
    published(catalogue, 7)  # with the writers' lock held, 503 store_busy after ten seconds
    uploading = pool.submit(upload, blobs, peers, catalogue)
    gateways.until(f"SELECT count(*) FROM claims WHERE digest = '{MADE.digest}'", "1")
    published(catalogue, 8)  # nor does the claim that waits
    assert not uploading.done(), "what is being deleted is not acknowledged"
    stalling.go.set()
    uploading.result(SOON_S)
    assert deleting.result(SOON_S) == (0, 1), "a claim ends the deletion"
    assert stalling.deleted == [f"{MADE.digest}/manifest.json"]
    assert {f"{MADE.digest}/{name}" for name in FILES} <= keys(gateways.storage)
    gateways.join()[1].verify(MADE.digest)
    assert gateways.sql("SELECT count(*) FROM deletions") == "0"


def test_an_upload_does_not_wait_for_ever_and_is_not_acknowledged_then(
    gateways: Gateways, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "CLAIM_S", 0.3)
    stalling = Stalling(gateways.storage.url)
    _, deleter = gateways.join(stalling)
    peers, blobs = gateways.join()
    deleter.put(MADE)
    deleting = pool.submit(deleter.collect, nothing_needed, nobody_reads)
    assert stalling.stalled.wait(SOON_S)
    catalogue = gateways.catalogue(peers)
    with pytest.raises(Unavailable, match="being deleted from the object storage; try again") as caught:
        upload(blobs, peers, catalogue)
    assert caught.value.code is STORE_BUSY
    assert catalogue.live_digests() == frozenset()
    stalling.go.set()
    deleting.result(SOON_S)
    peers.beat()  # its claim goes
    assert gateways.sql("SELECT count(*) FROM claims") == "0"
    assert deleter.digests() == {MADE.digest}
    deleter._next_look = 0.0
    assert deleter.collect(nothing_needed, nobody_reads) == (1, 0)
    assert not {key for key in keys(gateways.storage) if str(MADE.digest) in key}


class Killed(BaseException):
    """As if the process had ended there."""


@pytest.mark.parametrize("at", range(len(FILES)))
@pytest.mark.parametrize(
    "how", [Killed(), Unavailable(STORE_FAILED, "the storage did not answer")], ids=["dead", "failed"]
)
def test_what_died_half_way_keeps_others_off_until_its_mark_has_lapsed(
    gateways: Gateways, monkeypatch: pytest.MonkeyPatch, at: int, how: BaseException
) -> None:
    monkeypatch.setattr(claims, "CLAIM_S", 0.3)
    stalling = Stalling(gateways.storage.url, at, how)
    _, deleter = gateways.join(stalling)
    peers, blobs = gateways.join()
    deleter.put(MADE)
    stalling.go.set()
    with pytest.raises(type(how)):
        deleter.collect(nothing_needed, nobody_reads)
    with pytest.raises(Unavailable) as caught, peers.claimed(MADE.digest):
        pass  # a request may still be under way
    assert caught.value.code is STORE_BUSY
    peers.beat()
    assert blobs.collect(nothing_needed, nobody_reads) == (0, 1)
    gateways.sql(f"UPDATE deletions SET marked_at = marked_at - interval '{MARK_S} s'")
    upload(blobs, peers, gateways.catalogue(peers))
    gateways.join()[1].verify(MADE.digest)


def test_what_a_dead_gateway_left_half_deleted_another_removes(gateways: Gateways) -> None:
    stalling = Stalling(gateways.storage.url, 1, Killed())
    _, deleter = gateways.join(stalling)
    _, blobs = gateways.join()
    deleter.put(MADE)
    stalling.go.set()
    with pytest.raises(Killed):
        deleter.collect(nothing_needed, nobody_reads)
    gateways.sql(f"UPDATE deletions SET marked_at = marked_at - interval '{MARK_S} s'")
    assert blobs.collect(nothing_needed, nobody_reads) == (1, 0)
    assert not {key for key in keys(gateways.storage) if str(MADE.digest) in key}
    assert gateways.sql("SELECT count(*) FROM deletions") == "0"


def no_mark(gateways: Gateways, _: pytest.MonkeyPatch) -> None:
    gateways.sql("DELETE FROM deletions")


def anothers_mark(gateways: Gateways, _: pytest.MonkeyPatch) -> None:
    gateways.sql("UPDATE deletions SET gateway = 'another'")


def too_late(_: Gateways, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(claims, "GO_S", 0.0)


@pytest.mark.parametrize("meanwhile", [no_mark, anothers_mark, too_late])
def test_who_slept_in_the_middle_sends_nothing_when_it_wakes(
    gateways: Gateways,
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
    meanwhile: Callable[[Gateways, pytest.MonkeyPatch], None],
) -> None:
    stalling = Stalling(gateways.storage.url)
    _, deleter = gateways.join(stalling)
    deleter.put(MADE)
    deleting = pool.submit(deleter.collect, nothing_needed, nobody_reads)
    assert stalling.stalled.wait(SOON_S)
    meanwhile(gateways, monkeypatch)
    stalling.go.set()
    assert deleting.result(SOON_S) == (0, 1)
    assert len(stalling.deleted) == 1, "only what was under way"


def test_what_a_row_names_by_the_time_it_is_marked_stays(gateways: Gateways) -> None:
    stalling = Stalling(gateways.storage.url, at=-1)
    _, blobs = gateways.join(stalling)
    blobs.put(MADE)
    asked: list[frozenset[Digest]] = [frozenset(), frozenset({MADE.digest})]
    assert blobs.collect(lambda: asked.pop(0), nobody_reads) == (0, 0)
    assert stalling.deleted == []
    assert gateways.sql("SELECT count(*) FROM deletions") == "0"


def test_a_deletion_is_one_request(storage: Storage) -> None:
    """Repeated by the client, the first could come into effect after the second was answered."""
    objects = Objects(storage.url)
    storage.faults.failing = True
    with pytest.raises(Unavailable):
        objects.delete("x")
    assert len(storage.faults.seen) == 1


def test_the_last_request_is_over_before_a_mark_lapses() -> None:
    assert GO_S + DELETE_S < MARK_S


def test_one_gateway_by_itself_keeps_the_same_order(
    tmp_path: Path, storage: Storage, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalling = Stalling(storage.url)
    with RemoteBlobs(tmp_path / "copies", stalling, "catalogue", NO_GRACE) as blobs:
        blobs.put(MADE)
        deleting = pool.submit(blobs.collect, nothing_needed, nobody_reads)
        assert stalling.stalled.wait(SOON_S)

        def put() -> None:
            with blobs.claimed(MADE.digest):
                blobs.put(MADE)

        with blobs.claimed(artefact(2).digest):
            blobs.put(artefact(2))  # another's upload does not wait
        putting: Future[None] = pool.submit(put)
        assert not putting.done()
        stalling.go.set()
        putting.result(SOON_S)
        deleting.result(SOON_S)
        assert {f"{MADE.digest}/{name}" for name in FILES} <= keys(storage)
        blobs.verify(MADE.digest)


def test_a_mark_of_one_gateway_lapses_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "CLAIM_S", 0.1)
    one = LocalClaims()
    with pytest.raises(Killed), one.deleting(MADE.digest):
        raise Killed
    with one.deleting(MADE.digest) as go_on:
        assert go_on is None
    with pytest.raises(Unavailable), one.claimed(MADE.digest):
        pass
    now = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: now + MARK_S)
    with one.claimed(MADE.digest), one.deleting(MADE.digest) as go_on:
        assert go_on is None
    with one.deleting(MADE.digest) as go_on:
        assert go_on is not None
        assert go_on()


async def test_the_zero_adapter_that_another_removed_before_it_was_claimed_is_there(
    open_gateway: OpenHouse, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = Peers.keep

    def late(self: Peers, digest: Digest) -> None:
        with BlobStore(shared, self, shared=True) as another:
            another.remove(digest)
        keep(self, digest)

    url = postgres.fresh()
    async with open_gateway(catalogue_url=url, base_through_noop=True) as running:
        shared = running.data / "artefacts"
    monkeypatch.setattr(Peers, "keep", late)
    async with open_gateway(catalogue_url=url, base_through_noop=True) as running:
        components = running.gateway.context.uploads.components
        assert components.zero is not None
        assert components.blobs.is_intact(components.zero.digest)
