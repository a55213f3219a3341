"""A gateway's use of the store in a process that will be killed, and the auditor that looks at what it left.

The writer tells what it acknowledged by appending to a file: what another process has written there survives the kill,
as a response that was sent does. The auditor opens the store anew and reads everything back.
"""

import os
import random
from collections import defaultdict
from pathlib import Path

from app.domain.artefact import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from app.domain.digest import digest_of
from app.domain.names import AdapterName
from app.domain.version_state import SERVABLE, State
from app.store.artefacts.local import FILES, LOCK, STAGING, BlobStore
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.database import sqlite_url
from app.store.failpoints import VARIABLE
from tests.store.making import artefact, begun, received, verdict

NAMES = [AdapterName(text) for text in ("one", "two", "Three")]

FAILPOINTS = [
    "store.after_mkdir",
    *(f"store.after_write.{name}" for name in (CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE)),
    "store.after_fsync",
    "store.after_rename",
    "store.after_sync",
    "store.after_exchange",
    "store.before_bury",
    "store.after_bury",
    "catalogue.before_commit",
    "catalogue.after_commit",
]


def write_until_killed(home: Path, seed: int, failpoint: str | None, uid: int | None = None) -> None:
    """Push, roll back and delete adapters without end. `failpoint`: where to die, else the parent kills at will."""
    if uid is not None:
        # Made by root: modules and migrations may lie where nobody else may read, as in a clone under `mktemp -d`.
        Catalogue(sqlite_url(home / "catalogue.db")).close()
        os.chown(home / "catalogue.db", uid, uid)
        os.setgid(uid)
        os.setuid(uid)
    acknowledged = os.open(home / "acknowledged", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    choose = random.Random(seed)
    blobs, catalogue = BlobStore(home / "store"), Catalogue(sqlite_url(home / "catalogue.db"))
    catalogue.recover()
    if failpoint:
        os.environ[VARIABLE] = failpoint
    while True:
        name = choose.choice(NAMES)
        _push(blobs, catalogue, acknowledged, name, f"{seed} {choose.random()}")
        if failpoint == "store.after_exchange":
            _damage_and_restore(blobs, f"{seed} {choose.random()}")
        if choose.random() < 0.15:
            os.write(acknowledged, f"deleting {name}\n".encode())
            catalogue.delete(name)
            _collect(blobs, catalogue)


def _push(blobs: BlobStore, catalogue: Catalogue, acknowledged: int, name: AdapterName, seed: str) -> None:
    number = begun(catalogue, name, received(seed)).number
    catalogue.record_validated(name, number)
    made = artefact(seed, size=40_000)
    catalogue.record_screened(name, number, verdict(seed=seed), "{}")
    blobs.put(made)
    catalogue.record_stored(name, number, made.digest)
    os.write(acknowledged, f"stored {name} {number} {made.digest.hex}\n".encode())
    catalogue.activate(name, number)
    os.write(acknowledged, f"ready {name} {number} {made.digest.hex}\n".encode())


def _damage_and_restore(blobs: BlobStore, seed: str) -> None:
    """Nobody was promised this one; only the last step of its repair kills."""
    weights = blobs.put(artefact(seed)) / WEIGHTS_FILE
    weights.chmod(0o644)
    weights.write_bytes(b"damaged")
    blobs.put(artefact(seed))


def _collect(blobs: BlobStore, catalogue: Catalogue) -> None:
    for digest in blobs.digests() - catalogue.live_digests():
        blobs.remove(digest)


def audit(home: Path) -> int:
    """Check what a kill left, before and after a restart. Returns how many versions are servable."""
    _audit_names(home / "store")
    with BlobStore(home / "store") as blobs:
        assert os.listdir(home / "store" / STAGING) == [], "staging is swept"
        for digest in blobs.digests():
            blobs.verify(digest)
        catalogue = Catalogue(sqlite_url(home / "catalogue.db"))
        try:
            _audit_rows(home, blobs, catalogue)
            recovered = catalogue.recover()
            assert catalogue.unfinished() == ()
            for row in recovered.to_load:
                catalogue.activate(row.name, row.number)
            _audit_rows(home, blobs, catalogue)
            return len(catalogue.servable())
        finally:
            catalogue.close()


def _audit_names(root: Path) -> None:
    """As the engine sees it, without the store's own code: whatever has a digest's name is whole."""
    for entry in root.iterdir() if root.exists() else ():
        if entry.name in {STAGING, LOCK}:
            continue
        assert sorted(os.listdir(entry)) == sorted(FILES)
        manifest = (entry / MANIFEST_FILE).read_text()
        assert entry.name in manifest
        assert digest_of((entry / WEIGHTS_FILE).read_bytes()).hex in manifest


def _audit_rows(home: Path, blobs: BlobStore, catalogue: Catalogue) -> None:
    promised = _acknowledged(home / "acknowledged")
    present = blobs.digests()
    for adapter in catalogue.adapters():
        rows = {row.number: row for row in catalogue.versions(adapter.name)}
        ready = [number for number, row in rows.items() if row.state is State.READY]
        assert ready == ([] if adapter.active is None else [adapter.active])
        for row in rows.values():
            assert row.artefact is None or row.artefact in present
            assert (row.artefact is not None) == (row.state in SERVABLE | {State.STORED})
        for number, (state, digest) in promised.pop(adapter.name.text, {}).items():
            row = rows[number]
            assert row.artefact is not None
            assert row.artefact.hex == digest
            assert row.state in (SERVABLE if state == "ready" else SERVABLE | {State.STORED})
    assert not any(promised.values()), f"acknowledged and lost: {promised}"


def _acknowledged(path: Path) -> dict[str, dict[int, tuple[str, str]]]:
    """By name and number: (state, digest) of what was acknowledged and is not being deleted."""
    promised: dict[str, dict[int, tuple[str, str]]] = defaultdict(dict)
    for line in path.read_text().splitlines() if path.exists() else ():
        word, name, *rest = line.split()
        if word == "deleting":
            promised[name] = {}
        else:
            promised[name][int(rest[0])] = (word, rest[1])
    return promised
