"""Migration from one machine's store to one that several gateways share.

SQLite's rows go into PostgreSQL, a directory's artefacts into object storage, kept uploads into another gateway's data
directory. All rows go in one transaction, or none; every file is read back and its digest compared.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Table, func, insert, select, update

from app.domain.digest import Digest
from app.domain.errors import STORE_FAILED, Unavailable
from app.domain.version_state import State
from app.store.artefacts.s3 import RemoteBlobs
from app.store.catalogue.database import Database, is_shared
from app.store.catalogue.reader import CatalogueReader
from app.store.catalogue.tables import adapters, catalogue_state, versions
from app.store.catalogue.tenant_tables import (
    api_keys,
    audit_log,
    tenant_limits,
    tenant_rules,
    usage,
    webhook_messages,
    webhooks,
)
from app.store.uploads import KeptUploads

BATCH: Final = 500
"""Rows read and written at a time; a version's report is some 100 kB."""

NUMBERED: Final = (adapters, versions)
"""Tables in which the server assigns the next row's id."""

MOVED: Final = (*NUMBERED, api_keys, tenant_limits, tenant_rules, usage, audit_log, webhooks, webhook_messages)
"""Tables that are moved, in the order in which rows refer to each other; not those of running gateways (`gateways` …)."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Contents of a table. digest: sum of the SHA-256 of every row's values: databases order texts in different ways."""

    count: int
    digest: int


def move_catalogue(source: str, target: str, patience_s: float = 0.0) -> dict[str, int]:
    """Copy the catalogue at SQLite's URL into an empty PostgreSQL database. Returns the rows of each table that has any.

    The caller holds the source's store, so that no gateway writes to it. A target that holds the same rows already is
    success. Raises Unavailable: STORE_FAILED if the target holds anything else, or if the rows in it differ from those
    sent; it is then unchanged, unless they differ only after the commit. Else as Database.
    """
    if is_shared(source) or not is_shared(target):
        raise Unavailable(STORE_FAILED, "a catalogue is moved from SQLite to PostgreSQL, and no other way")
    here, there = Database(source), None
    try:
        there = Database(target, patience_s=patience_s)
        with here.reading() as old, there.writing() as new:
            wanted = _contents(old)
            if any(rows.count for rows in _contents(new).values()):
                _same(wanted, _contents(new), "the target is not empty, and holds another catalogue than this one")
            else:
                _copy(old, new)
                _same(wanted, _contents(new), "what arrived is not what was sent; nothing was kept of it")
        with there.reading() as new:
            _same(wanted, _contents(new), "what was kept is not what arrived")
        return {name: rows.count for name, rows in wanted.items() if rows.count}
    finally:
        here.close()
        if there is not None:
            there.close()


def move_artefacts(
    blobs: RemoteBlobs, needed: frozenset[Digest], say: Callable[[Digest], None] = lambda _: None
) -> tuple[int, int]:
    """Send every artefact in the directory to the storage and read it back. Returns (number sent, damaged ones left out).

    needed: digests that some version needs; one of these that is damaged or missing ends the move. say: called with
    each digest that is there. Artefacts already there are read and compared, so an interrupted move can be continued.
    Raises Unavailable.
    """
    sent, left_out = 0, 0
    for digest in sorted(needed | blobs.copies(), key=lambda one: one.hex):
        try:
            blobs.send(digest)
        except Unavailable:
            if digest in needed:
                raise
            left_out += 1
            continue
        sent += 1
        say(digest)
    return sent, left_out


def move_originals(
    source: KeptUploads, target: KeptUploads, needed: frozenset[Digest]
) -> tuple[int, tuple[Digest, ...]]:
    """Copy every kept file that some version may be screened from again. Returns (number there now, damaged: left out).

    needed: digests of uploaded files. A damaged file could not be screened here either, so it does not end the move.
    Files already there are read and compared, so an interrupted move can be continued. Raises Unavailable.
    """
    if target.root.resolve() == source.root.resolve():
        raise Unavailable(STORE_FAILED, f"{target.root} is where the kept uploads are already")
    sent, damaged = 0, list[Digest]()
    for digest in sorted(needed & source.digests()):
        try:
            file = source.read(digest)
        except Unavailable:
            damaged.append(digest)
            continue
        with file:
            target.take(digest, file)
        sent += 1
    return sent, tuple(damaged)


def uploads_of(url: str) -> frozenset[Digest]:
    """Return the digests of both files of every upload in this catalogue that may be needed again. Raises Unavailable."""
    database = Database(url)
    try:
        return CatalogueReader(database).originals_needed()
    finally:
        database.close()


def needed_of(url: str) -> frozenset[Digest]:
    """Return the digests of all artefacts that a version of this catalogue needs. Raises Unavailable."""
    database = Database(url)
    try:
        query = select(versions.c.artefact).where(versions.c.artefact.is_not(None), versions.c.state != State.DELETED)
        with database.reading() as connection:
            return frozenset(Digest(found) for found in connection.execute(query).scalars())
    finally:
        database.close()


def database_file(data: Path, url: str) -> Path:
    """Return the file of SQLite's URL. Raises Unavailable STORE_FAILED if it does not exist: a new one would be empty."""
    file = Path(url.partition(":///")[2]) if url.startswith("sqlite") else data
    if not file.is_file():
        raise Unavailable(STORE_FAILED, f"{data} holds no catalogue")
    return file


def _copy(old: Connection, new: Connection) -> None:
    for table in MOVED:
        for rows in _batches(old, table):
            new.execute(insert(table), rows)
    for table in NUMBERED:
        last = new.execute(select(func.max(table.c.id))).scalar_one()
        if last is not None:  # the server assigns the next row's id
            new.execute(select(func.setval(func.pg_get_serial_sequence(table.name, "id"), last)))
    revision = old.execute(select(catalogue_state.c.revision)).scalar_one()
    new.execute(update(catalogue_state).values(revision=revision, store=None))


def _batches(connection: Connection, table: Table) -> Iterator[list[dict[str, object]]]:
    found = connection.execute(select(table), execution_options={"yield_per": BATCH}).mappings()
    for rows in found.partitions():
        yield [dict(row) for row in rows]


def _contents(connection: Connection) -> dict[str, Rows]:
    found = {}
    for table in MOVED:
        count, digest = 0, 0
        for rows in _batches(connection, table):
            count += len(rows)
            for row in rows:
                values = repr(sorted((name, str(value)) for name, value in row.items())).encode()
                digest = (digest + int.from_bytes(hashlib.sha256(values).digest())) % (1 << 256)
        found[table.name] = Rows(count, digest)
    return found


def _same(wanted: dict[str, Rows], found: dict[str, Rows], otherwise: str) -> None:
    wrong = [name for name, rows in wanted.items() if found[name] != rows]
    if wrong:
        counts = ", ".join(f"{name}: {wanted[name].count} rows, there {found[name].count}" for name in wrong)
        raise Unavailable(STORE_FAILED, f"{otherwise} ({counts})")
