"""Gateways on one catalogue: who lives, who may take an artefact away, and what becomes of the work of the dead."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import event

from app.domain.errors import LOAD_FAILED, REJECTED, SCREENING_FAILED, STORE_BUSY, STORE_FAILED, Refused, Unavailable
from app.domain.version_state import State
from app.store.artefacts.local import BlobStore
from app.store.artefacts.staging import mark_of
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.database import sqlite_url
from app.store.cluster.leases import LEASE_S, MISSED_BEATS
from app.store.cluster.peers import FORGET_S, Peers
from tests.store.making import NAME, artefact, begin_again, begun, published, received, stored, verdict
from tests.support.postgres import Server


@pytest.fixture
def url(postgres: Server) -> str:
    return postgres.fresh()


@pytest.fixture
def join(url: str) -> Iterator[Callable[[], Peers]]:
    """Another gateway of this catalogue."""
    with ExitStack() as closers:

        def joined() -> Peers:
            peers = Peers(url)
            closers.callback(peers.leave)
            return peers

        yield joined


def silent(postgres: Server, url: str, peers: Peers, seconds: float) -> None:
    """As if it had said nothing for so long: by the database's clock, whatever ours says."""
    late = f"UPDATE gateways SET seen_at = seen_at - interval '{seconds} s' WHERE id = '{peers.id}'"
    postgres.psql(late, url.rpartition("/")[2])


def watched(peers: Peers) -> None:
    """As if it had been there for long enough to judge others."""
    for _ in range(MISSED_BEATS):
        peers.beat()


def test_sharing_needs_postgresql(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="PostgreSQL only") as caught:
        Peers(sqlite_url(tmp_path / "c.db"))
    assert caught.value.code is STORE_FAILED


def test_every_change_has_a_revision_and_no_question_has(url: str, join: Callable[[], Peers]) -> None:
    peers, catalogue = join(), Catalogue(url)
    seen = [peers.revision()]
    for seed in (1, 2):
        published(catalogue, seed)
        seen.append(peers.revision())
    catalogue.rollback(NAME)
    seen.append(peers.revision())
    catalogue.delete(NAME)
    assert sorted(set(seen)) == seen
    now = peers.revision()
    assert now > seen[-1]
    catalogue.served()
    catalogue.recover()
    assert peers.revision() == now
    catalogue.close()


def test_only_the_work_of_the_dead_is_given_up(postgres: Server, url: str, join: Callable[[], Peers]) -> None:
    one, other = join(), join()
    mine = Catalogue(url, gateway=one.id, beats=one.beats)
    theirs = Catalogue(url, gateway=other.id, beats=other.beats)
    row = begun(mine, NAME, received(1))
    assert theirs.recover().interrupted == ()
    assert not other.orphans()
    assert other.at_work_elsewhere(str(NAME), row.number)
    assert not one.at_work_elsewhere(str(NAME), row.number)
    silent(postgres, url, one, LEASE_S + 1)
    assert not other.orphans(), "time alone proves nothing"
    watched(other)
    assert other.orphans()
    assert not other.at_work_elsewhere(str(NAME), row.number)
    (failed,) = theirs.recover().interrupted
    assert (failed.state, failed.error_code) == (State.FAILED, SCREENING_FAILED.name)
    with pytest.raises(Unavailable, match="given up by another gateway") as caught:
        mine.record_validated(NAME, row.number)  # it only slept
    assert caught.value.code is STORE_BUSY
    assert mine.version(NAME, row.number) == failed
    assert published(theirs, 1).number == 2
    mine.close()
    theirs.close()


def test_who_slept_does_not_move_what_another_has_begun_again(
    postgres: Server, url: str, join: Callable[[], Peers]
) -> None:
    one, other = join(), join()
    mine = Catalogue(url, gateway=one.id, beats=one.beats)
    theirs = Catalogue(url, gateway=other.id, beats=other.beats)
    number = begun(mine, NAME, received(1)).number
    silent(postgres, url, one, LEASE_S + 1)
    watched(other)
    theirs.recover()
    again, _ = begin_again(theirs, NAME, number)
    assert again.state is State.RECEIVED
    one.beat()
    late: tuple[Callable[[], object], ...] = (
        lambda: mine.record_validated(NAME, number),
        lambda: mine.record_rejected(NAME, number, Refused(REJECTED, "x")),
        lambda: mine.record_failed(NAME, number, Unavailable(SCREENING_FAILED, "x")),
    )
    for move in late:
        with pytest.raises(Unavailable) as caught:
            move()
        assert caught.value.code is STORE_BUSY
    assert theirs.record_validated(NAME, number).state is State.VALIDATED
    mine.close()
    theirs.close()


def test_nor_fails_it_when_it_is_stored_by_now(postgres: Server, url: str, join: Callable[[], Peers]) -> None:
    one, other = join(), join()
    mine = Catalogue(url, gateway=one.id, beats=one.beats)
    theirs = Catalogue(url, gateway=other.id, beats=other.beats)
    number = begun(mine, NAME, received(1)).number
    silent(postgres, url, one, LEASE_S + 1)
    watched(other)
    theirs.recover()
    begin_again(theirs, NAME, number)
    theirs.record_validated(NAME, number)
    theirs.record_screened(NAME, number, verdict(), "{}")
    theirs.record_stored(NAME, number, artefact(1).digest)
    one.beat()
    with pytest.raises(Unavailable) as caught:
        mine.record_failed(NAME, number, Unavailable(SCREENING_FAILED, "x"), at_work=True)
    assert caught.value.code is STORE_BUSY
    assert mine.version(NAME, number).state is State.STORED
    assert mine.record_failed(NAME, number, Unavailable(LOAD_FAILED, "ours refuses it")).state is State.FAILED
    mine.close()
    theirs.close()


def test_when_all_were_silent_together_nobody_is_dead(postgres: Server, url: str, join: Callable[[], Peers]) -> None:
    """The database was away, or the machine stood still: whoever beats first afterwards must not judge by that."""
    one, other = join(), join()
    mine = Catalogue(url, gateway=one.id, beats=one.beats)
    number = begun(mine, NAME, received(1)).number
    for peers in (other, one):
        watched(peers)
        silent(postgres, url, peers, 10 * LEASE_S)
    other.beats._times = deque((at - timedelta(seconds=10 * LEASE_S) for at in other.beats._times), MISSED_BEATS)
    theirs = Catalogue(url, gateway=other.id, beats=other.beats)
    for _ in range(MISSED_BEATS - 1):
        other.beat()
        assert not other.orphans()
        assert theirs.recover().interrupted == ()
    assert mine.record_validated(NAME, number).state is State.VALIDATED
    other.beat()
    assert other.orphans(), "beats of ours were kept five times, and none of its"
    mine.close()
    theirs.close()


def test_of_one_refusal_told_by_two_gateways_the_first_is_kept(url: str, join: Callable[[], Peers]) -> None:
    one, other = join(), join()
    mine, theirs = Catalogue(url, gateway=one.id), Catalogue(url, gateway=other.id)
    tried = stored(mine, 1)
    first = mine.record_try_failed(tried, Unavailable(LOAD_FAILED, "ours refuses it"))
    assert (first.state, first.error_message) == (State.FAILED, "ours refuses it")
    assert theirs.record_try_failed(tried, Unavailable(LOAD_FAILED, "ours too")) == first
    again, _ = begin_again(theirs, NAME, tried.number, intact=True)
    assert mine.record_try_failed(tried, Unavailable(LOAD_FAILED, "late")) == again, "it was of the try before"
    mine.close()
    theirs.close()


def test_a_clock_of_ours_that_is_wrong_kills_nobody(
    url: str, join: Callable[[], Peers], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = join(), join()
    catalogue = Catalogue(url, gateway=one.id, beats=one.beats)
    begun(catalogue, NAME, received(1))
    for jump in (-1e6, 1e6):
        monkeypatch.setattr("time.time", lambda jump=jump: 1.9e9 + jump)
        other.beat()
        assert not other.orphans()
    catalogue.close()


def test_what_is_claimed_needed_or_may_be_read_elsewhere_is_not_free(
    postgres: Server, url: str, join: Callable[[], Peers]
) -> None:
    one, other = join(), join()
    catalogue = Catalogue(url, gateway=one.id, beats=one.beats)
    digest = artefact(1).digest

    def free() -> bool:
        with other.removing(digest) as answer:
            return answer

    with one.claimed(digest):
        assert not free()
        one.beat()
        assert not free(), "a beat takes no claim away that is still held"
        published(catalogue, 1)
    one.beat()
    assert not free(), "a version needs it"
    catalogue.delete(NAME)
    assert not free(), "neither has said that its engine is through with it"
    other.settled = one.settled = other.revision()
    other.beat()
    assert not free()
    one.beat()
    assert free()
    silent(postgres, url, one, LEASE_S + 1)
    one.keep(digest)
    assert not free(), "who is silent may serve for a long time yet"
    silent(postgres, url, one, FORGET_S + 1)
    other.beat()
    assert free()
    catalogue.close()


def test_claiming_waits_until_a_removal_is_over(join: Callable[[], Peers]) -> None:
    one, other = join(), join()
    order = []

    def claim() -> None:
        with one.claimed(artefact(1).digest):
            order.append("claimed")

    with other.removing(artefact(1).digest) as free:
        assert free
        thread = threading.Thread(target=claim)
        thread.start()
        thread.join(0.3)
        order.append("removed")
    thread.join()
    assert order == ["removed", "claimed"]


def test_a_removal_whose_commit_is_lost_is_undone(
    postgres: Server, url: str, tmp_path: Path, join: Callable[[], Peers]
) -> None:
    peers, made = join(), artefact(1)
    with BlobStore(tmp_path / "store", peers, shared=True) as store:
        store.put(made)

        def broken(_: object) -> None:
            raise ConnectionError("the server is gone")

        event.listen(peers._database._writers, "commit", broken)
        with pytest.raises(ConnectionError):
            store.collect(frozenset, lambda _: False)
        store.verify(made.digest)
        event.remove(peers._database._writers, "commit", broken)
        peers.settled = peers.revision()
        peers.beat()
        assert store.collect(frozenset, lambda _: False) == (1, 0)
        assert store.digests() == frozenset()


def test_gateways_share_a_directory_which_nobody_has_alone_meanwhile(tmp_path: Path, join: Callable[[], Peers]) -> None:
    root = tmp_path / "store"
    with BlobStore(root, join(), shared=True) as one, BlobStore(root, join(), shared=True) as two:
        one.put(artefact(1))
        two.verify(artefact(1).digest)
        with pytest.raises(Unavailable) as caught:
            BlobStore(root)
        assert caught.value.code is STORE_BUSY
    with BlobStore(root) as alone:
        alone.verify(artefact(1).digest)
        with pytest.raises(Unavailable):
            BlobStore(root, join(), shared=True)


def test_what_another_is_writing_is_not_swept_and_what_the_dead_left_is(
    tmp_path: Path, join: Callable[[], Peers]
) -> None:
    root = tmp_path / "store"
    with BlobStore(root, join(), shared=True) as one:
        (one._staging.fresh()).mkdir()
        left = root / ".staging" / "gateway-of-the-dead"
        (left / "half").mkdir(parents=True)
        with BlobStore(root, join(), shared=True):
            assert len(list(one._staging.path.iterdir())) == 1
            assert not left.exists()


def test_a_catalogue_belongs_to_one_directory_of_artefacts(tmp_path: Path, join: Callable[[], Peers]) -> None:
    for home in ("ours", "theirs"):
        (tmp_path / home).mkdir()
    one, other = join(), join()
    assert mark_of(tmp_path / "ours") == mark_of(tmp_path / "ours")
    one.same_store(mark_of(tmp_path / "ours"))
    other.same_store(mark_of(tmp_path / "ours"))
    with pytest.raises(Unavailable, match="another directory of artefacts"):
        other.same_store(mark_of(tmp_path / "theirs"))
