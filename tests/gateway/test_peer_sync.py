"""Peer sync on a real PostgreSQL: follows another gateway's change, beats meanwhile, survives a failing catalogue."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import closing

import pytest
import pytest_asyncio

from app.domain.errors import STORE_FAILED, Unavailable
from app.gateway import peer_sync as module
from app.gateway.peer_sync import PeerSync
from app.store.catalogue.catalogue import Catalogue
from app.store.cluster.peers import Peers
from tests.gateway.conftest import MakeUseCases, UseCases
from tests.support.postgres import Server
from tests.support.waiting import STUCK_S


class Shared:
    """One gateway's use cases in step with a catalogue that others write, too."""

    def __init__(self, use_cases: UseCases, peers: Peers, url: str) -> None:
        self.use_cases, self.peers, self.url = use_cases, peers, url
        self.sync = PeerSync(peers, use_cases.components, use_cases.follower, use_cases.garbage)

    def published_elsewhere(self, seed: int) -> str:
        """Publish a version as another gateway would; return its engine name."""
        row = self.use_cases.store(seed)
        with closing(Catalogue(self.url)) as other:
            other.activate("style", row.number)
        assert row.engine_name is not None
        return row.engine_name

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(STUCK_S):
            while not holds():
                await asyncio.sleep(0.01)


@pytest_asyncio.fixture
async def shared(
    make_use_cases: MakeUseCases, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Shared]:
    monkeypatch.setattr(module, "LOOK_S", 0.02)
    monkeypatch.setattr(module, "BEAT_S", 0.02)
    url = postgres.fresh()
    with closing(Catalogue(url)) as catalogue:
        peers = Peers(url)
        made = Shared(make_use_cases(catalogue=catalogue, peers=peers), peers, url)
        yield made
        await made.sync.stop()
        peers.leave()


async def test_a_change_by_another_gateway_is_put_in_force(shared: Shared) -> None:
    shared.sync.start()
    name = shared.published_elsewhere(1)
    await shared.until(lambda: name in shared.use_cases.components.desired.adapters())
    assert shared.use_cases.components.desired.state.revision == shared.peers.revision()


async def test_it_beats_while_following_a_change_takes_long(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    beaten, go_on, inside = 0, asyncio.Event(), asyncio.Event()
    beat, refresh = shared.peers.beat, shared.use_cases.follower.refresh

    def counted() -> None:
        nonlocal beaten
        beat()
        beaten += 1

    async def held() -> None:
        inside.set()
        await go_on.wait()
        await refresh()

    monkeypatch.setattr(shared.peers, "beat", counted)
    monkeypatch.setattr(shared.use_cases.follower, "refresh", held)
    shared.sync.start()
    name = shared.published_elsewhere(1)
    async with asyncio.timeout(STUCK_S):
        await inside.wait()
    before = beaten
    await shared.until(lambda: beaten >= before + 3)
    go_on.set()
    await shared.until(lambda: name in shared.use_cases.components.desired.adapters())


async def test_a_catalogue_that_fails_for_a_while_is_told_once_and_followed_again(
    shared: Shared, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures, revision = 5, shared.peers.revision

    def failing() -> int:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise Unavailable(STORE_FAILED, "away")
        return revision()

    monkeypatch.setattr(shared.peers, "revision", failing)
    shared.sync.start()
    name = shared.published_elsewhere(1)
    await shared.until(lambda: name in shared.use_cases.components.desired.adapters())
    assert sum("not_following" in record.getMessage() for record in caplog.records) == 1


async def test_stopping_waits_for_the_step_under_way(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, inside = asyncio.Event(), asyncio.Event()
    refresh = shared.use_cases.follower.refresh

    async def held() -> None:
        inside.set()
        await go_on.wait()
        await refresh()

    monkeypatch.setattr(shared.use_cases.follower, "refresh", held)
    shared.sync.start()
    name = shared.published_elsewhere(1)
    async with asyncio.timeout(STUCK_S):
        await inside.wait()
    stopping = asyncio.ensure_future(shared.sync.stop())
    await asyncio.sleep(0)
    assert not stopping.done()
    go_on.set()
    await stopping
    assert name in shared.use_cases.components.desired.adapters()
