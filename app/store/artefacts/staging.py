"""Staging directory: artefacts that are being written, and removed ones that are being deleted."""

import fcntl
import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

from app.domain.errors import STORE_FAILED, Unavailable
from app.store.artefacts.files import create_once, disk_errors, entries_of

MARK: Final = ".store"
_MARK: Final = re.compile(r"[0-9a-f]{32}\n?")
_MARK_MODE: Final = 0o444


class Staging:
    """Directory on the store's own file system: all of it or, if several gateways share it, a locked subdirectory.

    The kernel releases the lock when the process ends, so the next process can tell a crash's leftovers from the files
    that another gateway is working on.
    """

    def __init__(self, root: Path, *, shared: bool) -> None:
        """Sweep entries that no gateway has locked. Raises Unavailable."""
        self._fd: int | None = None
        with disk_errors(f"sweep {root}"):
            root.mkdir(mode=0o700, exist_ok=True)
            for entry in entries_of(root):
                _sweep(entry)
            self.path: Final = self._part(root) if shared else root

    def fresh(self) -> Path:
        """Return an unused path."""
        return self.path / secrets.token_hex(16)

    def close(self) -> None:
        """Release the directory; the next process may sweep it."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with suppress(OSError):  # not empty: swept by the next process
                self.path.rmdir()
            os.close(fd)

    def _part(self, root: Path) -> Path:
        while True:
            path = root / f"gateway-{secrets.token_hex(8)}"
            path.mkdir(mode=0o700)
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            if path.exists():
                return path
            os.close(self._fd)  # another gateway swept it between mkdir and flock


def _sweep(entry: "os.DirEntry[str]") -> None:
    if not entry.is_dir(follow_symlinks=False):
        with suppress(FileNotFoundError):
            os.unlink(entry.path)
        return
    try:
        os.chmod(entry.path, 0o700)
        fd = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return  # another gateway sweeps, too
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(entry.path, ignore_errors=True)
    except BlockingIOError:
        pass  # in use by a running gateway
    finally:
        os.close(fd)


def mark_of(root: Path) -> str:
    """Return the random id that tells this directory of artefacts from any other; created on first use.

    Raises Unavailable; STORE_FAILED also if the file that holds it is damaged.
    """
    path = root / MARK
    with disk_errors(f"mark {root}"):
        if not path.exists():
            create_once(path, f"{secrets.token_hex(16)}\n".encode(), _MARK_MODE)
        mark = path.read_text(encoding="ascii", errors="replace")
    if not _MARK.fullmatch(mark):
        raise Unavailable(
            STORE_FAILED,
            f"{path} is damaged: it must hold 32 hexadecimal digits and holds {len(mark)} other characters; restore it "
            "from a backup: the catalogue has it too",
        )
    return mark.strip()
