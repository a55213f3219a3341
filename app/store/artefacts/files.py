"""File operations that the store's durability rests on, and the conversion of disk errors."""

import ctypes
import errno
import fcntl
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from app.domain.digest import Digest
from app.domain.errors import NO_SPACE, STORE_BUSY, STORE_FAILED, Unavailable

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_VOLATILE: Final = frozenset({"tmpfs", "ramfs"})
"""File systems that accept fsync and lose everything at the next boot."""

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
"""Linux's constants for renameat2."""

_log = logging.getLogger(__name__)


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Convert an OSError inside into Unavailable NO_SPACE (disk or quota full) or STORE_FAILED, prefixed with `doing`."""
    try:
        yield
    except OSError as error:
        code = NO_SPACE if error.errno in _FULL else STORE_FAILED
        raise Unavailable(code, f"{doing}: {error.strerror or error}") from error


def entries_of(directory: Path) -> list["os.DirEntry[str]"]:
    """Return a directory's entries. Unlike with a bare `os.scandir`, the directory is closed whatever the caller raises."""
    with os.scandir(directory) as found:
        return list(found)


def digests_in(root: Path) -> frozenset[Digest]:
    """Return the digests that entries of `root` are named by; other entries are ignored. Raises Unavailable."""
    with disk_errors(f"store directory {root}"):
        names = [name for name in os.listdir(root) if not name.startswith(".")]
    found = []
    for name in names:
        with suppress(ValueError):
            found.append(Digest(name))
    return frozenset(found)


def write_durably(path: Path, data: bytes, mode: int) -> None:
    """Create `path` (it must not exist), write all of `data`, set `mode`, and wait until the data is on the disk."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fchmod(fd, mode)
        os.fsync(fd)
    finally:
        os.close(fd)


def create_once(path: Path, data: bytes, mode: int) -> None:
    """Create `path` with all of `data`, or not at all; a file that exists already is left unchanged. Raises OSError."""
    fresh = path.with_name(f"{path.name}-{secrets.token_hex(8)}")
    try:
        write_durably(fresh, data, mode)
        with suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Wait until the names in this directory are on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def exchange(one: Path, other: Path) -> None:
    """Swap two names of one file system in one step, so that neither is ever missing.

    Raises OSError; EINVAL or ENOSYS if the file system or the kernel does not support it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        done = libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    except AttributeError:
        raise OSError(errno.ENOSYS, "no renameat2 here") from None
    if done != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def discard(path: Path) -> None:
    """Remove whatever exists at `path`: nothing, a half-written artefact, or a damaged one. Ignores errors."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def probe(directory: Path) -> None:
    """Prove that files in `directory` can be written, synced, renamed and removed. Raises Unavailable if not."""
    with disk_errors(f"store directory {directory} does not hold what is written"):
        before, after = directory / f"probe-{secrets.token_hex(8)}", directory / f"probed-{secrets.token_hex(8)}"
        write_durably(before, b"probe", 0o600)
        os.rename(before, after)
        sync_directory(directory)
        if after.read_bytes() != b"probe":
            raise OSError(errno.EIO, "what was read is not what was written")
        after.unlink()
    if (kind := filesystem_of(directory)) in _VOLATILE:
        _log.warning("store directory %s lies on %s: everything in it is gone after a reboot", directory, kind)


def filesystem_of(path: Path) -> str:
    """Return the type of the file system that holds `path` (`ext4`, `tmpfs`, …); empty if Linux does not report it."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    best, kind, real = -1, "", path.resolve()
    for line in lines:
        left, _, right = line.partition(" - ")
        mount = Path(left.split()[4].replace("\\040", " "))
        if (real == mount or mount in real.parents) and len(mount.parts) >= best:
            best, kind = len(mount.parts), right.split()[0]
    return kind


class StoreLock:
    """Advisory lock on a store, for one gateway or for those that share its catalogue.

    The kernel releases it when the holder's process ends, however it ends.
    """

    def __init__(self, path: Path, *, shared: bool = False) -> None:
        """Take the lock file at `path`. Raises Unavailable STORE_BUSY, naming the holder's pid, if it is held.

        shared: held together with other shared holders; excludes an exclusive one.
        """
        with disk_errors(f"lock {path}"):
            self._fd: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            self._acquire(self._fd, path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        except BaseException:
            self.release()
            raise

    @staticmethod
    def _acquire(fd: int, path: Path, how: int) -> None:
        with disk_errors(f"lock {path}"):
            try:
                fcntl.flock(fd, how | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
                raise Unavailable(STORE_BUSY, f"{path.parent} is held by another gateway, process {holder}") from None
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Release the lock; calling it again is harmless."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)
