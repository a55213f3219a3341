"""Kept uploads, as they arrived, to be screened again: `<root>/<sha256>`, each file once under its digest.

Untrusted bytes: only this process may read them. They lie beside the artefacts' directory, never in it, because an
engine sees the artefacts and must see nothing else. Only the pipeline opens them, to run them through every stage
again.
"""

import errno
import hashlib
import io
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from app.domain.digest import Digest
from app.domain.errors import ORIGINAL_NOT_KEPT, STORE_FAILED, Refused, Unavailable
from app.domain.lora import Received
from app.store.artefacts.files import disk_errors, sync_directory

ORIGINALS: Final = "originals"
"""Name of the directory in the gateway's data directory."""

DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o400

_PART: Final = ".part"
_CHUNK: Final = 1 << 20
"""Bytes copied and hashed at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Original:
    """Upload, read back and found unchanged. weights: open at its beginning; the receiver closes it."""

    config: bytes
    weights: io.BufferedReader


class KeptUploads:
    """Directory of kept uploads. Its methods block and are thread-safe.

    A kept file stays until no version needs it, even if no more uploads are kept.
    """

    def __init__(self, root: Path, *, keep: bool) -> None:
        """keep: whether new uploads are kept. Raises Unavailable if the directory cannot be made, or made private."""
        self.root: Final = root
        self.keeps: Final = keep
        self._lock: Final = threading.Lock()  # between checking that a file exists and relying on it
        with disk_errors(f"originals directory {root}"):
            if keep:
                root.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
                sync_directory(root.parent)
            if root.is_dir():
                root.chmod(DIRECTORY_MODE)
                for left in root.glob(f".*{_PART}"):  # left by a kill: no digest refers to it
                    left.unlink()

    def keep(self, received: Received, config: bytes, weights: BinaryIO) -> None:
        """Store one upload durably, if uploads are kept at all. weights: seekable; left at any position.

        The version that needs it is in the catalogue already, so that `collect` spares it. Raises Unavailable NO_SPACE,
        or STORE_FAILED, also if the bytes are not those of their digests.
        """
        if not self.keeps:
            return
        self._put(received.config_digest, io.BytesIO(config))
        self._put(received.weights_digest, weights)

    def has(self, received: Received) -> bool:
        """Return whether both files of this upload exist."""
        return all(self._path(digest).is_file() for digest in (received.config_digest, received.weights_digest))

    def open(self, received: Received) -> Original:
        """Read one upload back. Raises Refused ORIGINAL_NOT_KEPT; Unavailable STORE_FAILED if its bytes have changed."""
        with self._reading(received.config_digest) as file:
            config = file.read()
        return Original(config, self._reading(received.weights_digest))

    def digests(self) -> frozenset[Digest]:
        """Return the digest of every file here, needed or not. Raises Unavailable."""
        if not self.root.is_dir():
            return frozenset()
        with disk_errors(f"originals directory {self.root}"):
            names = [name for name in os.listdir(self.root) if not name.startswith(".")]
        found = set()
        for name in names:
            with suppress(ValueError):
                found.add(Digest(name))
        return frozenset(found)

    def read(self, digest: Digest) -> io.BufferedReader:
        """Open one file, at its beginning; the caller closes it. Raises as `open`."""
        return self._reading(digest)

    def take(self, digest: Digest, data: BinaryIO) -> None:
        """Store this file durably and read it back. An intact file that exists already stays, a damaged one is replaced.

        Raises Unavailable, NO_SPACE or STORE_FAILED.
        """
        try:
            self._reading(digest).close()
            return
        except Refused:
            pass
        except Unavailable:  # damaged since: a file gets its name only when complete
            with disk_errors(f"replace original {digest.short}"):
                self._path(digest).unlink()
        self._put(digest, data)
        self._reading(digest).close()

    def collect(self, needed: Callable[[], frozenset[Digest]]) -> int:
        """Remove the files that no version needs, and return their number. needed: called again before each removal."""
        removed = 0
        for digest in sorted(self.digests() - needed()):
            with self._lock:
                if digest not in needed():
                    with disk_errors(f"remove original {digest.short}"), suppress(FileNotFoundError):
                        self._path(digest).unlink()
                        removed += 1
        if removed:
            with disk_errors("remove originals"):
                sync_directory(self.root)
        return removed

    def _path(self, digest: Digest) -> Path:
        return self.root / digest.hex

    def _put(self, digest: Digest, data: BinaryIO) -> None:
        fresh = self.root / f".{secrets.token_hex(16)}{_PART}"
        with disk_errors(f"keep original {digest.short}"):
            try:
                with self._lock:
                    if self._path(digest).is_file():
                        return
                _copy(data, fresh, digest)
                with self._lock:
                    os.rename(fresh, self._path(digest))  # over the same bytes, if another thread was faster
                sync_directory(self.root)
            finally:
                fresh.unlink(missing_ok=True)

    def _reading(self, digest: Digest) -> io.BufferedReader:
        """Open the file, hash it through the same descriptor, and rewind."""
        with disk_errors(f"original {digest.short}"):
            try:
                fd = os.open(self._path(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    raise Refused(ORIGINAL_NOT_KEPT, "what was uploaded was not kept") from error
                raise
            file = open(fd, "rb")  # noqa: SIM115 - the caller closes it
            try:
                hashed = hashlib.sha256()
                for chunk in _chunks(file):
                    hashed.update(chunk)
                if hashed.hexdigest() != digest.hex:
                    raise Unavailable(STORE_FAILED, f"original {digest.short}: its bytes are not those that arrived")
                file.seek(0)
            except BaseException:
                file.close()
                raise
            return file


def _copy(data: BinaryIO, path: Path, digest: Digest) -> None:
    """Write all of `data` to a new file, on the disk when this returns. Raises OSError; Unavailable for other bytes."""
    data.seek(0)
    hashed = hashlib.sha256()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    with open(fd, "wb", buffering=0) as file:
        for chunk in _chunks(data):
            hashed.update(chunk)
            rest = memoryview(chunk)
            while rest:
                rest = rest[file.write(rest) :]
        os.fsync(fd)
    if hashed.hexdigest() != digest.hex:
        raise Unavailable(STORE_FAILED, f"original {digest.short}: other bytes were handed over than arrived")


def _chunks(data: BinaryIO) -> Iterator[bytes]:
    while chunk := data.read(_CHUNK):
        yield chunk
