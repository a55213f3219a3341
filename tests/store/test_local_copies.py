"""Copies of what is in object storage take so much room and no more, but for those an engine may read."""

from collections.abc import Callable
from pathlib import Path

import pytest

from app.store.artefacts.local_copies import Copies
from app.store.artefacts.s3 import RemoteBlobs
from app.store.artefacts.s3_client import Objects, Patience
from tests.load.test_plugin_engine import chat, fleet, up
from tests.store.making import artefact
from tests.support.gateway import OpenHouse, form
from tests.support.s3 import Storage, storage

__all__ = ["storage"]

ONE = 100_000
"""Bytes of an artefact's weights; with its other files a little more."""

LIMIT = 3 * ONE + ONE // 2

Open = Callable[..., RemoteBlobs]


@pytest.fixture
def opened(tmp_path: Path, storage: Storage) -> Open:
    def open_(*held: int, in_use_s: float = 0.0, known: bool = True) -> RemoteBlobs:
        made = RemoteBlobs(tmp_path / "copies", Objects(storage.url), "o", copies=Copies(LIMIT, in_use_s))
        names = frozenset(artefact(seed, ONE).digest.short for seed in held)
        made.spare(lambda: names if known else None)
        return made

    return open_


def here(blobs: RemoteBlobs) -> set[int]:
    return {seed for seed in range(9) if blobs.path(artefact(seed, ONE).digest).exists()}


def test_the_copy_asked_for_longest_ago_goes_and_comes_back(opened: Open) -> None:
    with opened() as blobs:
        for seed in (0, 1, 2):
            blobs.put(artefact(seed, ONE))
        blobs.verify(artefact(0, ONE).digest)
        blobs.put(artefact(3, ONE))
        assert here(blobs) == {0, 2, 3}
        blobs.verify(artefact(1, ONE).digest)
        assert here(blobs) == {0, 1, 3}
        assert (blobs.path(artefact(1, ONE).digest) / "adapter_model.safetensors").read_bytes() == artefact(
            1, ONE
        ).weights
        assert blobs.is_intact(artefact(2, ONE).digest)  # fetched, not taken for damaged


def test_what_an_engine_may_read_stays_whatever_it_takes(opened: Open) -> None:
    with opened(0, 1, 2, 3, 4) as blobs:
        for seed in range(6):
            blobs.put(artefact(seed, ONE))
        assert here(blobs) == {0, 1, 2, 3, 4, 5}
        blobs.put(artefact(6, ONE))
        assert here(blobs) == {0, 1, 2, 3, 4, 6}


def test_nothing_goes_while_an_engine_does_not_say_what_it_reads(opened: Open) -> None:
    with opened(known=False) as blobs:
        for seed in range(6):
            blobs.put(artefact(seed, ONE))
        assert here(blobs) == set(range(6))


def test_what_somebody_just_asked_for_stays_a_moment(opened: Open) -> None:
    with opened(in_use_s=60.0) as blobs:
        for seed in range(6):
            blobs.put(artefact(seed, ONE))
        assert here(blobs) == set(range(6))
    with opened() as blobs:  # what lies here at start counts too
        blobs.put(artefact(6, ONE))
        assert len(here(blobs)) == 3


def test_a_copy_that_the_storage_does_not_have_stays(opened: Open, storage: Storage) -> None:
    with opened() as blobs:
        for seed in (0, 1, 2):
            blobs.put(artefact(seed, ONE))
        Objects(storage.url).delete(f"{artefact(0, ONE).digest.hex}/manifest.json")
        blobs.put(artefact(3, ONE))
        assert 0 in here(blobs)


def test_a_storage_that_fails_while_room_is_made_costs_nothing(
    opened: Open, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(in_use_s=60.0) as blobs:
        for seed in range(5):
            blobs.put(artefact(seed, ONE))
    with opened() as blobs:
        patience = Patience(retries=0, retry_s=0.1)
        monkeypatch.setattr(blobs, "_objects", Objects(storage.url, patience))
        storage.faults.failing = True
        blobs.verify(artefact(0, ONE).digest)
        assert here(blobs) == set(range(5))
        storage.faults.failing = False
        blobs.verify(artefact(0, ONE).digest)
        assert 0 in here(blobs)
        assert len(here(blobs)) == 3


async def test_a_gateway_with_room_for_one_adapter_serves_three_to_engines_that_fetch(
    open_gateway: OpenHouse, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Copies.__init__, "__defaults__", (0.0,))
    names = ("bard", "clerk", "judge")

    def small(**given: object) -> object:
        return open_gateway(store_url=storage.url, copies_mib=0, **given)

    async with fleet(small, tmp_path) as (running, one, _two):
        await up(running, 2)
        digests = []
        for seed, name in enumerate(names):
            pushed = await running.http.post("/adapters", files=form(name, seed))
            assert (pushed.status_code, pushed.json()["state"]) == (201, "ready"), pushed.text
            digests.append(pushed.json()["digest"])
        copies = [digest for digest in digests if (running.data / "artefacts" / digest).exists()]
        assert len(copies) <= 1
        one.loaded.clear()
        assert [await chat(running, name) for name in names] == [200, 200, 200]
        for digest in digests:
            assert (await running.http.get(f"/artefacts/{digest}/adapter_model.safetensors")).status_code == 200


async def test_what_the_engine_has_loaded_is_never_taken_from_under_it(
    open_gateway: OpenHouse, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Copies.__init__, "__defaults__", (0.0,))
    async with open_gateway(store_url=storage.url, copies_mib=0) as running:
        for seed, name in enumerate(("bard", "clerk", "judge")):
            assert (await running.http.post("/adapters", files=form(name, seed))).status_code == 201
        for path in running.simulator.loaded.values():
            assert (Path(path) / "adapter_model.safetensors").exists()
