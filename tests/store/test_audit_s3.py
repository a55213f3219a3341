"""`store audit` reads what is in the object storage: every damage there is found, and a sound store has no findings."""

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.store.artefacts.s3_client import Objects
from app.store.audit.audit import Audit, Skipped, audit
from app.store.catalogue.database import sqlite_url
from tests.gateway.test_audit_job import broken
from tests.support.gateway import OpenHouse, form
from tests.support.s3 import Storage, storage

__all__ = ["storage"]

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
async def digest(open_gateway: OpenHouse, storage: Storage) -> str:
    """Of one artefact, in the storage and copied here."""
    async with open_gateway(store_url=storage.url) as running:
        pushed = await running.http.post("/adapters", files=form("bard"))
        assert pushed.status_code == 201, pushed.text
        return str(pushed.json()["digest"])


def looked(tmp_path: Path, storage: Storage, *, rehash: bool = True) -> Audit:
    data = tmp_path / "data"
    return audit(data, sqlite_url(data / "catalogue.sqlite"), store_url=storage.url, rehash=rehash)


def said(found: Audit) -> set[tuple[str, str]]:
    return {(one.invariant, one.where) for one in found.findings}


def test_a_sound_storage_has_no_findings_and_needs_no_copies(tmp_path: Path, storage: Storage, digest: str) -> None:
    found = looked(tmp_path, storage)
    assert found.findings == ()
    assert (found.counts["objects"], found.counts["objects_read_back"]) == (3, 1)
    assert found.counts["object_bytes"] > 1000
    copy = tmp_path / "data" / "artefacts" / digest
    copy.chmod(0o755)
    shutil.rmtree(copy)
    assert looked(tmp_path, storage).findings == ()


def test_other_bytes_are_found_by_reading_only(tmp_path: Path, storage: Storage, digest: str) -> None:
    objects = Objects(storage.url)
    whole = objects.read(f"{digest}/{WEIGHTS}")
    objects.replace(f"{digest}/{WEIGHTS}", whole[:-1] + bytes([whole[-1] ^ 1]))
    where = f"artefact {digest[:12]} in the object storage"
    assert said(looked(tmp_path, storage)) == {("I6", where), ("I12", where), ("I2", "bard@1")}
    listed = looked(tmp_path, storage, rehash=False)
    assert listed.findings == ()
    assert "objects_read_back" not in listed.counts
    assert Skipped("bytes in the object storage", "it was listed only") in listed.skipped


def test_another_artefacts_manifest_is_found(tmp_path: Path, storage: Storage, digest: str) -> None:
    Objects(storage.url).replace(f"{digest}/manifest.json", b'{"digest": "0"}')
    assert ("I12", f"artefact {digest[:12]} in the object storage") in said(looked(tmp_path, storage))


@pytest.mark.parametrize("name", [WEIGHTS, "adapter_config.json", "manifest.json"])
@pytest.mark.parametrize("rehash", [True, False])
def test_what_is_missing_is_found(tmp_path: Path, storage: Storage, digest: str, name: str, *, rehash: bool) -> None:
    Objects(storage.url).delete(f"{digest}/{name}")
    found = looked(tmp_path, storage, rehash=rehash)
    assert [one.what for one in found.findings] == [f"artefact {digest[:12]}: {name} is not in the object storage"]
    assert "1 artefacts in the object storage are not whole (being written, or garbage)" in found.notes


def test_what_nobody_put_there_is_found_and_garbage_is_none(tmp_path: Path, storage: Storage, digest: str) -> None:
    objects = Objects(storage.url)
    objects.replace(f"{'0' * 64}/manifest.json", b"{}")  # what a gateway that was killed may leave
    assert looked(tmp_path, storage).findings == ()
    objects.replace("notes.txt", b"x")
    objects.replace(f"{digest}/more", b"x")
    assert said(looked(tmp_path, storage)) == {("I3", "object 'notes.txt'"), ("I3", f"object '{digest}/more'")}


def test_a_listing_that_lags_behind_is_no_loss(tmp_path: Path, storage: Storage, digest: str) -> None:
    assert digest
    storage.faults.stale = True
    body = b'<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>'
    storage.faults._listing = body
    found = looked(tmp_path, storage)
    assert found.findings == ()
    assert found.counts["objects"] == 0


def test_the_command_looks_there_too(tmp_path: Path, storage: Storage, digest: str) -> None:
    command = [sys.executable, "-m", "app", "store", "audit", "--data", str(tmp_path / "data"), "--patience", "0"]
    command += ["--store-url", storage.url, "--json"]
    sound = subprocess.run(command, capture_output=True, text=True)
    assert (sound.returncode, json.loads(sound.stdout)["counts"]["objects"]) == (0, 3), sound.stderr
    Objects(storage.url).delete(f"{digest}/{WEIGHTS}")
    assert subprocess.run(command, capture_output=True).returncode == 1


async def test_a_gateway_notices_by_itself_what_is_gone(
    open_gateway: OpenHouse, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.gateway.audit_job.PATIENCE_S", 0.2)
    async with open_gateway(store_url=storage.url, audit_seconds=0.1) as running:
        digest = (await running.http.post("/adapters", files=form("bard"))).json()["digest"]
        await broken(running, 0)
        await asyncio.to_thread(Objects(storage.url).delete, f"{digest}/{WEIGHTS}")
        await broken(running, 1)
