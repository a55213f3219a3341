"""Artefacts in S3-compatible storage: `<url>/<sha256>/{adapter_config.json, adapter_model.safetensors, manifest.json}`.

The storage is authoritative, the local directory a copy for the engine to read. S3 has no rename: an artefact exists
once its manifest does, which is written last. All three objects are created only if they do not exist (If-None-Match:
*), so of two gateways one writes and the other checks. Downloaded bytes are hashed as they arrive and trusted only if
the hashes yield the digest. The listing may be stale: it is used to find garbage, and for nothing that is served.
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
from app.store.artefacts.signatures import UNSIGNED, Signatures

OWNER: Final = ".owner"
"""Object that names the catalogue these artefacts belong to: another catalogue's garbage must not be collected."""

CLOCK: Final = ".clock"
"""Object written to read the storage's current time, which is compared with no local clock."""

GRACE: Final = timedelta(hours=1)
"""Age below which nothing is garbage: another gateway may have written it and not yet updated the catalogue."""

GARBAGE_S: Final = 300.0
"""Seconds between two garbage collections while some artefacts are too young: each one lists everything."""

_log = logging.getLogger("gateway")


class RemoteBlobs(BlobStore):
    """Artefacts in object storage, shared by gateways with one catalogue. `root` holds this gateway's copies."""

    def __init__(
        self,
        root: Path,
        objects: Objects,
        owner: str,
        grace: timedelta = GRACE,
        claims: Claims | None = None,
        copies: Copies | None = None,
        signatures: Signatures = UNSIGNED,
    ) -> None:
        """Open the storage and the directory of copies.

        owner: name of the catalogue, the same for all gateways on it and for no others. claims: those that these
        gateways share. copies: account of the local copies, with their limit. signatures: as BlobStore. Raises
        Unavailable: STORE_BUSY if these artefacts belong to another catalogue, else as BlobStore and Objects do.
        """
        self._objects: Final = objects
        self._grace: Final = grace
        self._next_look = 0.0
        if not objects.create(OWNER, owner.encode()) and objects.read(OWNER) != owner.encode():
            why = f"{objects.url} holds the artefacts of another catalogue; give this gateway a prefix of its own"
            raise Unavailable(STORE_BUSY, why)
        self._copies: Final = copies or Copies(None)
        self._held: Callable[[], frozenset[str] | None] = lambda: None
        super().__init__(root, claims, signatures=signatures)
        self._copies.found((digest, self.path(digest)) for digest in self.copies())

    def spare(self, held: Callable[[], frozenset[str] | None]) -> None:
        """Set the callback, as BlobStore.spare. Until it is set, no copy is removed to make room."""
        self._held = held

    def check_writable(self) -> None:
        """Check as BlobStore does; if the last storage operation failed, ask the storage again. Raises Unavailable."""
        super().check_writable()
        if self._objects.trouble is not None:
            self._objects.read(OWNER)

    def digests(self) -> frozenset[Digest]:
        """Return the digests in the storage, as far as its listing is current, and those of the local copies."""
        return self._objects.digests() | digests_in(self.root)

    def put(self, artefact: Artefact) -> Path:
        """Store `artefact` here and in the storage; both have it when this returns. As BlobStore.put."""
        final = super().put(artefact)  # first: a full local disk is cheap to detect
        for name, data in ((CONFIG_FILE, artefact.config), (WEIGHTS_FILE, artefact.weights)):
            self._put_file(artefact.digest, name, data)
        self._put_manifest(artefact.digest, super().manifest(artefact.digest))
        self._used(artefact.digest)
        return final

    def copies(self) -> frozenset[Digest]:
        """Return the digests of the local copies. Raises Unavailable."""
        return digests_in(self.root)

    def send(self, digest: Digest) -> None:
        """Upload a local copy to the storage and read it back from there. Raises Unavailable STORE_FAILED."""
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
        """Ensure an intact local copy: the existing one, or one fetched now. Raises Unavailable."""
        try:
            super().verify(digest)
        except Unavailable:
            self._fetch(digest)
        self._used(digest)

    def touch(self, digest: Digest) -> None:
        """Record the use of the local copy, as BlobStore.touch; fetch the artefact if there is none. Raises Unavailable."""
        if self.path(digest).is_dir():
            self._copies.used(digest, self.path(digest))
        else:
            self.verify(digest)

    def is_intact(self, digest: Digest) -> bool:
        """Return whether an intact copy is here and its manifest is in the storage; errors are logged."""
        try:
            if not os.path.lexists(self.path(digest)):  # the copy may have been removed to make room
                self.verify(digest)
        except Unavailable as error:
            _log.warning("%s", error.message)
            return False
        if not super().is_intact(digest):
            return False
        try:
            return self._objects.written_at(_key(digest, MANIFEST_FILE)) is not None
        except Unavailable as error:
            _log.warning("%s", error.message)
            return False

    def manifest(self, digest: Digest) -> bytes:
        """Return the copy's manifest, else the storage's. Raises Unavailable STORE_FAILED.

        A copy that no key in force signed may be older than the storage's.
        """
        if (self.path(digest) / MANIFEST_FILE).exists():
            here = super().manifest(digest)
            if not self._signatures.lacks(here):
                return here
        return self._objects.read(_key(digest, MANIFEST_FILE))

    def sign(self, digest: Digest) -> None:
        """Sign as BlobStore.sign, here and in the storage. Raises Unavailable."""
        self.copy_unsigned(digest)
        super().sign(digest)
        self._objects.replace(_key(digest, MANIFEST_FILE), super().manifest(digest))

    def copy_unsigned(self, digest: Digest) -> None:
        """Ensure that there is a local copy, whoever signed it: one to be audited and signed. Raises Unavailable."""
        if not self.path(digest).is_dir():
            self._fetch(digest, signed=False)

    def remove(self, digest: Digest) -> None:
        """Delete the artefact from the storage, manifest first, then its copy; as BlobStore.remove. Raises Unavailable."""
        self._delete(digest, lambda: True)

    def _remove_if_free(self, digest: Digest, needed: Callable[[], frozenset[Digest]]) -> bool | None:
        """Remove as BlobStore does, but outside every lock: the storage may stall. claims.py explains why this is safe."""
        with self._claims.deleting(digest) as go_on:
            if go_on is None:
                return False
            if digest in needed():
                return None
            return self._delete(digest, go_on)

    def _delete(self, digest: Digest, go_on: GoOn) -> bool:
        """Return whether everything was deleted; stops as soon as `go_on` returns False. Raises Unavailable."""
        for name in reversed(FILES):
            if not go_on():
                return False
            self._objects.delete(_key(digest, name))
        self._copies.gone(digest)
        super().remove(digest)
        return True

    def _used(self, digest: Digest) -> None:
        """Record that this copy is about to be read, and remove others beyond the limit; errors in that are only logged."""
        self._copies.used(digest, self.path(digest))
        held = self._held()
        try:
            for other in self._copies.excess(held | {digest.short}) if held is not None else ():
                self._evict(other)
        except Unavailable as error:  # the requested copy is here; the others can be removed later
            _log.warning("local copies beyond the limit were not removed: %s", error.message)

    def _evict(self, digest: Digest) -> None:
        if self._objects.written_at(_key(digest, MANIFEST_FILE)) is None:
            return  # it could not be fetched again
        self._copies.gone(digest)
        if aside := self._set_aside(digest):
            _log.info("a copy of artefact %s made room for others", digest.short)
            discard(aside)

    def collect(self, needed: Callable[[], frozenset[Digest]], read: Callable[[Digest], bool]) -> tuple[int, int]:
        """Collect as BlobStore.collect; also spare artefacts younger than the grace period, by the storage's own clock."""
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
        """Write the manifest, or renew the date of an existing one, or it could pass for garbage.

        The existing one is replaced if it is another artefact's, or if there is a key and no key in force signed it.
        """
        key = _key(digest, MANIFEST_FILE)
        if self._objects.create(key, manifest):
            return
        there = self._objects.read(key)
        keep = _names(there, digest) and not self._signatures.lacks(there)
        self._objects.replace(key, there if keep else manifest)

    def _hash_of(self, key: str) -> Digest:
        hashed = hashlib.sha256()
        self._objects.stream(key, hashed.update)
        return Digest(hashed.hexdigest())

    def _fetch(self, digest: Digest, *, signed: bool = True) -> None:
        """Copy an artefact here, checked before it becomes visible. Raises Unavailable NO_SPACE or STORE_FAILED.

        signed: whether it must be, if signatures are asked for.
        """
        final, staged = self.path(digest), self._staging.fresh()
        try:
            with disk_errors(f"copy artefact {digest.short}"):
                staged.mkdir(mode=0o700)
                hashes = {name: self._copy(digest, name, staged / name) for name in reversed(FILES)}
                if content_digest_of(hashes[CONFIG_FILE], hashes[WEIGHTS_FILE]) != digest:
                    raise _damaged(digest, "its bytes are not those of its digest")
                if not _names((staged / MANIFEST_FILE).read_bytes(), digest, hashes):
                    raise _damaged(digest, "its manifest is another's")
                if signed:
                    self._check_signature(digest, (staged / MANIFEST_FILE).read_bytes())
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
    """Return whether this is the manifest of that artefact (with files of those hashes)."""
    try:
        read = json.loads(manifest)
        files = read["files"]
        right = hashes is None or files == {name: hashes[name].hex for name in (CONFIG_FILE, WEIGHTS_FILE)}
        return bool(read["digest"] == digest.hex and right)
    except (ValueError, LookupError, TypeError, RecursionError):
        return False


def _damaged(digest: Digest, how: str) -> GatewayError:
    return Unavailable(STORE_FAILED, f"object storage: artefact {digest.short}: {how}")
