"""Snapshot for an auditor, read anew and read-only: every row of the catalogue, every file under the store.

Uses none of the store's own code paths (its lock, its sweep, its `verify`), so that a bug there does not hide itself
here. It may run beside a running gateway, and changes nothing, whatever it finds.
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, make_url, select

from app.domain.artefact import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from app.store.artefacts.files import entries_of
from app.store.catalogue.database import BUSY_SECONDS, ONE_MOMENT, database_errors
from app.store.catalogue.postgres import postgres_engine
from app.store.catalogue.tables import adapters, schema_info, versions

JSON_BYTES: Final = 64 << 20
"""Most bytes of a configuration or manifest that are parsed: thousands of modules need a few MiB."""

_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class FileSeen:
    """File of an artefact. sha256: None if it is not a plain file or cannot be read. mode: permission bits."""

    sha256: str | None
    size: int
    mode: int


@dataclass(frozen=True, slots=True)
class BlobSeen:
    """Directory of the store that is named by a digest.

    config, manifest: parsed, None if that fails. tensors: name → dtype from the weights' header, None if that fails.
    """

    name: str
    mode: int
    files: Mapping[str, FileSeen]
    config: Mapping[str, Any] | None
    manifest: Mapping[str, Any] | None
    tensors: Mapping[str, str] | None

    @property
    def content_digest(self) -> str:
        """Digest of the bytes on the disk: SHA-256 over `file NUL sha256 LF` of all but the manifest."""
        named = sorted((name, file.sha256) for name, file in self.files.items() if name != MANIFEST_FILE)
        return hashlib.sha256("".join(f"{name}\0{sha}\n" for name, sha in named).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class VersionSeen:
    """Row of `versions` as stored: plain values, none of them trusted."""

    id: int
    adapter_id: int
    number: int
    state: str
    outcome: str | None
    config_digest: str
    weights_digest: str
    config_bytes: int
    weights_bytes: int
    parameters: str
    verdict_id: str | None
    modules_total: int | None
    modules_pruned: int | None
    modules_projected: int | None
    artefact: str | None
    engine_name: str | None
    error_code: str | None
    error_message: str | None
    report: str | None
    evaluated: str | None


@dataclass(frozen=True, slots=True)
class AdapterSeen:
    """Row of `adapters` with its versions in the order of their uploads."""

    id: int
    name: str
    name_key: str
    active: int | None
    next_version: int
    deleted: bool
    versions: tuple[VersionSeen, ...]


@dataclass(frozen=True, slots=True)
class CatalogueSeen:
    """Complete catalogue at one moment.

    damage: problems that the database itself reports, empty if it is sound. strays: ids of versions without an adapter.
    """

    schema: tuple[int, ...]
    damage: tuple[str, ...]
    adapters: tuple[AdapterSeen, ...]
    strays: tuple[int, ...]


def read_catalogue(url: str) -> CatalogueSeen:
    """Read every row in one transaction. Raises Unavailable STORE_FAILED or STORE_BUSY if that is not possible."""
    with database_errors():
        engine = _read_only(url)
        try:
            with engine.connect() as connection:
                if connection.dialect.name == "sqlite":  # the driver opens no transaction for a SELECT
                    connection.exec_driver_sql("BEGIN")
                damage = _damage(connection)
                schema = tuple(connection.execute(select(schema_info.c.version)).scalars())
                kept = [versions.c[name] for name in VersionSeen.__dataclass_fields__]
                rows = [VersionSeen(*row) for row in connection.execute(select(*kept).order_by(versions.c.id))]
                owners = connection.execute(select(adapters).order_by(adapters.c.id)).all()
        finally:
            engine.dispose()
    known = {owner.id for owner in owners}
    found = tuple(
        AdapterSeen(
            owner.id,
            owner.name,
            owner.name_key,
            owner.active_version,
            owner.next_version,
            bool(owner.deleted),
            tuple(row for row in rows if row.adapter_id == owner.id),
        )
        for owner in owners
    )
    strays = tuple(row.id for row in rows if row.adapter_id not in known)
    return CatalogueSeen(schema, damage, found, strays)


def _damage(connection: Connection) -> tuple[str, ...]:
    if connection.dialect.name != "sqlite":
        return ()
    reported = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check(10)")]
    loose = [f"row without its owner: {tuple(row)}" for row in connection.exec_driver_sql("PRAGMA foreign_key_check")]
    return tuple(line for line in (*reported, *loose) if line != "ok")


def _read_only(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        return postgres_engine(parsed, BUSY_SECONDS).execution_options(**ONE_MOMENT["postgresql"])
    if parsed.database:
        return create_engine(f"sqlite:///file:{Path(parsed.database).resolve()}?mode=ro&uri=true")
    return create_engine(parsed)


def read_blob(directory: Path) -> BlobSeen:
    """Read and hash every file of one artefact. Raises FileNotFoundError if it no longer exists."""
    files = {entry.name: _seen(entry) for entry in entries_of(directory)}
    return BlobSeen(
        directory.name,
        stat.S_IMODE(directory.lstat().st_mode),
        files,
        _json(directory / CONFIG_FILE) if CONFIG_FILE in files else None,
        _json(directory / MANIFEST_FILE) if MANIFEST_FILE in files else None,
        _tensors(directory / WEIGHTS_FILE) if WEIGHTS_FILE in files else None,
    )


def _seen(entry: os.DirEntry[str]) -> FileSeen:
    found = entry.stat(follow_symlinks=False)
    sha = None
    if stat.S_ISREG(found.st_mode):
        try:
            fd = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
            with open(fd, "rb", buffering=0) as file:
                hashed = hashlib.sha256()
                while chunk := file.read(_CHUNK):
                    hashed.update(chunk)
            sha = hashed.hexdigest()
        except OSError:
            pass
    return FileSeen(sha, found.st_size, stat.S_IMODE(found.st_mode))


def _json(path: Path) -> Mapping[str, Any] | None:
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(JSON_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _tensors(path: Path) -> Mapping[str, str] | None:
    """Return name → dtype from a safetensors header; None if unreadable.

    Format: eight bytes of header length (little endian), a JSON header, data.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, JSON_BYTES)))
        return {name: str(entry["dtype"]) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
