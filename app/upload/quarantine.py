"""Quarantine: a private directory for received files, which are unlinked as soon as they are open.

A file is created under a random name, opened for reading through the same inode, and unlinked, all before the first byte
of the upload is written. A gateway killed at any later moment leaves nothing behind: the kernel frees the space.
"""

import errno
import hashlib
import io
import os
import re
import secrets
import stat
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from app.domain.digest import Digest
from app.domain.errors import INTERNAL, NO_SPACE, Unavailable

NAME_BYTES: Final = 16
"""Random bytes of a file's name: cannot be guessed and never repeat."""

_FILE_NAME = re.compile(rf"[0-9a-f]{{{2 * NAME_BYTES}}}\.part")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_PRIVATE_DIR: Final = 0o700
_PRIVATE_FILE: Final = 0o600


@dataclass(frozen=True, slots=True, eq=False)
class SealedFile:
    """One received file that can no longer change: it has no name and no writer.

    file: open for reading only, at any position. size: bytes. digest: SHA-256 of the bytes as they were written.
    """

    file: io.BufferedReader
    size: int
    digest: Digest
    _count: Callable[[int, int], None]

    def close(self) -> None:
        """Free the file's disk space. May be called more than once."""
        if not self.file.closed:
            self.file.close()
            self._count(-1, -self.size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class UnsealedFile:
    """A file being received. Written by one thread at a time; ends with `seal` or `discard`."""

    def __init__(
        self, writer: io.FileIO, reader: io.BufferedReader, space: Callable[[], None], count: Callable[[int, int], None]
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._check_space = space
        self._count = count
        self._hash = hashlib.sha256()
        self._size = 0
        self._settled = False

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._size

    def write(self, data: bytes | memoryview) -> None:
        """Append and digest data. Raises Unavailable NO_SPACE if the disk is full or has less than the floor free."""
        self._check_space()
        rest = memoryview(data)
        try:
            while rest:
                written = self._writer.write(rest)
                self._hash.update(rest[:written])
                self._size += written
                self._count(0, written)
                rest = rest[written:]
        except OSError as error:
            raise _unwritable(error) from error

    def seal(self) -> SealedFile:
        """Close the only writer. The digest covers the bytes passed to `write`; their number must equal the file's size."""
        self._writer.close()
        found = os.fstat(self._reader.fileno()).st_size
        if found != self._size:
            raise Unavailable(INTERNAL, f"quarantine: {found} bytes on disk where {self._size} were written")
        self._settled = True
        return SealedFile(self._reader, self._size, Digest(self._hash.hexdigest()), self._count)

    def discard(self) -> None:
        """Drop the file, unless it was sealed. May be called more than once."""
        if not self._settled:
            self._settled = True
            self._writer.close()
            self._reader.close()
            self._count(-1, -self._size)


class Quarantine:
    """The quarantine directory. One per gateway; thread-safe."""

    def __init__(self, directory: Path, free_disk_floor_bytes: int = 0) -> None:
        """Create the directory, make it private and remove files that a killed gateway left there.

        Raises OSError if it cannot be created or belongs to another user.
        """
        self._floor = free_disk_floor_bytes
        self._lock = threading.Lock()
        self._open = self._bytes = 0
        directory.mkdir(mode=_PRIVATE_DIR, parents=True, exist_ok=True)
        self._dir = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(self._dir).st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "the quarantine belongs to another user", str(directory))
            os.fchmod(self._dir, _PRIVATE_DIR)
            self._sweep()
        except BaseException:
            os.close(self._dir)
            raise

    @property
    def open_files(self) -> int:
        """Number of open files, sealed or not."""
        return self._open

    @property
    def open_bytes(self) -> int:
        """Bytes in the open files."""
        return self._bytes

    def close(self) -> None:
        """Close the directory. Files still open stay readable."""
        if self._dir >= 0:
            os.close(self._dir)
            self._dir = -1

    def check_space(self, wanted: int = 0) -> None:
        """Raise Unavailable NO_SPACE unless `wanted` more bytes would leave the floor free."""
        fs = os.fstatvfs(self._dir)
        free = fs.f_bavail * fs.f_frsize
        if free - wanted < self._floor:
            raise Unavailable(NO_SPACE, f"{free} bytes free, {wanted} wanted, and {self._floor} must stay free")

    def new(self) -> UnsealedFile:
        """Create an empty file without a name. Raises Unavailable NO_SPACE, or INTERNAL if it cannot be created."""
        name = f"{secrets.token_hex(NAME_BYTES)}.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with ExitStack() as undo:
            try:
                writer = io.FileIO(os.open(name, flags, _PRIVATE_FILE, dir_fd=self._dir), "w")
                undo.callback(writer.close)
                try:
                    reader = self._reader_of(writer, name)
                finally:
                    os.unlink(name, dir_fd=self._dir)
            except OSError as error:
                raise _unwritable(error) from error
            undo.pop_all()
        self._count(1, 0)
        return UnsealedFile(writer, reader, self.check_space, self._count)

    def _reader_of(self, writer: io.FileIO, name: str) -> io.BufferedReader:
        """Open the new, still empty file a second time, for reading; it must be the same inode."""
        reader = open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._dir), "rb")  # noqa: SIM115
        ours, theirs = os.fstat(writer.fileno()), os.fstat(reader.fileno())
        if not os.path.samestat(ours, theirs) or not stat.S_ISREG(ours.st_mode) or ours.st_nlink != 1:
            reader.close()
            raise OSError(errno.EPERM, "a quarantine file was replaced while it was made")
        return reader

    def _count(self, files: int, size: int) -> None:
        with self._lock:
            self._open += files
            self._bytes += size

    def _sweep(self) -> None:
        """Remove files with names of this module: left by a kill between creation and unlink."""
        for name in os.listdir(self._dir):
            if _FILE_NAME.fullmatch(name):
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=self._dir)


def _unwritable(error: OSError) -> Unavailable:
    if error.errno in _FULL:
        return Unavailable(NO_SPACE, "the disk is full")
    return Unavailable(INTERNAL, f"quarantine: {error.strerror or type(error).__name__}")
