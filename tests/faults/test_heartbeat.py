"""A gateway's signs of life to the others on its catalogue go on, whatever else it is at."""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator

import pytest

from app.gateway.policy_recheck import PolicyRecheck
from app.gateway.uploads import Uploads
from app.store.cluster.peers import Peers
from tests.faults.test_peers import push
from tests.support.gateway import Running
from tests.support.holding import Held
from tests.support.joining import Join
from tests.support.waiting import STUCK_S

BEATS: Counter[str] = Counter()
"""Signs of life that came through, by gateway."""


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    """One processor, frequent beats that are counted, and what is held let go at the end."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr("app.gateway.peer_sync.BEAT_S", 0.05)
    beat = Peers.beat

    def counted(peers: Peers) -> None:
        beat(peers)
        BEATS[peers.id] += 1

    monkeypatch.setattr(Peers, "beat", counted)
    made = Held()
    yield made
    made.go_on.set()


async def still_beats(running: Running) -> None:
    peers = running.gateway.context.uploads.components.peers
    assert peers is not None
    before = BEATS[peers.id]
    async with asyncio.timeout(STUCK_S):
        while BEATS[peers.id] < before + 3:
            await asyncio.sleep(0.02)


async def test_screenings_that_fill_every_thread_do_not_stop_it(
    join: Join,
    held: Held,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = await join(max_uploads=5)
    with monkeypatch.context() as patch:
        for name in ("_measure_and_store", "_restore_artefact"):
            held.hold(patch, Uploads, name)
        pushed = [asyncio.ensure_future(push(running, f"held{n}", n)) for n in range(5)]
        try:
            await held.until(len(pushed))
            await still_beats(running)
        finally:
            held.go_on.set()
        assert {one.status_code for one in await asyncio.gather(*pushed)} == {201}


async def test_following_a_change_for_minutes_does_not_stop_it(
    join: Join,
    held: Held,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Versions screened by another policy are measured again before they are served: that may take minutes."""
    first, second = await join(), await join()
    with monkeypatch.context() as patch:
        held.hold(patch, PolicyRecheck, "check")
        pushed = asyncio.ensure_future(push(second, "style", 1))
        try:
            await held.until(2)  # both follow, and measure
            for running in (first, second):
                await still_beats(running)
        finally:
            held.go_on.set()
        assert (await pushed).status_code == 201
