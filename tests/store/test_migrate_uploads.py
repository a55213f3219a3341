"""Kept uploads go with the store to one gateway's data directory, and can be screened again there and nowhere else."""

import asyncio
import io
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from app.domain.digest import Digest, digest_of
from app.domain.lora import Received
from app.domain.names import AdapterName
from app.store.artefacts.local import BlobStore
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.database import sqlite_url
from app.store.uploads import KeptUploads
from tests.store.making import begun, noise
from tests.support.gateway import OpenHouse, form, gateway
from tests.support.postgres import Server
from tests.support.s3 import Storage, storage

__all__ = ["storage"]

CONFIG = b'{"r": 4}'
NAMES = ("style", "other", "gone")
UNLIKE: dict[str, float] = {"tau": 1e9, "max_pruned_share": 1.0}
"""A policy by which the test's uploads have another verdict."""


def weights(name: str) -> bytes:
    return noise(name, 2_500_000)


def digest(name: str) -> Digest:
    return digest_of(weights(name))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with three kept uploads, one of them deleted and not collected yet, and one that was not kept."""
    home = tmp_path / "data"
    home.mkdir()
    BlobStore(home / "artefacts").close()
    kept = KeptUploads(home / "originals", keep=True)
    catalogue = Catalogue(sqlite_url(home / "catalogue.sqlite"))
    for name in (*NAMES, "unkept"):
        received = Received(digest_of(CONFIG), digest(name), len(CONFIG), len(weights(name)))
        begun(catalogue, AdapterName(name), received)
        if name in NAMES:
            kept.keep(received, CONFIG, io.BytesIO(weights(name)))
    catalogue.delete(AdapterName("gone"))
    catalogue.close()
    return home


def moved(data: Path, *words: str | Path) -> str:
    """The command's status and what it prints, its error too."""
    line = [sys.executable, "-m", "app", "store", "move", "--data", data, *words]
    done = subprocess.run(line, capture_output=True, text=True)
    return f"{done.returncode} {done.stdout} {done.stderr}"


def found(there: Path) -> dict[str, str]:
    """Every file of a directory of originals: name → digest of what is in it."""
    return {name: digest_of((there / "originals" / name).read_bytes()).hex for name in os.listdir(there / "originals")}


WANTED = {one.hex: one.hex for one in (digest_of(CONFIG), digest("style"), digest("other"))}


def test_what_a_version_may_be_made_from_again_is_there_and_nothing_else(data: Path, tmp_path: Path) -> None:
    there = tmp_path / "new" / "data"
    said = moved(data, "--originals-to", there)
    assert said.startswith("0 "), said
    assert f"3 files of kept uploads in {there}/originals, read back and found whole" in said
    assert found(there) == WANTED
    assert stat.S_IMODE((there / "originals").stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in (there / "originals").iterdir()} == {0o400}
    assert len(found(data)) == 4, "nothing is taken away"


def test_a_broken_off_copy_goes_on(data: Path, tmp_path: Path) -> None:
    there = tmp_path / "new"
    assert moved(data, "--originals-to", there).startswith("0 ")
    whole, spoilt = there / "originals" / digest("style").hex, there / "originals" / digest("other").hex
    before = whole.stat().st_mtime_ns
    spoilt.chmod(0o600)
    spoilt.write_bytes(weights("other")[:1000])
    (there / "originals" / ".0123.part").write_bytes(b"half")
    (there / "originals" / digest_of(CONFIG).hex).unlink()
    said = moved(data, "--originals-to", there)
    assert "3 files of kept uploads" in said, said
    assert found(there) == WANTED
    assert whole.stat().st_mtime_ns == before, "what was there and whole was not written again"


def test_a_damaged_one_is_left_out_and_named(data: Path, tmp_path: Path) -> None:
    there, damaged = tmp_path / "new", data / "originals" / digest("style").hex
    damaged.chmod(0o600)
    damaged.write_bytes(weights("style")[:-1] + b"x")
    said = moved(data, "--originals-to", there)
    assert said.startswith("0 "), said
    assert "2 files of kept uploads" in said
    assert f"kept upload {digest('style').short} is damaged and was left out" in said
    assert digest("style").hex not in found(there)


def test_where_they_stay_is_said(data: Path, storage: Storage) -> None:
    said = moved(data, "--artefacts-to", storage.url)
    assert said.startswith("0 "), said
    assert f"4 files of kept uploads stay in {data}/originals: one gateway's own" in said


def test_they_are_not_moved_onto_themselves(data: Path) -> None:
    said = moved(data, "--originals-to", data / ".." / "data")
    assert said.startswith("1 "), said
    assert "is where the kept uploads are already" in said
    assert len(found(data)) == 4


def test_a_full_disk_leaves_nothing_half(data: Path, tmp_path: Path) -> None:
    there = tmp_path / "new"
    line = f"ulimit -f 1024; exec {sys.executable} -m app store move --data {data} --originals-to {there}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert found(there).items() <= WANTED.items()
    assert "3 files of kept uploads" in moved(data, "--originals-to", there)


async def test_a_gateway_that_has_them_screens_again_and_one_that_has_not_says_so(
    open_gateway: OpenHouse, postgres: Server, storage: Storage, tmp_path: Path, tiny_reference_dir: Path
) -> None:
    url, there = postgres.fresh(), tmp_path / "there"
    async with open_gateway(keep_originals=True) as running:
        assert (await running.http.post("/adapters", files=form("bard"))).status_code == 201
        home, simulator = running.data, running.simulator
    words = ("--to", url, "--artefacts-to", storage.url, "--originals-to", there)
    said = await asyncio.to_thread(moved, home, *words)
    assert said.startswith("0 "), said
    shutil.move(home, tmp_path / "old")
    shared = {**UNLIKE, "catalogue_url": url, "store_url": storage.url}
    async with gateway(tmp_path / "without", tiny_reference_dir, simulator, **shared) as running:
        answer = await running.http.post("/adapters/bard/rescreen")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "original_not_kept")
    async with gateway(there, tiny_reference_dir, simulator, **shared) as running:
        answer = await running.http.post("/adapters/bard/rescreen")
        assert answer.status_code in (200, 201), answer.text
