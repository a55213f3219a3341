"""Keeping uploads, over everything but the engine: which are kept, where, and until when."""

import os
from pathlib import Path

from app.domain.digest import digest_of
from tests.support.audited import rested
from tests.support.gateway import OpenHouse, Running, form


def kept(running: Running) -> set[str]:
    root = running.data / "originals"
    return set(os.listdir(root)) if root.exists() else set()


def digests(name: str, seed: int = 0) -> set[str]:
    parts = form(name, seed)
    return {digest_of(parts[part][1]).hex for part in ("config", "weights")}


async def push(running: Running, name: str, seed: int = 0) -> int:
    return (await running.http.post("/adapters", files=form(name, seed))).status_code


async def test_uploads_are_not_kept_unless_asked(running: Running) -> None:
    assert await push(running, "first") == 201
    assert kept(running) == set()


async def test_an_upload_is_kept_where_no_engine_looks_until_its_adapter_is_deleted(open_gateway: OpenHouse) -> None:
    async with open_gateway(keep_originals=True) as running:
        assert await push(running, "first", 1) == 201
        assert await push(running, "second", 1) == 201
        assert await push(running, "third", 2) == 201
        assert kept(running) == digests("first", 1) | digests("third", 2)
        assert all(Path(path).parent == running.data / "artefacts" for path in running.simulator.loaded.values())
        await rested(running)
        await running.http.delete("/adapters/first")
        assert kept(running) == digests("second", 1) | digests("third", 2)  # the second has the same bytes
        await running.http.delete("/adapters/second")
        assert kept(running) == digests("third", 2)
        await rested(running)


async def test_what_is_refused_is_not_kept(open_gateway: OpenHouse) -> None:
    async with open_gateway(keep_originals=True) as running:
        bad = form("bad") | {"config": ("c", b"{}")}
        assert (await running.http.post("/adapters", files=bad)).status_code == 400
        assert kept(running) == set()
    async with open_gateway(keep_originals=True, max_update_ratio=1e-9) as running:
        assert await push(running, "rejected") == 422
        assert kept(running) == set()


async def test_an_upload_from_before_is_kept_when_it_comes_again(open_gateway: OpenHouse) -> None:
    async with open_gateway() as running:
        assert await push(running, "first") == 201
    async with open_gateway(keep_originals=True) as running:
        assert await push(running, "first") == 200
        assert kept(running) == digests("first")


async def test_turned_off_again_what_was_kept_still_goes_with_its_adapter(open_gateway: OpenHouse) -> None:
    async with open_gateway(keep_originals=True) as running:
        assert await push(running, "first") == 201
    async with open_gateway() as running:
        assert await push(running, "second", 2) == 201
        assert kept(running) == digests("first")
        await running.http.delete("/adapters/first")
        assert kept(running) == digests("first") & digests("second", 2)  # their configurations are the same bytes


async def test_what_a_kill_left_behind_is_removed_at_the_next_start(open_gateway: OpenHouse) -> None:
    async with open_gateway(keep_originals=True) as running:
        (running.data / "originals" / digest_of(b"nobody's").hex).write_bytes(b"nobody's")
    async with open_gateway() as running:
        assert kept(running) == set()
