"""Opening of the catalogue and the artefacts: the kinds of both follow from two URLs."""

import re
import secrets
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy.engine import make_url

from app.domain.errors import STORE_FAILED, Unavailable
from app.domain.tenant_limits import UNLIMITED, TenantLimits
from app.store.artefacts.files import create_once, disk_errors
from app.store.artefacts.local import BlobStore
from app.store.artefacts.local_copies import Copies
from app.store.artefacts.s3 import RemoteBlobs
from app.store.artefacts.s3_client import Objects
from app.store.artefacts.signatures import UNSIGNED, Signatures
from app.store.artefacts.staging import mark_of
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.database import is_shared, sqlite_url
from app.store.cluster.peers import Peers

ARTEFACTS: Final = "artefacts"
OWNER_FILE: Final = "store-owner"
"""File in the data directory beside a SQLite catalogue: the name by which the object storage knows that catalogue."""

_OWNER: Final = re.compile(r"file:[0-9a-f]{32}")
_OWNER_MODE: Final = 0o644


@dataclass(frozen=True, slots=True)
class Place:
    """Locations of a gateway's data, by its settings.

    data: directory of this gateway alone. artefacts: directory of artefacts outside it, which may be shared.
    patience_s: seconds to wait for a catalogue's server at start. parameters: key of everything this gateway's verdicts
    depend on. copies_bytes: most bytes of local copies of artefacts in object storage. signatures: of artefacts.
    default_limits: of tenants for which none were set.
    """

    data: Path
    artefacts: Path | None
    store_url: str | None
    catalogue_url: str | None
    patience_s: float = 0.0
    parameters: str = ""
    copies_bytes: int | None = None
    signatures: Signatures = UNSIGNED
    default_limits: TenantLimits = UNLIMITED


@dataclass(frozen=True, slots=True)
class Store:
    """Catalogue and artefacts, opened. peers: the gateways that share the catalogue; None if it is this one's alone."""

    catalogue: Catalogue
    blobs: BlobStore
    peers: Peers | None


def catalogue_at(data: Path, url: str | None) -> str:
    """Return the catalogue's SQLAlchemy URL: as given, else SQLite in the data directory."""
    return url or sqlite_url(data / "catalogue.sqlite")


def open_store(place: Place, closers: ExitStack) -> Store:
    """Open both; `closers` closes them. Raises Unavailable, as Catalogue, BlobStore, RemoteBlobs and Peers do."""
    if place.store_url is not None and place.artefacts is not None:
        raise Unavailable(
            STORE_FAILED, "artefacts are kept in the object storage or in a shared directory, not in both"
        )
    url, peers = catalogue_at(place.data, place.catalogue_url), None
    if is_shared(url):
        peers = Peers(url, place.parameters, place.patience_s)
        closers.callback(peers.leave)
    if place.artefacts is None:
        blobs = closers.enter_context(
            open_blobs(place.data, place.store_url, place.catalogue_url, peers, place.copies_bytes, place.signatures)
        )
    else:
        blobs = closers.enter_context(
            BlobStore(place.artefacts, peers, shared=peers is not None, signatures=place.signatures)
        )
    if peers is not None and place.store_url is None:
        peers.same_store(mark_of(blobs.root))
    gateway, beats = (peers.id, peers.beats) if peers else (None, None)
    catalogue = Catalogue(url, gateway=gateway, beats=beats, default_limits=place.default_limits)
    closers.callback(catalogue.close)
    return Store(catalogue, blobs, peers)


def open_blobs(
    data: Path,
    url: str | None,
    catalogue_url: str | None,
    peers: Peers | None = None,
    copies_bytes: int | None = None,
    signatures: Signatures = UNSIGNED,
) -> BlobStore:
    """Open artefacts in a folder of the data directory or, given an `s3://bucket/prefix`, in object storage.

    The folder then holds copies. Raises Unavailable, as BlobStore and RemoteBlobs do.
    """
    if url is None:
        return BlobStore(data / ARTEFACTS, peers, shared=peers is not None, signatures=signatures)
    owner = owner_of(data, catalogue_at(data, catalogue_url))
    copies = Copies(copies_bytes)
    return RemoteBlobs(data / ARTEFACTS, Objects(url), owner, claims=peers, copies=copies, signatures=signatures)


def owner_of(data: Path, catalogue_url: str) -> str:
    """Return a name that identifies a catalogue from anywhere: a server's address, or a random id stored beside a file."""
    parsed = make_url(catalogue_url)
    if parsed.host is not None:
        return f"{parsed.get_backend_name()}://{parsed.host}:{parsed.port}/{parsed.database}"
    file = data / OWNER_FILE
    with disk_errors(str(file)):
        data.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            create_once(file, f"file:{secrets.token_hex(16)}".encode(), _OWNER_MODE)
        owner = file.read_text(encoding="ascii", errors="replace")
    if not _OWNER.fullmatch(owner):
        raise Unavailable(
            STORE_FAILED,
            f"{file} is damaged: it must hold the name by which the object storage knows this catalogue (file: and 32 "
            f"hexadecimal digits) and holds {len(owner)} other characters; restore it from a backup of this directory",
        )
    return owner
