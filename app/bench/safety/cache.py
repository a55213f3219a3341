"""Cache of generated folders, keyed by the digest of their inputs; an entry is used only if it is intact."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

RECIPE: Final = 1
"""Version that is part of every key: to be raised if the code makes different contents from the same plan."""

SEAL: Final = "sealed.json"


@dataclass(frozen=True, slots=True)
class Cache:
    """Directory of sealed folders. rebuilt: callback for an entry whose bytes differ from the sealed ones."""

    root: Path
    rebuilt: Callable[[Path], None] = lambda _: None

    def folder(self, kind: str, spec: Any, make: Callable[[Path], None]) -> Path:
        """Return the folder for `spec` (a dataclass or plain values); `make(folder)` creates it if missing or damaged."""
        path = self._path(kind, spec)
        if path.exists():
            if _intact(path):
                return path
            self.rebuilt(path)
            shutil.rmtree(path)
        stage = path.with_name(f".{path.name}.making")
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        make(stage)
        (stage / SEAL).write_text(json.dumps(_digests(stage), indent=1), encoding="utf-8")
        stage.rename(path)
        return path

    def has(self, kind: str, spec: Any) -> bool:
        """Return whether that folder exists and is intact."""
        return _intact(self._path(kind, spec))

    def _path(self, kind: str, spec: Any) -> Path:
        return self.root / f"{kind}-{_key(kind, spec)}"


def _key(kind: str, spec: Any) -> str:
    fields = [_plain_values(one) for one in spec] if isinstance(spec, tuple) else _plain_values(spec)
    text = json.dumps([RECIPE, kind, fields], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain_values(value: Any) -> Any:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _intact(folder: Path) -> bool:
    try:
        sealed = json.loads((folder / SEAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(sealed == _digests(folder))
