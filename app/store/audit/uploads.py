"""Audit of kept uploads: untrusted bytes, which only the gateway may read, and never an engine.

As in snapshot.py, nothing here uses the code that keeps them.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from app.domain.digest import SHORT
from app.domain.version_state import IN_FLIGHT, SERVABLE, State
from app.store.artefacts.files import entries_of
from app.store.audit.rules import Finding, Findings
from app.store.audit.snapshot import CatalogueSeen

ORIGINALS: Final = "originals"
BY_OTHERS: Final = 0o077
WRITABLE: Final = 0o222
NEEDED: Final = frozenset({*IN_FLIGHT, State.STORED, *SERVABLE})
"""States of versions that may be screened again."""

_CHUNK: Final = 1 << 20


def originals(data: Path, artefacts: Path, seen: CatalogueSeen, *, gateway_running: bool) -> Findings:
    """Check kept uploads: I1, I6 and, beside a running gateway, I10.

    I1: no engine can reach them. I6: the bytes are those that arrived. I10: some version needs each file. data: the
    gateway's data directory; artefacts: the directory that engines may see.
    """
    root = data / ORIGINALS
    if not os.path.lexists(root):
        return
    real, seen_by_engines = root.resolve(), artefacts.resolve()
    if root.is_symlink() or real == seen_by_engines or seen_by_engines in real.parents:
        yield Finding("I1", ORIGINALS, f"lie at {real}")
        return
    if root.stat().st_mode & BY_OTHERS:
        yield Finding("I1", ORIGINALS, "others may read them")
    rows = [row for one in seen.adapters for row in one.versions if row.state in NEEDED]
    needed = {digest for row in rows for digest in (row.config_digest, row.weights_digest)}
    for entry in _entries(root):
        yield from _original(entry)
        if gateway_running and entry.name not in needed:
            yield Finding("I10", f"original {entry.name[:SHORT]}", "no version needs it")


def count(data: Path) -> int:
    """Return the number of kept files."""
    return sum(1 for _ in _entries(data / ORIGINALS))


def _entries(root: Path) -> Iterator["os.DirEntry[str]"]:
    if root.is_dir():
        yield from (entry for entry in entries_of(root) if not entry.name.startswith("."))


def _original(entry: "os.DirEntry[str]") -> Findings:
    at = f"original {entry.name[:SHORT]}"
    try:
        found = entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode):
            yield Finding("I6", at, "is no plain file")
            return
        digest = _sha256(entry.path)
    except FileNotFoundError:  # removed meanwhile
        return
    except OSError as error:
        yield Finding("I6", at, f"cannot be read: {error.strerror}")
        return
    if digest != entry.name:
        yield Finding("I6", at, f"its bytes have the digest {digest[:SHORT]}")
    if found.st_mode & (BY_OTHERS | WRITABLE):
        yield Finding("I1", at, "others may read it, or it may be written")
    if found.st_nlink != 1:  # the other hard link may be in a directory that engines read
        yield Finding("I1", at, f"has {found.st_nlink} names")


def _sha256(path: str) -> str:
    hashed = hashlib.sha256()
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            hashed.update(chunk)
    return hashed.hexdigest()
