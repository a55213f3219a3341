"""Artefacts on this machine: `<cache>/<sha256>/{adapter_config.json, adapter_model.safetensors}`, verified and read-only.

vLLM reads an adapter's files again whenever its own memory had no room for it, and dies when they are gone. So what this
process gave to vLLM is never removed; room is made of what earlier processes left, least recently used first, and when
that is not enough, further adapters are refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lora_gateway_vllm.artefact import FILES, Artefact, digest_of, hash_file
from lora_gateway_vllm.errors import Full, Trouble

STAGING: Final = ".staging"
LOCK: Final = ".lock"
HEX_DIGITS: Final = 64
FILE_MODE: Final = 0o444
DIRECTORY_MODE: Final = 0o555
_OPEN_MODE: Final = 0o755


class Cache:
    """The directory; one process at a time has it. Every method blocks, and may be called from any thread."""

    def __init__(self, root: Path, limit_bytes: int) -> None:
        """Take the directory, and sweep what a kill left half written. Raises Trouble when another engine has it."""
        self.root, self._limit = root, limit_bytes
        self._given: set[str] = set()
        self._reserved = 0
        self._looking = threading.Lock()
        with _disk(f"cache {root}"):
            root.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._lock)
                raise Trouble(f"cache {root} belongs to another engine that is running: each needs its own") from None
            shutil.rmtree(root / STAGING, ignore_errors=True)
            (root / STAGING).mkdir(mode=0o700, exist_ok=True)

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._lock)

    def find(self, artefact: Artefact) -> Path | None:
        """The artefact's directory, verified now, and kept for as long as this process lives; None when it is not there,
        or not whole: then it is thrown away. Raises Trouble.
        """
        home = self.root / artefact.digest
        with self._looking:
            if not home.is_dir():
                return None
            if artefact.digest not in self._given:
                if not _is_whole(home, artefact.digest):
                    self._remove(artefact.digest)
                    return None
                with contextlib.suppress(OSError):  # the order in which they go; nothing more hangs on it
                    os.utime(home)
                self._given.add(artefact.digest)
            return home

    @contextlib.contextmanager
    def staged(self, artefact: Artefact) -> Iterator[Path]:
        """Room for the artefact's bytes and an empty directory to write its files in, gone afterwards. Raises Full."""
        with self._looking:
            self._make_room(artefact.bytes)
            self._reserved += artefact.bytes
        folder = self.root / STAGING / secrets.token_hex(8)
        try:
            with _disk(f"cache {self.root}"):
                folder.mkdir(mode=0o700)
            yield folder
        finally:
            with self._looking:
                self._reserved -= artefact.bytes
            shutil.rmtree(folder, ignore_errors=True)

    def keep(self, artefact: Artefact, folder: Path) -> Path:
        """Make a staged directory, whose bytes were verified, the artefact's. Raises Trouble."""
        home = self.root / artefact.digest
        with self._looking, _disk(f"cache {self.root}"):
            for name in FILES:
                (folder / name).chmod(FILE_MODE)
            os.rename(folder, home)
            home.chmod(DIRECTORY_MODE)
            self._given.add(artefact.digest)
        return home

    @property
    def used_bytes(self) -> int:
        """Bytes of all artefacts, with those that are being fetched."""
        return sum(_size(self.root / digest) for digest in self._digests()) + self._reserved

    def _make_room(self, wanted: int) -> None:
        with _disk(f"cache {self.root}"):
            spare = [digest for digest in self._digests() if digest not in self._given]
            oldest_first = sorted(spare, key=lambda digest: (self.root / digest).stat().st_mtime_ns)
            free = self._limit - self.used_bytes
        for digest in oldest_first:
            if free >= wanted:
                return
            free += _size(self.root / digest)
            self._remove(digest)
        if free < wanted:
            raise Full(
                f"the cache of {self._limit} bytes has no room for {wanted} more: vLLM may still read all that is there; "
                "give it more, or restart this engine"
            )

    def _digests(self) -> list[str]:
        with os.scandir(self.root) as entries:
            return [entry.name for entry in entries if len(entry.name) == HEX_DIGITS and entry.is_dir()]

    def _remove(self, digest: str) -> None:
        """In one step: a kill leaves it whole, or in staging."""
        home, grave = self.root / digest, self.root / STAGING / secrets.token_hex(8)
        with _disk(f"cache {self.root}"):
            home.chmod(_OPEN_MODE)
            os.rename(home, grave)
            shutil.rmtree(grave)


def _is_whole(home: Path, digest: str) -> bool:
    try:
        if set(os.listdir(home)) != set(FILES):
            return False
        if any((home / name).is_symlink() for name in FILES):
            return False
        return digest_of({name: hash_file(home / name) for name in FILES}) == digest
    except OSError:
        return False


def _size(home: Path) -> int:
    with os.scandir(home) as entries:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)


@contextlib.contextmanager
def _disk(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Full(f"{doing}: {error.strerror}") from error
