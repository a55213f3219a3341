"""Which kind of store, and which catalogue, a URL means."""

import secrets
from pathlib import Path
from typing import Final

from sqlalchemy.engine import make_url

from app.store.blobs import BlobStore
from app.store.database import sqlite_url
from app.store.disk import disk_errors
from app.store.objects import Objects
from app.store.remote import RemoteBlobs

ARTEFACTS: Final = "artefacts"
OWNER_FILE: Final = "store-owner"
"""In the data directory beside a SQLite catalogue: the name by which the object storage knows that catalogue."""


def catalogue_at(data: Path, url: str | None) -> str:
    """The catalogue's SQLAlchemy URL: as given, else SQLite in the data directory."""
    return url or sqlite_url(data / "catalogue.sqlite")


def open_blobs(data: Path, url: str | None, catalogue_url: str | None) -> BlobStore:
    """Artefacts in a folder of the data directory, or, with an `s3://bucket/prefix`, there, and copies in that folder.

    Raises Unavailable, as BlobStore and RemoteBlobs do.
    """
    root = data / ARTEFACTS
    if url is None:
        return BlobStore(root)
    return RemoteBlobs(root, Objects(url), _owner(data, catalogue_at(data, catalogue_url)))


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
