"""Full disks, read-only directories and file systems that forget, on real mounts."""

import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.domain.errors import NO_SPACE, STORE_FAILED, Unavailable
from app.domain.version_state import State
from app.store.artefacts.files import filesystem_of
from app.store.artefacts.local import STAGING, BlobStore
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.database import sqlite_url
from tests.store.making import NAME, artefact, begun, noise, published, received, verdict

MOUNT_BYTES = 2 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={MOUNT_BYTES}", "tmpfs", str(place)]
    if os.getuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs needs root and the right to mount")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path, leave: int = 0) -> Path:
    """Use up the disk but for `leave` bytes."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 4096):
                pass
        except OSError:
            pass
        size = file.tell()
        file.truncate(max(0, size - leave))
    return ballast


@pytest.mark.parametrize("leave", [0, 8 << 10, 64 << 10])
def test_a_full_disk_refuses_and_keeps_what_it_has(small_disk: Path, leave: int) -> None:
    with BlobStore(small_disk / "store") as store:
        kept, wanted = artefact(1), artefact(2, size=300_000)
        store.put(kept)
        ballast = fill(small_disk, leave)
        for _ in range(3):
            with pytest.raises(Unavailable) as caught:
                store.put(wanted)
            assert caught.value.code is NO_SPACE
            assert store.digests() == {kept.digest}
            assert os.listdir(store.root / STAGING) == []
        store.verify(kept.digest)
        ballast.unlink()
        store.put(wanted)
        store.verify(wanted.digest)


def test_a_full_disk_under_the_catalogue_refuses_and_keeps_what_it_has(small_disk: Path) -> None:
    catalogue = Catalogue(sqlite_url(small_disk / "c.db"))
    kept = published(catalogue, 1)
    number = begun(catalogue, NAME, received(2)).number
    catalogue.record_validated(NAME, number)
    ballast = fill(small_disk)
    report = noise(1, 200_000).hex()
    for _ in range(3):
        with pytest.raises(Unavailable) as caught:
            catalogue.record_screened(NAME, number, verdict(), report)
        assert caught.value.code in {NO_SPACE, STORE_FAILED}
    assert catalogue.resolve(NAME) == kept
    assert catalogue.version(NAME, number).state is State.VALIDATED
    ballast.unlink()
    assert catalogue.record_screened(NAME, number, verdict(), report).state is State.SCREENED
    catalogue.close()
    catalogue = Catalogue(sqlite_url(small_disk / "c.db"))
    assert catalogue.report(NAME, number) == report
    catalogue.close()


def test_a_full_disk_at_the_start_says_so(small_disk: Path) -> None:
    BlobStore(small_disk).close()
    fill(small_disk)
    with pytest.raises(Unavailable) as caught:
        BlobStore(small_disk)
    assert caught.value.code is NO_SPACE


@pytest.mark.ruling("O03")
def test_a_read_only_file_system_is_refused_at_the_start(small_disk: Path) -> None:
    BlobStore(small_disk / "store").close()
    Catalogue(sqlite_url(small_disk / "c.db")).close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for name in ("store", "new"):
        with pytest.raises(Unavailable, match=r"(?i)read-only") as caught:
            BlobStore(small_disk / name)
        assert caught.value.code is STORE_FAILED
    with pytest.raises(Unavailable, match=r"catalogue: ") as caught:
        Catalogue(sqlite_url(small_disk / "c.db"))
    assert caught.value.code is STORE_FAILED


@pytest.mark.ruling("O03")
def test_a_file_system_that_forgets_is_named(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert filesystem_of(small_disk / "store") == "tmpfs"
    with caplog.at_level(logging.WARNING), BlobStore(small_disk / "store"):
        assert "tmpfs" in caplog.text


def test_a_directory_without_the_right_to_write_is_refused(tmp_path: Path) -> None:
    if os.getuid() == 0:
        pytest.skip("root may write anywhere; the read-only mount is the test for root")
    tmp_path.chmod(0o555)
    with pytest.raises(Unavailable) as caught:
        BlobStore(tmp_path)
    assert caught.value.code is STORE_FAILED


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(Unavailable) as caught:
            BlobStore(root)
        assert caught.value.code is STORE_FAILED


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unavailable):
        BlobStore(tmp_path / "store")
    assert (tmp_path / "elsewhere").read_text() == "precious"


def test_a_failed_start_gives_the_lock_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            "app.store.artefacts.local.probe", lambda _: (_ for _ in ()).throw(Unavailable(STORE_FAILED, "no"))
        )
        with pytest.raises(Unavailable):
            BlobStore(tmp_path)
    BlobStore(tmp_path).close()
