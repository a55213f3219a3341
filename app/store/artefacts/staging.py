"""Where artefacts are written before they have a name, and where those that lost it wait to be removed."""

import fcntl
import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

from app.domain.errors import STORE_FAILED, Unavailable
from app.store.artefacts.files import create_once, disk_errors

MARK: Final = ".store"
_MARK: Final = re.compile(r"[0-9a-f]{32}\n?")
_MARK_MODE: Final = 0o444


class Staging:
    """A directory on the store's own file system: the whole of it, or where several gateways share, a locked part.

    The lock is the kernel's and ends with the process, so whoever comes next can tell what a crash left from what
    another is at work on.
    """

    def __init__(self, root: Path, *, shared: bool) -> None:
        """Sweep what nobody holds. Raises Unavailable."""
        self._fd: int | None = None
        with disk_errors(f"sweep {root}"):
            root.mkdir(mode=0o700, exist_ok=True)
            for entry in os.scandir(root):
                _sweep(entry)
            self.path: Final = self._part(root) if shared else root

    def fresh(self) -> Path:
        """A name nobody has."""
        return self.path / secrets.token_hex(16)

    def close(self) -> None:
        """Whoever comes next may sweep it."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with suppress(OSError):  # not empty: swept by the next
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
            os.close(self._fd)  # somebody swept it between the two


def _sweep(entry: "os.DirEntry[str]") -> None:
    if not entry.is_dir(follow_symlinks=False):
        with suppress(FileNotFoundError):
            os.unlink(entry.path)
        return
    try:
        os.chmod(entry.path, 0o700)
        fd = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return  # another sweeps too
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(entry.path, ignore_errors=True)
    except BlockingIOError:
        pass  # a gateway that lives is at work there
    finally:
        os.close(fd)


def mark_of(root: Path) -> str:
    """Random word that tells this directory of artefacts from any other; made the first time.

    Raises Unavailable; STORE_FAILED too when the file that holds it is damaged.
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
