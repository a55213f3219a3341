"""Artefacts in files: `<root>/<sha256>/{adapter_config.json, adapter_model.safetensors, manifest.json}`, read-only.

Order of a write: stage in `<root>/.staging/<random>` → fsync each file → fsync the directory → rename to its digest →
fsync the root. So a digest's directory exists completely or not at all, even after a power failure. Bytes at a digest
never change.
"""

import errno
import hashlib
import json
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from app.domain.artefact import (
    CONFIG_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    Artefact,
    content_digest,
    content_digest_of,
)
from app.domain.digest import Digest
from app.domain.errors import STORE_FAILED, Unavailable
from app.store.artefacts.claims import Claims, LocalClaims
from app.store.artefacts.files import (
    StoreLock,
    digests_in,
    discard,
    disk_errors,
    exchange,
    probe,
    sync_directory,
    write_durably,
)
from app.store.artefacts.signatures import UNSIGNED, Signatures
from app.store.artefacts.staging import Staging
from app.store.failpoints import failpoint

STAGING: Final = ".staging"
LOCK: Final = ".lock"
FILES: Final = (CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE)
FILE_MODE: Final = 0o444
"""Readable by an engine that runs as another user, writable by no user."""

DIRECTORY_MODE: Final = 0o555
_OPEN_MODE: Final = 0o755
"""Mode of a directory while it is moved: its owner must be able to write to it, because its `..` changes."""

_CHUNK: Final = 1 << 20
"""Bytes read at a time when hashing: enough to keep a disk busy, few enough for many callers at once."""

_TAKEN: Final = frozenset({errno.EEXIST, errno.ENOTEMPTY})
_CANNOT_SWAP: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})

_log = logging.getLogger("gateway")


class BlobStore:
    """Directory of artefacts, held by one process or by gateways that share it. Thread-safe."""

    def __init__(
        self,
        root: Path,
        claims: Claims | None = None,
        *,
        shared: bool = False,
        signatures: Signatures = UNSIGNED,
    ) -> None:
        """Open or create `root`: take its lock, sweep the leftovers of a crash, prove that the disk keeps written data.

        claims: those that gateways with one catalogue share; None: claims of this process alone. shared: whether these
        gateways also share this directory. signatures: keys that sign artefacts, and keys that must have. Raises
        Unavailable: STORE_BUSY if another gateway holds it, NO_SPACE or STORE_FAILED on disk errors.
        """
        self.root: Final = root
        self._claims: Final = claims or LocalClaims()
        self._signatures: Final = signatures
        with disk_errors(f"store directory {root}"):
            root.mkdir(parents=True, exist_ok=True)
            sync_directory(root.parent)
        self._lock = StoreLock(root / LOCK, shared=shared)
        try:
            self._staging: Final = Staging(root / STAGING, shared=shared)
            probe(self._staging.path)
            self._seal_all()
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        """Release the store for another process."""
        self._staging.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def spare(self, held: Callable[[], frozenset[str] | None]) -> None:
        """Set the callback asked before a local copy is removed; a local store has no copies and ignores it.

        held: returns the short digests that an engine may read now; None while that is unknown.
        """

    def touch(self, digest: Digest) -> None:
        """Prepare the artefact's files for a reader other than the engine; nothing to do in a local store."""

    def check_writable(self) -> None:
        """Raise Unavailable STORE_FAILED if nothing can be staged now; cheap, unlike the probe at start."""
        if not os.access(self._staging.path, os.W_OK | os.X_OK):
            raise Unavailable(STORE_FAILED, f"{self._staging.path} is gone or not writable")

    def path(self, digest: Digest) -> Path:
        """Return the directory of this digest's artefact, whether or not it exists."""
        return self.root / digest.hex

    def digests(self) -> frozenset[Digest]:
        """Return the digests of all artefacts in the store."""
        return digests_in(self.root)

    def put(self, artefact: Artefact) -> Path:
        """Store `artefact` for ever and return its directory; the artefact is on the disk when this returns.

        An intact artefact that exists already is left as it is, with the manifest of the first writer, which is signed if
        there is a key and it was not; a damaged one is replaced in one step by these same bytes. Raises Unavailable
        NO_SPACE or STORE_FAILED; ValueError if the artefact's digest is not that of its bytes (a programmer's error).
        """
        if content_digest(artefact.config, artefact.weights) != artefact.digest:
            raise ValueError(f"artefact {artefact.digest.short}: its digest is not that of its bytes")
        final = self.path(artefact.digest)
        there = os.path.lexists(final)
        if there and self.is_intact(artefact.digest):
            if self._signatures.lacks(BlobStore.manifest(self, artefact.digest)):
                self._sign(artefact.digest)
            with disk_errors(f"sync artefact {artefact.digest.short}"):
                sync_directory(self.root)  # the writer that renamed it may not have reached its own sync yet
            return final
        staged = self._staging.fresh()
        try:
            with disk_errors(f"write artefact {artefact.digest.short}"):
                self._stage(artefact, staged)
                (self._restore if there else self._publish)(artefact.digest, staged, final)
        finally:
            discard(staged)
        return final

    def claimed(self, digest: Digest) -> AbstractContextManager[None]:
        """Protect this digest from `collect` inside the block: until the row that names it is written, it looks
        unneeded.
        """
        return self._claims.claimed(digest)

    def collect(self, needed: Callable[[], frozenset[Digest]], read: Callable[[Digest], bool]) -> tuple[int, int]:
        """Remove unneeded artefacts. Returns (number removed, number spared because they may still be read or named).

        needed: returns the digests that some version needs; called again before each removal. read: returns whether an
        engine may still read a digest. Raises Unavailable.
        """
        removed = spared = 0
        for digest in sorted(self.digests() - needed()):
            if read(digest):
                spared += 1
                continue
            gone = self._remove_if_free(digest, needed)
            removed, spared = removed + (gone is True), spared + (gone is False)
        return removed, spared

    def _remove_if_free(self, digest: Digest, needed: Callable[[], frozenset[Digest]]) -> bool | None:
        """Return whether the artefact was removed; None if it is needed after all."""
        aside: Path | None = None
        try:
            with self._claims.removing(digest) as free:
                if not free:
                    return False
                if digest in needed():
                    return None
                aside = self._set_aside(digest)
        except BaseException:  # the lock may have been lost before the block ended
            if aside is not None:
                self._put_back(aside, digest)
            raise
        if aside is not None:
            discard(aside)
        return True

    def verify(self, digest: Digest) -> None:
        """Read the artefact back from the disk and check that its bytes are those of its digest.

        The manifest must name this digest and these files, and be signed if signatures are asked for. Raises
        Unavailable STORE_FAILED, naming the damaged file.
        """
        self._check_bytes(digest)
        self._check_signature(digest, BlobStore.manifest(self, digest))

    def _check_signature(self, digest: Digest, manifest: bytes) -> None:
        """Raise Unavailable STORE_FAILED if no engine may read an artefact with this manifest."""
        if why := self._signatures.objection(manifest):
            raise _damaged(digest, MANIFEST_FILE, f"{why}; `python -m app store sign` signs what an audit finds intact")

    def _check_bytes(self, digest: Digest) -> None:
        directory = self.path(digest)
        with disk_errors(f"artefact {digest.short}"):
            present = set(os.listdir(directory))
        if missing := set(FILES) - present:
            raise _damaged(digest, min(missing), "missing")
        if foreign := present - set(FILES):
            raise _damaged(digest, min(foreign), "does not belong there")
        recorded = self._recorded(digest, BlobStore.manifest(self, digest))
        config, weights = self._hash(digest, CONFIG_FILE), self._hash(digest, WEIGHTS_FILE)
        for name, found in ((CONFIG_FILE, config), (WEIGHTS_FILE, weights)):
            if recorded.get(name) != found.hex:
                raise _damaged(digest, name, "its bytes are not those that were stored")
        if content_digest_of(config, weights) != digest:
            raise _damaged(digest, WEIGHTS_FILE, "these are another artefact's files")

    def is_intact(self, digest: Digest) -> bool:
        """Return whether `verify` succeeds; its error is logged."""
        try:
            self.verify(digest)
        except Unavailable as error:
            _log.warning("%s", error.message)
            return False
        return True

    def manifest(self, digest: Digest) -> bytes:
        """Return the artefact's `manifest.json`. Raises Unavailable STORE_FAILED if it cannot be read."""
        with disk_errors(f"artefact {digest.short}: {MANIFEST_FILE}"):
            return (self.path(digest) / MANIFEST_FILE).read_bytes()

    def checked_manifest(self, digest: Digest) -> bytes:
        """Return the artefact's manifest, which names this digest and is signed if signatures are asked for.

        The files' bytes are not read. Raises Unavailable STORE_FAILED.
        """
        manifest = self.manifest(digest)
        self._recorded(digest, manifest)
        self._check_signature(digest, manifest)
        return manifest

    def received_bytes(self, digest: Digest) -> int:
        """Return the bytes of the uploaded weights, by the manifest; 0 if no upload made it or it is unreadable."""
        try:
            return int(json.loads(self.manifest(digest))["received"]["weights_bytes"])
        except (Unavailable, ValueError, LookupError, TypeError, RecursionError):
            return 0

    def sign(self, digest: Digest) -> None:
        """Check the artefact's bytes and replace its manifest by one that is signed with the key in force.

        Raises Unavailable STORE_FAILED or NO_SPACE.
        """
        self._check_bytes(digest)
        self._sign(digest)

    def _sign(self, digest: Digest) -> None:
        directory, staged = self.path(digest), self._staging.fresh()
        with disk_errors(f"sign artefact {digest.short}"):
            try:
                write_durably(staged, self._signatures.signed(BlobStore.manifest(self, digest)), FILE_MODE)
                directory.chmod(_OPEN_MODE)
                os.replace(staged, directory / MANIFEST_FILE)
                sync_directory(directory)
            finally:
                directory.chmod(DIRECTORY_MODE)
                staged.unlink(missing_ok=True)

    def remove(self, digest: Digest) -> None:
        """Remove the artefact in one step; nothing happens if it does not exist.

        Only for digests that neither the catalogue nor the engine may still read. Raises Unavailable.
        """
        if aside := self._set_aside(digest):
            discard(aside)

    def _set_aside(self, digest: Digest) -> Path | None:
        """Move the artefact into staging, out of sight, and return its new path; None if it does not exist."""
        directory, aside = self.path(digest), self._staging.fresh()
        with disk_errors(f"remove artefact {digest.short}"):
            try:
                directory.chmod(_OPEN_MODE)
                failpoint("store.before_bury")
                directory.rename(aside)
            except FileNotFoundError:
                return None
            failpoint("store.after_bury")
            sync_directory(self.root)
            return aside

    def _put_back(self, aside: Path, digest: Digest) -> None:
        """Move an artefact that was set aside back to its digest."""
        with suppress(OSError):  # it was stored again meanwhile
            aside.rename(self.path(digest))

    def _stage(self, artefact: Artefact, staged: Path) -> None:
        staged.mkdir(mode=0o700)
        failpoint("store.after_mkdir")
        manifest = self._signatures.signed(artefact.manifest)
        for name, data in zip(FILES, (artefact.config, artefact.weights, manifest), strict=True):
            write_durably(staged / name, data, FILE_MODE)
            failpoint(f"store.after_write.{name}")
        staged.chmod(_OPEN_MODE)  # before the rename: an engine that runs as another user must be able to enter
        sync_directory(staged)
        failpoint("store.after_fsync")

    def _publish(self, digest: Digest, staged: Path, final: Path) -> None:
        try:
            os.rename(staged, final)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            self.verify(digest)  # another writer was faster with the same bytes
        failpoint("store.after_rename")
        final.chmod(DIRECTORY_MODE)
        sync_directory(self.root)
        failpoint("store.after_sync")

    def _restore(self, digest: Digest, staged: Path, final: Path) -> None:
        """Replace the damaged artefact with the intact one; a reader finds one of the two at any time.

        If the file system cannot exchange two names, the artefact is missing for a moment.
        """
        if not final.is_symlink():
            final.chmod(_OPEN_MODE)
        try:
            exchange(staged, final)
        except OSError as error:
            if error.errno not in _CANNOT_SWAP:
                raise
            final.rename(self._staging.fresh())  # the damaged one is swept at the next start
            os.rename(staged, final)
        failpoint("store.after_exchange")
        final.chmod(DIRECTORY_MODE)
        sync_directory(self.root)

    def _recorded(self, digest: Digest, manifest: bytes) -> dict[str, str]:
        """Return the files' digests as the manifest records them. Raises Unavailable unless they yield this digest."""
        try:
            fields = json.loads(manifest)
            files = {name: str(fields["files"][name]) for name in (CONFIG_FILE, WEIGHTS_FILE)}
            yields = content_digest_of(Digest(files[CONFIG_FILE]), Digest(files[WEIGHTS_FILE]))
            if fields["digest"] == digest.hex and len(fields["files"]) == len(files) and yields == digest:
                return files
        except (ValueError, LookupError, TypeError, RecursionError):
            pass
        raise _damaged(digest, MANIFEST_FILE, "it is not this artefact's manifest")

    def _hash(self, digest: Digest, name: str) -> Digest:
        hashed = hashlib.sha256()
        with disk_errors(f"artefact {digest.short}: {name}"):
            fd = os.open(self.path(digest) / name, os.O_RDONLY | os.O_NOFOLLOW)
            with open(fd, "rb", buffering=0) as file:
                while chunk := file.read(_CHUNK):
                    hashed.update(chunk)
        return Digest(hashed.hexdigest())

    def _seal_all(self) -> None:
        """Set the modes that a kill between rename and chmod left writable, and wait until every name is on the disk."""
        with disk_errors(f"seal {self.root}"):
            for digest in digests_in(self.root):
                self.path(digest).chmod(DIRECTORY_MODE)
            sync_directory(self.root)


def _damaged(digest: Digest, name: str, how: str) -> Unavailable:
    return Unavailable(STORE_FAILED, f"artefact {digest.short}: {name}: {how}")
