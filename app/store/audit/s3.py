"""Audit of object storage: whether the artefacts that the catalogue names exist, with the bytes of their digests.

Uses the storage's client and none of the store's other code, so that a bug there does not hide itself here.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from app.domain.artefact import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from app.domain.digest import SHORT, Digest
from app.domain.errors import Unavailable
from app.store.artefacts.s3 import CLOCK, OWNER
from app.store.artefacts.s3_client import Missing, Objects
from app.store.audit.rules import FILES, HAS_ARTEFACT, Finding, Findings
from app.store.audit.snapshot import AdapterSeen


@dataclass(frozen=True, slots=True)
class Stored:
    """Listing of the storage. artefacts: digest → file → bytes. foreign: keys that belong to no artefact.

    rehash: whether all objects were to be read, too. hashed: artefacts read, by digest, with the findings about each.
    """

    objects: Objects
    artefacts: Mapping[str, Mapping[str, int]]
    foreign: tuple[str, ...]
    rehash: bool
    hashed: dict[str, tuple[Finding, ...]] = field(default_factory=dict)

    @property
    def counts(self) -> Mapping[str, int]:
        """Numbers of examined objects."""
        sizes = [size for files in self.artefacts.values() for size in files.values()]
        listed = {"objects": len(sizes), "object_bytes": sum(sizes)}
        return {**listed, "objects_read_back": len(self.hashed)} if self.rehash else listed


def look(url: str, *, rehash: bool) -> Stored:
    """List the objects at this s3:// URL; rehash: read them all, too. Raises Unavailable if they cannot be listed."""
    objects, foreign = Objects(url), []
    artefacts: dict[str, dict[str, int]] = defaultdict(dict)
    for key, size in objects.listed():
        digest, _, name = key.partition("/")
        if _is_digest(digest) and name in FILES:
            artefacts[digest][name] = size
        elif key not in (OWNER, CLOCK):
            foreign.append(key)
    stored = Stored(objects, artefacts, tuple(sorted(foreign)), rehash)
    for digest in sorted(artefacts) if rehash else ():
        if set(artefacts[digest]) == FILES:
            with suppress(Missing):  # removed meanwhile: if a version needs it, its absence is found
                stored.hashed[digest] = tuple(_read_back(objects, digest))
    return stored


def findings(stored: Stored, adapters: Iterable[AdapterSeen]) -> Findings:
    """Yield I2 for files that versions need, I3 for foreign objects, I6 and I12 for artefacts read back."""
    for key in stored.foreign:
        yield Finding("I3", f"object {key[:80]!r}", "is no artefact")
    for several in stored.hashed.values():
        yield from several
    for one in adapters:
        for row in one.versions:
            if row.state in HAS_ARTEFACT and row.artefact is not None:
                yield from _needed(stored, f"{one.name}@{row.number}", row.artefact)


def notes(stored: Stored) -> Iterable[str]:
    """Yield oddities that break no rule."""
    if halves := sum(set(files) != FILES for files in stored.artefacts.values()):
        yield f"{halves} artefacts in the object storage are not whole (being written, or garbage)"


def _needed(stored: Stored, at: str, digest: str) -> Findings:
    """Check I2 for one version. The listing may be stale: a file that is not on it is looked up by name."""
    for name in sorted(FILES - set(stored.artefacts.get(digest, ()))):
        try:
            if stored.objects.written_at(f"{digest}/{name}") is None:
                yield Finding("I2", at, f"artefact {digest[:SHORT]}: {name} is not in the object storage")
        except Unavailable as error:
            yield Finding("I2", at, error.message)
    if stored.hashed.get(digest):
        yield Finding("I2", at, f"artefact {digest[:SHORT]} is damaged in the object storage")


def _read_back(objects: Objects, digest: str) -> Findings:
    at = f"artefact {digest[:SHORT]} in the object storage"
    try:
        config, weights = (_hash_of(objects, f"{digest}/{name}") for name in (CONFIG_FILE, WEIGHTS_FILE))
        manifest = objects.read(f"{digest}/{MANIFEST_FILE}")
    except Missing:
        raise
    except Unavailable as error:
        yield Finding("I6", at, error.message)
        return
    named = f"{CONFIG_FILE}\0{config}\n{WEIGHTS_FILE}\0{weights}\n"
    found: Final = hashlib.sha256(named.encode()).hexdigest()
    if found != digest:
        yield Finding("I6", at, f"its bytes have the digest {found[:SHORT]}")
    recorded = _json(manifest)
    if recorded.get("digest") != digest or recorded.get("files") != {CONFIG_FILE: config, WEIGHTS_FILE: weights}:
        yield Finding("I12", at, "its manifest is about other bytes")


def _hash_of(objects: Objects, key: str) -> str:
    hashed = hashlib.sha256()
    objects.stream(key, hashed.update)
    return hashed.hexdigest()


def _json(data: bytes) -> Mapping[str, Any]:
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _is_digest(text: str) -> bool:
    try:
        return Digest(text).hex == text
    except ValueError:
        return False
