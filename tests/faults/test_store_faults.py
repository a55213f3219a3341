"""Faults of disk, catalogue and clock under a gateway at work; after each, the auditor finds every invariant whole."""

import asyncio
import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.domain.artefact import WEIGHTS_FILE
from app.domain.errors import STORE_BUSY, STORE_FAILED, GatewayError, Unavailable
from app.store.audit.audit import Promise
from app.store.audit.snapshot import read_catalogue
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.database import sqlite_url
from tests.support.audited import rested
from tests.support.gateway import OpenHouse, Running, form
from tests.support.waiting import STUCK_S


async def push(running: Running, name: str, seed: int = 0) -> Any:
    return await running.http.post("/adapters", files=form(name, seed))


async def chat(running: Running, model: str) -> int:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    return (await running.http.post("/v1/chat/completions", json=body)).status_code


async def until(running: Running, model: str, status: int) -> None:
    async with asyncio.timeout(STUCK_S):
        while await chat(running, model) != status:
            await asyncio.sleep(0.02)


def flip(directory: Path) -> None:
    directory.chmod(0o755)
    weights = directory / WEIGHTS_FILE
    weights.chmod(0o644)
    data = bytearray(weights.read_bytes())
    data[-5] ^= 4
    weights.write_bytes(data)
    weights.chmod(0o444)
    directory.chmod(0o555)


def only_artefact(running: Running) -> Path:
    (found,) = (path for path in (running.data / "artefacts").iterdir() if not path.name.startswith("."))
    return found


# ---- damaged artefacts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["style", "another"])
async def test_uploading_equal_bytes_restores_a_damaged_artefact(open_gateway: OpenHouse, name: str) -> None:
    """Under the same name or another: nobody has to delete anything, or to start again."""
    async with open_gateway() as running:
        assert (await push(running, "style")).status_code == 201
        flip(only_artefact(running))
    running.simulator.loaded.clear()
    async with open_gateway() as running:
        await asyncio.sleep(0.3)
        assert await chat(running, "style") == 503, "never loaded, and never another's answer"
        answer = await push(running, name)
        assert answer.status_code == (200 if name == "style" else 201), answer.text
        await until(running, name, 200)
        await until(running, "style", 200)
        await rested(running, [Promise("style", 1), Promise(name, 1)])


async def test_damaged_while_it_is_served(running: Running) -> None:
    """The engine has it in memory; equal bytes put the file right before an eviction reads it again."""
    assert (await push(running, "style")).status_code == 201
    flip(only_artefact(running))
    assert (await push(running, "style")).status_code == 200
    await rested(running, [Promise("style", 1)])


# ---- what the engine may read stays ------------------------------------------------------------------------------------


async def test_nothing_the_engine_still_holds_is_collected(open_gateway: OpenHouse) -> None:
    """Somebody else's engine keeps what an earlier gateway gave it, and reads the files again whenever it likes."""
    async with open_gateway() as running:
        assert (await push(running, "style")).status_code == 201
        artefact = only_artefact(running)
        running.simulator.faults["unload"] = "500"
        assert (await running.http.delete("/adapters/style")).status_code == 204
        await asyncio.sleep(0.3)
        assert artefact.exists()
    async with open_gateway() as running:  # a new gateway over an engine that did not forget
        await asyncio.sleep(0.3)
        assert artefact.exists(), "removed at start, while the engine may read it"
        await rested(running)
        del running.simulator.faults["unload"]
        async with asyncio.timeout(STUCK_S):
            while artefact.exists():
                await asyncio.sleep(0.02)
        assert [name for name in running.simulator.loaded if "@" in name] == []
        await rested(running)


async def test_an_engine_that_is_silent_may_read_anything(open_gateway: OpenHouse) -> None:
    async with open_gateway() as running:
        assert (await push(running, "style")).status_code == 201
        artefact = only_artefact(running)
        running.simulator.faults["models"] = "500"
        await asyncio.sleep(0.2)
        assert (await running.http.delete("/adapters/style")).status_code == 204
        await asyncio.sleep(0.3)
    async with open_gateway() as running:
        await asyncio.sleep(0.3)
        assert artefact.exists()
        running.simulator.faults.clear()
        async with asyncio.timeout(STUCK_S):
            while artefact.exists():
                await asyncio.sleep(0.02)


async def test_deleted_adapters_give_their_disk_back_without_a_restart(running: Running) -> None:
    for round_ in range(3):
        assert (await push(running, "style", seed=round_)).status_code == 201
        artefact = only_artefact(running)
        assert (await running.http.delete("/adapters/style")).status_code == 204
        async with asyncio.timeout(STUCK_S):
            while artefact.exists():
                await asyncio.sleep(0.02)
        assert (await push(running, "style", seed=round_)).status_code == 201, "the same bytes, at once"
        await until(running, "style", 200)
        assert (await running.http.delete("/adapters/style")).status_code == 204
        async with asyncio.timeout(STUCK_S):
            while any(not path.name.startswith(".") for path in (running.data / "artefacts").iterdir()):
                await asyncio.sleep(0.02)
    await rested(running)


# ---- the catalogue -----------------------------------------------------------------------------------------------------


async def test_a_locked_catalogue_is_told_and_nothing_is_lost(
    open_gateway: OpenHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = Catalogue.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "busy_seconds", 2.0)  # more than the gateway itself takes on a busy machine
    async with open_gateway() as running:
        assert (await push(running, "style")).status_code == 201
        other = sqlite3.connect(running.data / "catalogue.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        answer = await push(running, "second", 1)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, STORE_BUSY.name)
        assert "retry-after" in answer.headers
        assert await chat(running, "style") == 200, "readers do not wait for a writer"
        other.execute("ROLLBACK")
        other.close()
        assert (await push(running, "second", 1)).status_code == 201
        await rested(running, [Promise("style", 1), Promise("second", 1)])


@pytest.fixture
async def left(open_gateway: OpenHouse, tmp_path: Path) -> Path:
    """A data directory with two adapters, its gateway gone."""
    async with open_gateway() as running:
        for seed, name in enumerate(("one", "two")):
            assert (await push(running, name, seed)).status_code == 201
    return tmp_path / "data"


async def refuses(open_gateway: OpenHouse) -> GatewayError:
    with pytest.raises(Unavailable) as caught:
        async with open_gateway():
            pass
    return caught.value


@pytest.mark.parametrize("at", [0, 5, 16, 24, 100, 4096, 4100, -4096, -1])
async def test_a_torn_catalogue_is_refused_or_sound_never_guessed_at(
    left: Path, open_gateway: OpenHouse, at: int
) -> None:
    path = left / "catalogue.sqlite"
    data = bytearray(path.read_bytes())
    data[at : at + 64 if at >= 0 else len(data)] = b"\xa5" * (64 if at >= 0 else -at)
    path.write_bytes(data)
    try:
        async with open_gateway() as running:
            await until(running, "one", 200)
            await rested(running, [Promise("one", 1), Promise("two", 1)])
    except Unavailable as error:
        assert error.code is STORE_FAILED
        assert not sound(path), "a sound catalogue was refused"


def sound(path: Path) -> bool:
    """What the auditor says of it."""
    try:
        return not read_catalogue(sqlite_url(path)).damage
    except Unavailable:
        return False


async def test_a_catalogue_cut_short_is_refused(left: Path, open_gateway: OpenHouse) -> None:
    path = left / "catalogue.sqlite"
    os.truncate(path, path.stat().st_size // 2)
    assert (await refuses(open_gateway)).code is STORE_FAILED


async def test_a_catalogue_that_is_gone_is_not_taken_for_a_new_one(left: Path, open_gateway: OpenHouse) -> None:
    """Artefacts without any row could mean a lost disk; they must not be thrown away as garbage."""
    (left / "catalogue.sqlite").unlink()
    for journal in ("-wal", "-shm"):
        (left / f"catalogue.sqlite{journal}").unlink(missing_ok=True)
    error = await refuses(open_gateway)
    assert error.code is STORE_FAILED
    assert len([path for path in (left / "artefacts").iterdir() if not path.name.startswith(".")]) == 2


@pytest.mark.ruling("R12")
async def test_two_gateways_on_one_store(running: Running, open_gateway: OpenHouse) -> None:
    assert (await refuses(open_gateway)).code is STORE_BUSY
    assert (await push(running, "style")).status_code == 201
    await rested(running, [Promise("style", 1)])


# ---- the disk ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The data directory on a disk of 4 MiB."""
    place = tmp_path / "data"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if os.getuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs needs root and the right to mount")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path, leave: int) -> Path:
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 4096):
                pass
        except OSError:
            pass
        file.truncate(max(0, file.tell() - leave))
    return ballast


@pytest.mark.parametrize("leave", [0, 4 << 10, 40 << 10, 80 << 10, 120 << 10, 160 << 10, 240 << 10])
@pytest.mark.ruling("R06")
async def test_a_disk_that_fills_at_any_moment_of_an_upload(
    small_disk: Path, open_gateway: OpenHouse, leave: int
) -> None:
    """Received, recorded, staged: wherever it fills, the upload is refused or kept whole, and the next one works."""
    async with open_gateway() as running:
        assert (await push(running, "kept")).status_code == 201
        ballast = fill(small_disk, leave)
        answer = await push(running, "style", 1)
        assert answer.status_code in (201, 202, 507, 500), answer.text
        assert await chat(running, "kept") == 200
        ballast.unlink()
        answer = await push(running, "style", 1)
        assert answer.status_code in (200, 201), answer.text
        await rested(running, [Promise("kept", 1), Promise("style", answer.json()["version"])])
    async with open_gateway() as running:
        await until(running, "style", 200)
        await rested(running, [Promise("kept", 1), Promise("style", answer.json()["version"])])


def mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


@pytest.mark.ruling("O03")
async def test_a_store_that_becomes_read_only(small_disk: Path, open_gateway: OpenHouse) -> None:
    async with open_gateway() as running:
        assert (await push(running, "kept")).status_code == 201
        artefacts = small_disk / "artefacts"
        mount("--bind", artefacts, artefacts)
        mount("-o", "remount,bind,ro", artefacts)
        try:
            answer = await push(running, "style", 1)
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, STORE_FAILED.name)
            assert (await running.http.get("/ready")).status_code == 503
            assert await chat(running, "kept") == 200
        finally:
            await asyncio.to_thread(subprocess.run, ["umount", str(artefacts)], check=True)
        answer = await push(running, "style", 1)
        assert answer.status_code == 201
        await rested(running, [Promise("kept", 1), Promise("style", answer.json()["version"])])


# ---- the clock ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [86400.0, -86400.0, -(2**31)])
@pytest.mark.ruling("R13")
async def test_a_clock_that_jumps_changes_nothing(
    open_gateway: OpenHouse, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    """Only monotonic time orders and expires; the wall clock is shown to people."""
    async with open_gateway() as running:
        assert (await push(running, "style")).status_code == 201
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + jump)
        assert (await push(running, "style", 1)).status_code == 201
        running.simulator.loaded.clear()
        await until(running, "style", 200)
        answer = await running.http.post("/adapters/style/rollback")
        assert answer.status_code == 200
        await rested(running, [Promise("style", 1), Promise("style", 2)])
    async with open_gateway() as running:
        await until(running, "style", 200)
        assert (await running.http.get("/adapters/style")).json()["active_version"] == 1
