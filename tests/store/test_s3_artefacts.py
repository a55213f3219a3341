"""Artefacts on S3-compatible storage: a real server, several gateways on it, and everything that storage does to one."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import obstore
import pytest
from sqlalchemy import event

from app.domain.artefact import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from app.domain.digest import Digest
from app.domain.errors import NO_SPACE, STORE_BUSY, STORE_FAILED, Unavailable
from app.store.artefacts.local import FILES, STAGING, BlobStore
from app.store.artefacts.s3 import RemoteBlobs
from app.store.artefacts.s3_client import Objects, Patience
from app.store.cluster.peers import Peers
from app.store.open import open_blobs
from tests.store.making import artefact
from tests.store.test_faults import fill, small_disk
from tests.support.postgres import Server
from tests.support.s3 import Storage, storage

__all__ = ["small_disk", "storage"]

STEADY = Patience(retries=1, retry_s=1.0)
"""For faults that are answered at once: no timeout a busy machine could reach."""
NO_GRACE = timedelta(0)
Open = Callable[..., RemoteBlobs]


@pytest.fixture
def opened(tmp_path: Path, storage: Storage) -> Open:
    """Gateway number n on the storage, with a directory of its own."""

    def open_(
        number: int = 0,
        owner: str = "catalogue",
        grace: timedelta = NO_GRACE,
        root: Path | None = None,
        patience: Patience = STEADY,
    ) -> RemoteBlobs:
        return RemoteBlobs(root or tmp_path / f"gateway-{number}", Objects(storage.url, patience), owner, grace)

    return open_


def bucket(storage: Storage) -> Objects:
    """Its objects, past every fault but those of the server itself."""
    return Objects(storage.url, STEADY)


def keys(storage: Storage) -> set[str]:
    """Names of all that is below the prefix."""
    return {meta["path"] for part in obstore.list(bucket(storage)._store) for meta in part}


def put_object(storage: Storage, key: str, data: bytes) -> None:
    bucket(storage).replace(key, data)


def get_object(storage: Storage, key: str) -> bytes:
    return bucket(storage).read(key)


def nothing_needed() -> frozenset[Digest]:
    return frozenset()


def nobody_reads(_: Digest) -> bool:
    return False


def test_what_one_gateway_puts_another_reads(opened: Open, storage: Storage) -> None:
    made = artefact(1)
    with opened(0) as one, opened(1) as other:
        one.put(made)
        assert keys(storage) >= {f"{made.digest}/{name}" for name in FILES}
        assert not other.path(made.digest).exists()
        other.verify(made.digest)
        assert (other.path(made.digest) / WEIGHTS_FILE).read_bytes() == made.weights
        assert other.manifest(made.digest) == made.manifest
        assert other.digests() == {made.digest}
        assert other.path(made.digest).stat().st_mode & 0o777 == 0o555
        assert not list((other.root / STAGING).iterdir())


def test_every_new_object_is_written_only_where_none_is(opened: Open, storage: Storage) -> None:
    with opened() as blobs:
        blobs.put(artefact(1))
    puts = [(path, match) for method, path, match in storage.faults.seen if method == "PUT"]
    assert len(puts) == 1 + len(FILES)
    assert {match for _, match in puts} == {"*"}
    assert puts[-1][0].endswith(MANIFEST_FILE)  # until it is there, nobody finds the artefact


def test_six_gateways_at_once_leave_one_whole_artefact(opened: Open, storage: Storage) -> None:
    made = [artefact(1)] * 6
    stores = [opened(number) for number in range(len(made))]
    barrier = threading.Barrier(len(made))

    def put(at: int) -> None:
        barrier.wait()
        stores[at].put(made[at])

    with ThreadPoolExecutor(len(made)) as pool:
        list(pool.map(put, range(len(made))))
    assert get_object(storage, f"{made[0].digest}/{WEIGHTS_FILE}") == made[0].weights
    assert get_object(storage, f"{made[0].digest}/{MANIFEST_FILE}") == made[0].manifest
    for store in stores:
        assert store.is_intact(made[0].digest)
        store.close()


def test_whoever_comes_first_has_the_manifest(opened: Open, storage: Storage) -> None:
    first = artefact(1)
    later = type(first)(first.digest, first.config, first.weights, first.manifest.replace(b'"seed": 1', b'"seed": 2'))
    with opened(0) as one, opened(1) as other:
        one.put(first)
        other.put(later)
    assert get_object(storage, f"{first.digest}/{MANIFEST_FILE}") == first.manifest


@pytest.mark.parametrize("name", FILES)
def test_other_bytes_are_never_believed(opened: Open, storage: Storage, name: str) -> None:
    made = artefact(1)
    with opened(0) as one, opened(1) as other:
        one.put(made)
        storage.faults.other = name
        with pytest.raises(Unavailable) as raised:
            other.verify(made.digest)
        assert raised.value.code is STORE_FAILED
        assert not other.path(made.digest).exists()
        assert not list((other.root / STAGING).iterdir())
        storage.faults.other = None
        other.verify(made.digest)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE])
def test_objects_with_other_bytes_are_written_anew_by_the_next_upload(
    opened: Open, storage: Storage, name: str
) -> None:
    made = artefact(1)
    put_object(storage, f"{made.digest}/{name}", b"not these")
    with opened(0) as one, opened(1) as other:
        one.put(made)
        other.verify(made.digest)
        assert (other.path(made.digest) / name).read_bytes() == dict(
            zip(FILES, (made.config, made.weights, made.manifest), strict=True)
        )[name]


def test_without_its_manifest_an_artefact_is_not_there(opened: Open, storage: Storage) -> None:
    made = artefact(1)
    put_object(storage, f"{made.digest}/{CONFIG_FILE}", made.config)
    put_object(storage, f"{made.digest}/{WEIGHTS_FILE}", made.weights)
    with opened() as blobs, pytest.raises(Unavailable, match="missing"):
        blobs.verify(made.digest)


def test_a_damaged_copy_is_fetched_anew(opened: Open) -> None:
    made = artefact(1)
    with opened() as blobs:
        weights = blobs.put(made) / WEIGHTS_FILE
        weights.chmod(0o644)
        weights.write_bytes(b"damaged")
        blobs.verify(made.digest)
        assert (blobs.path(made.digest) / WEIGHTS_FILE).read_bytes() == made.weights


def test_while_the_storage_fails_copies_are_served_and_uploads_are_not_acknowledged(
    opened: Open, storage: Storage
) -> None:
    with opened(0) as one, opened(1) as other:
        one.put(artefact(1))
        storage.faults.failing = True
        one.verify(artefact(1).digest)
        for step in (
            lambda: one.put(artefact(2)),
            lambda: other.verify(artefact(1).digest),
            one.digests,
            one.check_writable,
        ):
            with pytest.raises(Unavailable) as raised:
                step()
            assert raised.value.code is STORE_FAILED
        storage.faults.failing = False
        one.check_writable()
        one.put(artefact(2))
        assert one.is_intact(artefact(2).digest)


def test_a_slow_storage_is_waited_for_a_stated_time(opened: Open, storage: Storage) -> None:
    with opened(patience=replace(STEADY, silence_s=3.0)) as blobs:
        storage.faults.slow_s = 6.0
        with pytest.raises(Unavailable) as raised:
            blobs.put(artefact(1))
        assert raised.value.code is STORE_FAILED
        storage.faults.slow_s = 0.0
        blobs.put(artefact(1))
        assert blobs.is_intact(artefact(1).digest)


def test_what_the_listing_does_not_show_yet_is_served(opened: Open, storage: Storage) -> None:
    with opened(0) as one, opened(1) as other:
        one.digests()
        storage.faults.stale = True
        one.put(artefact(1))
        assert artefact(1).digest not in other.digests()
        other.verify(artefact(1).digest)


def test_what_the_listing_still_shows_is_collected_twice_without_harm(opened: Open, storage: Storage) -> None:
    with opened(0) as one, opened(1) as other:
        one.put(artefact(1))
        one.digests()
        storage.faults.stale = True
        assert one.collect(nothing_needed, nobody_reads) == (1, 0)
        other.collect(nothing_needed, nobody_reads)
        assert not {key for key in keys(storage) if str(artefact(1).digest) in key}


def test_what_another_gateway_has_just_written_is_no_garbage(opened: Open, storage: Storage) -> None:
    with opened(0) as one, opened(1, grace=timedelta(hours=1)) as other:
        one.put(artefact(1))
        assert other.collect(nothing_needed, nobody_reads) == (0, 1)
        listed = len(storage.faults.seen)
        assert other.collect(nothing_needed, nobody_reads) == (0, 1)
        assert len(storage.faults.seen) == listed  # a look lists everything: not at every pass
        one.verify(artefact(1).digest)
        assert one.is_intact(artefact(1).digest)


def test_needed_and_read_artefacts_are_spared_and_the_rest_removed(opened: Open, storage: Storage) -> None:
    with opened() as blobs:
        for seed in (1, 2, 3):
            blobs.put(artefact(seed))
        removed = blobs.collect(lambda: frozenset({artefact(1).digest}), lambda digest: digest == artefact(2).digest)
        assert removed == (1, 1)
        assert blobs.digests() == {artefact(1).digest, artefact(2).digest}
        assert not blobs.path(artefact(3).digest).exists()


def test_another_catalogues_artefacts_are_not_touched(opened: Open, storage: Storage) -> None:
    with opened(0) as blobs:
        blobs.put(artefact(1))
    with pytest.raises(Unavailable) as raised:
        opened(1, owner="another")
    assert raised.value.code is STORE_BUSY


def test_a_full_directory_of_copies_refuses_and_keeps_what_is_there(
    small_disk: Path, opened: Open, storage: Storage
) -> None:
    with opened(1) as elsewhere:
        elsewhere.put(artefact(2, 200_000))
    with opened(root=small_disk / "artefacts") as blobs:
        blobs.put(artefact(1))
        ballast = fill(small_disk, leave=50_000)
        for step in (lambda: blobs.verify(artefact(2, 200_000).digest), lambda: blobs.put(artefact(3, 200_000))):
            with pytest.raises(Unavailable) as raised:
                step()
            assert raised.value.code is NO_SPACE
        assert not list((blobs.root / STAGING).iterdir())
        assert not {key for key in keys(storage) if str(artefact(3, 200_000).digest) in key}
        blobs.verify(artefact(1).digest)
        ballast.unlink()
        blobs.verify(artefact(2, 200_000).digest)


def test_many_megabytes_come_back_as_they_went(opened: Open) -> None:
    made, patient = artefact(1, 20 << 20), Patience()  # this is about bytes: a busy machine may take its time
    with opened(0, patience=patient) as one, opened(1, patience=patient) as other:
        one.put(made)
        other.verify(made.digest)
        assert (other.path(made.digest) / WEIGHTS_FILE).stat().st_size == 20 << 20


def test_a_directory_stays_the_default_and_a_url_chooses(tmp_path: Path, storage: Storage) -> None:
    data, other = tmp_path / "data", tmp_path / "other"
    with open_blobs(data, None, None) as plain:
        assert type(plain) is BlobStore
    with open_blobs(data, storage.url, None) as remote:
        assert type(remote) is RemoteBlobs
    with open_blobs(data, storage.url, None):
        pass  # the same catalogue again
    with pytest.raises(Unavailable, match="another catalogue"):
        open_blobs(other, storage.url, None)
    with open_blobs(other, f"{storage.url}-2", "postgresql://user:secret@db:5432/gateway"):
        assert Objects(f"{storage.url}-2", STEADY).read(".owner") == b"postgresql://db:5432/gateway"


def test_credentials_and_answers_stay_out_of_messages(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-nobody-may-see")
    storage.faults.failing = True
    objects = Objects(storage.url, STEADY)
    with pytest.raises(Unavailable) as raised:
        objects.read("x")
    assert "a-secret-nobody-may-see" not in str(raised.value)
    assert "\n" not in raised.value.message


def test_gateways_on_one_catalogue_agree_before_they_collect(
    tmp_path: Path, storage: Storage, postgres: Server
) -> None:
    """Told apart by claims on PostgreSQL, not by the age of what is there; a removal whose commit is lost is undone."""
    url, made = postgres.fresh(), artefact(1)
    one, other = Peers(url), Peers(url)
    stores = [
        RemoteBlobs(tmp_path / str(number), Objects(storage.url, STEADY), "catalogue", NO_GRACE, peers)
        for number, peers in enumerate((one, other))
    ]
    with other.claimed(made.digest):
        stores[1].put(made)
        assert stores[0].collect(nothing_needed, lambda _: False) == (0, 1)
    other.beat()
    stores[0]._next_look = 0.0

    def broken(_: object) -> None:
        raise ConnectionError("the server is gone")

    stores[0].verify(made.digest)
    event.listen(one._database._writers, "commit", broken)
    with pytest.raises(ConnectionError):
        stores[0].collect(nothing_needed, lambda _: False)
    event.remove(one._database._writers, "commit", broken)
    assert stores[0].is_intact(made.digest)
    stores[0]._next_look = 0.0
    assert stores[0].collect(nothing_needed, lambda _: False) == (1, 0)
    assert made.digest not in bucket(storage).digests()
    for store, peers in zip(stores, (one, other), strict=True):
        store.close()
        peers.leave()
