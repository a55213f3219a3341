"""Artefacts in S3-compatible storage: `<url>/<sha256>/{adapter_config.json, adapter_model.safetensors, manifest.json}`.

The storage is the truth, the local directory a copy for the engine's reading. There is no rename in S3: an artefact is
there once its manifest is, which is written last. All three are written only where nothing is (If-None-Match: *), so of
two gateways one writes and the other checks. What is read is hashed as it arrives and believed only when the hashes make
the digest. The listing may lag behind: it is used to find garbage, and for nothing that is served.
"""

import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final

from app.domain.artefact import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, Artefact, content_digest_of
from app.domain.digest import Digest, digest_of
from app.domain.errors import STORE_BUSY, STORE_FAILED, GatewayError, Unavailable
from app.store.artefacts.claims import Claims, GoOn
from app.store.artefacts.files import digests_in, discard, disk_errors, sync_directory
from app.store.artefacts.local import FILE_MODE, FILES, BlobStore
from app.store.artefacts.local_copies import Copies
from app.store.artefacts.s3_client import Missing, Objects

OWNER: Final = ".owner"
"""The object that says whose catalogue names these artefacts: another's garbage is not ours to collect."""

CLOCK: Final = ".clock"
"""Written to learn what time it is for the storage; no clock of ours is compared with it."""

GRACE: Final = timedelta(hours=1)
"""Age below which nothing is garbage: another gateway may have written it and not yet told the catalogue."""

GARBAGE_S: Final = 300.0
"""Seconds between two looks for garbage while some is too young: a look lists everything."""

_log = logging.getLogger("gateway")


class RemoteBlobs(BlobStore):
    """Artefacts that several gateways with one catalogue share. `root` holds this gateway's copies."""

    def __init__(
        self,
        root: Path,
        objects: Objects,
        owner: str,
        grace: timedelta = GRACE,
        claims: Claims | None = None,
        copies: Copies | None = None,
    ) -> None:
        """owner: what all gateways on one catalogue, and no others, have in common. claims: what they agree by.
        copies: keeps the account of what lies here, and the limit.

        Raises Unavailable: STORE_BUSY when these artefacts belong to another catalogue, else as BlobStore and Objects do.
        """
        self._objects: Final = objects
        self._grace: Final = grace
        self._next_look = 0.0
        if not objects.create(OWNER, owner.encode()) and objects.read(OWNER) != owner.encode():
            why = f"{objects.url} holds the artefacts of another catalogue; give this gateway a prefix of its own"
            raise Unavailable(STORE_BUSY, why)
        self._copies: Final = copies or Copies(None)
        self._held: Callable[[], frozenset[str] | None] = lambda: None
        super().__init__(root, claims)
        self._copies.found((digest, self.path(digest)) for digest in self.copies())

    def spare(self, held: Callable[[], frozenset[str] | None]) -> None:
        """As BlobStore.spare. Until it is called, no copy is removed to make room."""
        self._held = held

    def check_writable(self) -> None:
        """As BlobStore; where the storage failed last, it is asked again. Raises Unavailable."""
        super().check_writable()
        if self._objects.trouble is not None:
            self._objects.read(OWNER)

    def digests(self) -> frozenset[Digest]:
        """What is in the storage, as far as its listing has come, and what is copied here."""
        return self._objects.digests() | digests_in(self.root)

    def put(self, artefact: Artefact) -> Path:
        """Keep `artefact` here and in the storage; when it returns, both have it. As BlobStore.put."""
        final = super().put(artefact)  # first: it costs little to find out that this disk is full
        for name, data in ((CONFIG_FILE, artefact.config), (WEIGHTS_FILE, artefact.weights)):
            self._put_file(artefact.digest, name, data)
        self._put_manifest(artefact.digest, artefact.manifest)
        self._used(artefact.digest)
        return final

    def copies(self) -> frozenset[Digest]:
        """What is copied here. Raises Unavailable."""
        return digests_in(self.root)

    def send(self, digest: Digest) -> None:
        """Have the storage hold what is copied here, and read it back from there. Raises Unavailable STORE_FAILED."""
        super().verify(digest)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            self._put_file(digest, name, (self.path(digest) / name).read_bytes())
        self._put_manifest(digest, super().manifest(digest))
        config, weights = (self._hash_of(_key(digest, name)) for name in (CONFIG_FILE, WEIGHTS_FILE))
        there = self._objects.read(_key(digest, MANIFEST_FILE))
        if content_digest_of(config, weights) != digest or not _names(
            there, digest, {CONFIG_FILE: config, WEIGHTS_FILE: weights}
        ):
            raise _damaged(digest, "what was sent does not read back")

    def verify(self, digest: Digest) -> None:
        """Have a sound copy here: the one there is, or one fetched now. Raises Unavailable."""
        try:
            super().verify(digest)
        except Unavailable:
            self._fetch(digest)
        self._used(digest)

    def touch(self, digest: Digest) -> None:
        """As BlobStore.touch: fetched where it is not here. Raises Unavailable."""
        if self.path(digest).is_dir():
            self._copies.used(digest, self.path(digest))
        else:
            self.verify(digest)

    def is_whole(self, digest: Digest) -> bool:
        """Whether a sound copy is here and the storage has its manifest; what is wrong is logged."""
        try:
            if not os.path.lexists(self.path(digest)):  # it may have made room for others
                self.verify(digest)
        except Unavailable as error:
            _log.warning("%s", error.message)
            return False
        if not super().is_whole(digest):
            return False
        try:
            return self._objects.written_at(_key(digest, MANIFEST_FILE)) is not None
        except Unavailable as error:
            _log.warning("%s", error.message)
            return False

    def manifest(self, digest: Digest) -> bytes:
        """The copy's manifest, else the storage's. Raises Unavailable STORE_FAILED."""
        if (self.path(digest) / MANIFEST_FILE).exists():
            return super().manifest(digest)
        return self._objects.read(_key(digest, MANIFEST_FILE))

    def remove(self, digest: Digest) -> None:
        """As BlobStore.remove: out of the storage, manifest first, and its copy away. Raises Unavailable."""
        self._delete(digest, lambda: True)

    def _remove_if_free(self, digest: Digest, needed: Callable[[], frozenset[Digest]]) -> bool | None:
        """As BlobStore, but outside every lock: the storage may stall. The order is argued in claims.py."""
        with self._claims.deleting(digest) as go_on:
            if go_on is None:
                return False
            if digest in needed():
                return None
            return self._delete(digest, go_on)

    def _delete(self, digest: Digest, go_on: GoOn) -> bool:
        """Whether all of it is gone: it stops where it may not go on. Raises Unavailable."""
        for name in reversed(FILES):
            if not go_on():
                return False
            self._objects.delete(_key(digest, name))
        self._copies.gone(digest)
        super().remove(digest)
        return True

    def _used(self, digest: Digest) -> None:
        """Somebody is about to read this copy; others may have to go for it. Never raises for those."""
        self._copies.used(digest, self.path(digest))
        held = self._held()
        try:
            for other in self._copies.excess(held | {digest.short}) if held is not None else ():
                self._evict(other)
        except Unavailable as error:  # another time: what is asked for is here
            _log.warning("no room was made: %s", error.message)

    def _evict(self, digest: Digest) -> None:
        if self._objects.written_at(_key(digest, MANIFEST_FILE)) is None:
            return  # not to be had again
        self._copies.gone(digest)
        if grave := self._bury(digest):
            _log.info("a copy of artefact %s made room for others", digest.short)
            discard(grave)

    def collect(self, needed: Callable[[], frozenset[Digest]], read: Callable[[Digest], bool]) -> tuple[int, int]:
        """As BlobStore.collect; spares besides what is younger than the grace, by the storage's own clock."""
        if time.monotonic() < self._next_look:
            return 0, 1
        self._objects.replace(CLOCK, secrets.token_bytes(8))
        now = self._objects.written_at(CLOCK)

        def young_or_read(digest: Digest) -> bool:
            written = [self._objects.written_at(_key(digest, name)) for name in FILES]
            young = any(now is None or at is None or now - at < self._grace for at in written if at is not None)
            return young or read(digest)

        removed, spared = super().collect(needed, young_or_read)
        if spared:
            self._next_look = time.monotonic() + min(GARBAGE_S, self._grace.total_seconds())
        return removed, spared

    def _put_file(self, digest: Digest, name: str, data: bytes) -> None:
        key = _key(digest, name)
        if not self._objects.create(key, data) and self._hash_of(key) != digest_of(data):
            _log.warning("object storage: %s had other bytes and was written anew", key)
            self._objects.replace(key, data)

    def _put_manifest(self, digest: Digest, manifest: bytes) -> None:
        """Whoever came first keeps the word; its date is made new, or it could be taken for old garbage."""
        key = _key(digest, MANIFEST_FILE)
        if self._objects.create(key, manifest):
            return
        there = self._objects.read(key)
        self._objects.replace(key, there if _names(there, digest) else manifest)

    def _hash_of(self, key: str) -> Digest:
        hashed = hashlib.sha256()
        self._objects.stream(key, hashed.update)
        return Digest(hashed.hexdigest())

    def _fetch(self, digest: Digest) -> None:
        """Copy an artefact here, checked before anybody can see it. Raises Unavailable NO_SPACE or STORE_FAILED."""
        final, staged = self.path(digest), self._staging.fresh()
        try:
            with disk_errors(f"copy artefact {digest.short}"):
                staged.mkdir(mode=0o700)
                hashes = {name: self._copy(digest, name, staged / name) for name in reversed(FILES)}
                if content_digest_of(hashes[CONFIG_FILE], hashes[WEIGHTS_FILE]) != digest:
                    raise _damaged(digest, "its bytes are not those of its digest")
                if not _names((staged / MANIFEST_FILE).read_bytes(), digest, hashes):
                    raise _damaged(digest, "its manifest is another's")
                staged.chmod(0o755)
                sync_directory(staged)
                (self._restore if os.path.lexists(final) else self._publish)(digest, staged, final)
        finally:
            discard(staged)

    def _copy(self, digest: Digest, name: str, target: Path) -> Digest:
        hashed = hashlib.sha256()
        with target.open("xb") as file:

            def take(piece: bytes) -> None:
                hashed.update(piece)
                file.write(piece)

            try:
                self._objects.stream(_key(digest, name), take)
            except Missing as error:
                raise _damaged(digest, f"{name} is missing") from error
            file.flush()
            os.fchmod(file.fileno(), FILE_MODE)
            os.fsync(file.fileno())
        return Digest(hashed.hexdigest())


def _key(digest: Digest, name: str) -> str:
    return f"{digest.hex}/{name}"


def _names(manifest: bytes, digest: Digest, hashes: dict[str, Digest] | None = None) -> bool:
    """Whether this is the manifest of that artefact (with files of those hashes)."""
    try:
        read = json.loads(manifest)
        files = read["files"]
        right = hashes is None or files == {name: hashes[name].hex for name in (CONFIG_FILE, WEIGHTS_FILE)}
        return bool(read["digest"] == digest.hex and right)
    except (ValueError, LookupError, TypeError, RecursionError):
        return False


def _damaged(digest: Digest, how: str) -> GatewayError:
    return Unavailable(STORE_FAILED, f"object storage: artefact {digest.short}: {how}")
