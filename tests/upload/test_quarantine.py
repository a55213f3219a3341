"""Files without names, written once, read-only afterwards, gone when closed or killed."""

import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.domain.digest import digest_of
from app.domain.errors import INTERNAL, NO_SPACE, Unavailable
from app.upload.quarantine import Quarantine


@pytest.fixture
def quarantine(tmp_path: Path) -> Iterator[Quarantine]:
    opened = Quarantine(tmp_path / "q")
    yield opened
    opened.close()
    opened.close()


def test_what_is_sealed_is_what_was_written(quarantine: Quarantine, tmp_path: Path) -> None:
    file = quarantine.new()
    file.write(b"one")
    file.write(memoryview(b"-two-")[1:4])
    assert quarantine.open_files == 1
    with file.seal() as sealed:
        assert sealed.size == 6
        assert sealed.digest == digest_of(b"onetwo")
        assert sealed.file.read() == b"onetwo"
        assert list((tmp_path / "q").iterdir()) == []
    assert sealed.file.closed
    sealed.close()
    file.discard()
    assert quarantine.open_files == 0


@pytest.mark.ruling("S20")
def test_a_sealed_file_cannot_be_written(quarantine: Quarantine) -> None:
    with quarantine.new().seal() as sealed:
        assert not sealed.file.writable()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(sealed.file.fileno(), b"x")
        with pytest.raises(OSError):
            os.ftruncate(sealed.file.fileno(), 0)


@pytest.mark.ruling("S20", "S21")
def test_a_file_has_no_name_and_no_other_link(quarantine: Quarantine, tmp_path: Path) -> None:
    file = quarantine.new()
    assert list((tmp_path / "q").iterdir()) == []
    with file.seal() as sealed:
        found = os.fstat(sealed.file.fileno())
        assert found.st_nlink == 0
        assert stat.S_IMODE(found.st_mode) == 0o600


def test_discarding_twice_is_one_discard(quarantine: Quarantine) -> None:
    file = quarantine.new()
    file.discard()
    file.discard()
    assert quarantine.open_files == 0


@pytest.mark.ruling("S20")
def test_the_directory_becomes_private(tmp_path: Path) -> None:
    place = tmp_path / "a" / "q"
    place.mkdir(parents=True, mode=0o755)
    Quarantine(place).close()
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


@pytest.mark.ruling("S21")
def test_a_link_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "q").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        Quarantine(tmp_path / "q")


def test_somebody_elses_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(PermissionError):
        Quarantine(tmp_path / "q")


def test_the_sweep_takes_left_overs_and_nothing_else(tmp_path: Path) -> None:
    place = tmp_path / "q"
    place.mkdir()
    (place / f"{'0a' * 16}.part").write_bytes(b"left over")
    (place / "README").write_bytes(b"an operator's")
    (place / f"{'0A' * 16}.part").write_bytes(b"not our naming")
    Quarantine(place).close()
    assert sorted(path.name for path in place.iterdir()) == [f"{'0A' * 16}.part", "README"]


def test_the_floor_keeps_disk_free(tmp_path: Path) -> None:
    fs = os.statvfs(tmp_path)
    quarantine = Quarantine(tmp_path / "q", free_disk_floor_bytes=2 * fs.f_blocks * fs.f_frsize)
    with pytest.raises(Unavailable) as caught:
        quarantine.check_space()
    assert caught.value.code is NO_SPACE
    file = quarantine.new()
    with pytest.raises(Unavailable) as caught:
        file.write(b"x")
    assert caught.value.code is NO_SPACE
    file.discard()


def test_what_is_announced_counts_against_the_floor(quarantine: Quarantine) -> None:
    quarantine.check_space(1)
    with pytest.raises(Unavailable) as caught:
        quarantine.check_space(1 << 60)
    assert caught.value.code is NO_SPACE


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, NO_SPACE), (errno.EDQUOT, NO_SPACE), (errno.EIO, INTERNAL)]
)
def test_a_failing_write_is_named(tmp_path: Path, number: int, code: object) -> None:
    """A device that always fails, by way of a writer that does (the tmpfs test below is the real thing)."""
    quarantine = Quarantine(tmp_path / "q")
    file = quarantine.new()

    class Broken:
        closed = False

        def write(self, data: object) -> int:
            raise OSError(number, os.strerror(number))

        def close(self) -> None:
            self.closed = True

    file._writer.close()
    file._writer = Broken()  # type: ignore[assignment]
    with pytest.raises(Unavailable) as caught:
        file.write(b"x")
    assert caught.value.code is code
    file.discard()
    assert quarantine.open_files == 0


def test_short_writes_are_finished(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q")
    file = quarantine.new()
    real = file._writer

    class Hesitant:
        def write(self, data: memoryview) -> int:
            return real.write(data[:3]) or 0

        def close(self) -> None:
            real.close()

    file._writer = Hesitant()  # type: ignore[assignment]
    file.write(b"0123456789")
    with file.seal() as sealed:
        assert sealed.file.read() == b"0123456789"
        assert sealed.digest == digest_of(b"0123456789")


def test_bytes_that_did_not_reach_the_disk_are_noticed(quarantine: Quarantine) -> None:
    file = quarantine.new()
    file.write(b"0123456789")
    os.ftruncate(file._writer.fileno(), 4)
    with pytest.raises(Unavailable) as caught:
        file.seal()
    assert caught.value.code is INTERNAL
    file.discard()
    assert quarantine.open_files == 0


def test_a_quarantine_that_vanished_is_named(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q")
    (tmp_path / "q").rmdir()
    with pytest.raises(Unavailable) as caught:
        quarantine.new()
    assert caught.value.code is INTERNAL
    assert quarantine.open_files == 0


def test_a_real_full_disk(tmp_path: Path) -> None:
    """A tmpfs of 1 MiB; skipped where mounting is not allowed."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        quarantine = Quarantine(place / "q")
        file = quarantine.new()
        with pytest.raises(Unavailable) as caught:
            file.write(bytes(2 << 20))
        assert caught.value.code is NO_SPACE
        file.discard()
        again = quarantine.new()  # the space is back at once
        again.write(bytes(900 << 10))
        again.seal().close()
        quarantine.close()
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_kill_leaves_nothing(tmp_path: Path) -> None:
    """SIGKILL with one file half-written and one sealed: the directory is empty before any sweep."""
    script = f"""
        import os, signal
        from pathlib import Path
        from app.upload.quarantine import Quarantine
        q = Quarantine(Path({str(tmp_path / "q")!r}))
        half = q.new(); half.write(b"x" * 100_000)
        whole = q.new(); whole.write(b"y" * 100_000); sealed = whole.seal()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    assert list((tmp_path / "q").iterdir()) == []
