"""Which kind of store a URL means."""

import secrets
from pathlib import Path
from typing import Final

from sqlalchemy.engine import make_url

from app.store.blobs import BlobStore
from app.store.disk import disk_errors
from app.store.objects import Objects
from app.store.remote import RemoteBlobs

OWNER_FILE: Final = "store-owner"
"""In the data directory beside a SQLite catalogue: the name by which the object storage knows that catalogue."""


def open_blobs(root: Path, url: str | None, catalogue_url: str) -> BlobStore:
    """Artefacts in the directory `root`, or, with an `s3://bucket/prefix`, there, and copies in `root`.

    Raises Unavailable, as BlobStore and RemoteBlobs do.
    """
    if url is None:
        return BlobStore(root)
    return RemoteBlobs(root, Objects(url), _owner(root.parent, catalogue_url))


def _owner(data: Path, catalogue_url: str) -> str:
    """What names a catalogue wherever it is asked from: a server's by its address, a file's by a random word beside it."""
    parsed = make_url(catalogue_url)
    if parsed.host is not None:
        return f"{parsed.get_backend_name()}://{parsed.host}:{parsed.port}/{parsed.database}"
    file = data / OWNER_FILE
    with disk_errors(str(file)):
        data.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.write_text(f"file:{secrets.token_hex(16)}", encoding="ascii")
        return file.read_text(encoding="ascii")
