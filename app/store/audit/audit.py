"""An independent look at everything a gateway keeps: disk, catalogue, and the engine's list where one is given.

Reads only, locks nothing, believes nothing in memory: it may run beside a gateway at work, on what a kill left, on a copy.
Beside a gateway a look falls between two steps now and then: who audits one looks twice and keeps what both looks saw.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from app.domain.artefact import WEIGHTS_FILE
from app.domain.digest import SHORT
from app.domain.version_state import IN_FLIGHT, State
from app.store.artefacts.local import LOCK, STAGING
from app.store.artefacts.staging import MARK
from app.store.audit import engines, rules, s3, uploads
from app.store.audit.engines import Card
from app.store.audit.policy_in_force import FILE_NAME, PolicyInForce
from app.store.audit.rules import HAS_ARTEFACT, Finding, Findings
from app.store.audit.snapshot import AdapterSeen, BlobSeen, VersionSeen, read_blob, read_catalogue
from app.store.catalogue.tables import SCHEMA_VERSION

ARTEFACTS: Final = "artefacts"
QUARANTINE: Final = "quarantine"
LOG_BYTES: Final = (16 << 20) + (1 << 16)
"""Most bytes of one log file: the engine's leash sets it aside at 16 MiB, one write later."""

SECRET_BYTES: Final = 8
"""A shorter secret is not looked for: it would be found everywhere."""

SCAN_BYTES: Final = 1 << 30
"""Bytes of a file that are searched for secrets."""

_HEX: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Promise:
    """A version that somebody was told is kept. artefact: its digest, None when not known, or when it is emptied."""

    adapter: str
    number: int
    artefact: str | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A part that was not looked at, and why. asked: it was asked for, and nothing of it was looked at."""

    what: str
    why: str
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Audit:
    """Findings of one audit. counts: what was looked at, and nothing else; skipped: what was not; notes: what is odd but
    breaks nothing.
    """

    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()

    def adding(
        self, findings: Iterable[Finding] = (), counts: Mapping[str, int] | None = None, skipped: Iterable[Skipped] = ()
    ) -> "Audit":
        """With what somebody else looked at, or did not."""
        return replace(
            self,
            findings=(*self.findings, *findings),
            counts={**self.counts, **(counts or {})},
            skipped=(*self.skipped, *skipped),
        )


def audit(
    data: Path,
    url: str,
    *,
    listed: Mapping[str, Card] | None = None,
    fetching: bool = False,
    promised: Iterable[Promise] = (),
    secrets: Iterable[str] = (),
    artefacts: Path | None = None,
    store_url: str | None = None,
    rehash: bool = True,
) -> Audit:
    """Look at the data directory and the catalogue at `url` (a SQLAlchemy URL) once.

    listed: what the engine says it holds, by name; None: not asked. fetching: it finds adapters by itself. promised: what
    was acknowledged to somebody. secrets: keys that must stand nowhere. artefacts: their directory, where that is not in
    `data`. store_url: the object storage that artefacts are kept in; what lies here are then copies. rehash: whether it is
    read, too, not only listed. Blocking; hashes every artefact.
    Raises Unavailable when the catalogue cannot be read.
    """
    root = artefacts or data / ARTEFACTS
    seen = read_catalogue(url)  # before the files: what it names was stored before, and is removed only afterwards
    stored = None if store_url is None else s3.look(store_url, rehash=rehash)
    blobs, foreign = _blobs(root)
    standing = PolicyInForce.read(root)
    by_digest = {blob.name: tuple(rules.blob(blob)) for blob in blobs}
    findings = [*foreign, *rules.catalogue(seen, SCHEMA_VERSION), *rules.records(blobs, seen)]
    findings += [found for several in by_digest.values() for found in several]
    for adapter in seen.adapters:
        findings += [
            *rules.adapter(adapter),
            *_present(adapter, by_digest, copies=stored is not None),
            *_in_force(adapter, standing),
        ]
    findings += _promises(seen.adapters, promised)
    findings += [] if stored is None else s3.findings(stored, seen.adapters)
    living = _holder_lives(root)
    findings += _bounded(data, root) if living else ()
    findings += uploads.originals(data, root, seen, living=living)
    searched = _secrets(data, secrets)
    findings += searched.findings
    if listed is not None and fetching:
        findings += engines.fetching(seen.adapters, listed, by_digest, standing)
    elif listed is not None:
        findings += engines.filled(seen.adapters, listed, root, by_digest, standing)
    needed = {row.artefact for one in seen.adapters for row in one.versions if row.state != State.DELETED}
    counts = {
        "adapters": len(seen.adapters),
        "versions": sum(len(one.versions) for one in seen.adapters),
        "artefacts": len(blobs),
        "bytes": sum(file.size for blob in blobs for file in blob.files.values()),
        "originals": uploads.count(data),
        **({} if listed is None else {"engine_names": len(listed)}),
        **({} if stored is None else stored.counts),
        **searched.counts,
    }
    skipped = [*_unseen(root, stored, living=living), *searched.skipped]
    notes = [*_notes(seen.adapters, root, standing), *([] if stored is None else s3.notes(stored))]
    if spare := len(set(by_digest) - needed):
        notes.append(f"{spare} artefacts no version needs (one of them may be the served model's stand-in)")
    return Audit(tuple(sorted(set(findings))), tuple(notes), counts, tuple(skipped))


def _unseen(root: Path, stored: s3.Stored | None, *, living: bool) -> Iterator[Skipped]:
    """Parts that are not there to be looked at, or were not to be."""
    if not root.is_dir():
        what = "artefacts" if stored is None else "copies of artefacts"
        yield Skipped(what, f"{root} is no directory", asked=stored is None)
    if stored is not None and not stored.rehash:
        yield Skipped("bytes in the object storage", "it was listed only")
    if not living:
        yield Skipped("names in the quarantine, sizes of logs", "no gateway is at work here")


def _blobs(root: Path) -> tuple[list[BlobSeen], list[Finding]]:
    blobs, foreign = [], []
    for entry in sorted(os.scandir(root), key=lambda e: e.name) if root.is_dir() else ():
        if entry.name in (STAGING, LOCK, FILE_NAME, MARK) or entry.name.startswith((".standing-", f"{MARK}-")):
            continue
        if len(entry.name) != 2 * 32 or not set(entry.name) <= _HEX or not entry.is_dir(follow_symlinks=False):
            foreign.append(Finding("I3", f"store entry {entry.name[:80]!r}", "is no artefact"))
            continue
        try:
            blobs.append(read_blob(Path(entry.path)))
        except FileNotFoundError:  # removed meanwhile: if a version needs it, that is found by its absence
            continue
    return blobs, foreign


def _present(adapter: AdapterSeen, blobs: Mapping[str, tuple[Finding, ...]], *, copies: bool) -> Findings:
    """I2: whatever has an artefact by the catalogue has it on the disk, whole. copies: they may be missing there."""
    for row in adapter.versions:
        if row.state not in HAS_ARTEFACT or row.artefact is None:
            continue
        at = f"{adapter.name}@{row.number}"
        if row.artefact not in blobs:
            if not copies:
                yield Finding("I2", at, f"artefact {row.artefact[:SHORT]} is not there")
        elif blobs[row.artefact]:
            yield Finding("I2", at, f"artefact {row.artefact[:SHORT]} is damaged")


def _in_force(adapter: AdapterSeen, standing: PolicyInForce | None) -> Findings:
    """I1: served only by the policy in force. An emptied version needs none: the served model itself answers for it."""
    if standing is None:
        return
    for row in adapter.versions:
        if row.state in HAS_ARTEFACT and row.artefact is not None and not _stands(adapter, row, standing):
            yield Finding("I1", f"{adapter.name}@{row.number}", "screened by a policy that is not in force any more")


def _stands(adapter: AdapterSeen, row: VersionSeen, standing: PolicyInForce) -> bool:
    return (
        row.parameters == standing.parameters
        or row.artefact in {digest.hex for digest in standing.passed}
        or (adapter.name, row.number) in standing.withheld
    )


def _promises(adapters: tuple[AdapterSeen, ...], promised: Iterable[Promise]) -> Findings:
    """I2: what was acknowledged is in a state that keeps it."""
    rows = {(one.name, row.number): row for one in adapters for row in one.versions}
    for promise in promised:
        at, row = f"{promise.adapter}@{promise.number}", rows.get((promise.adapter, promise.number))
        if row is None or row.state not in HAS_ARTEFACT:
            yield Finding("I2", at, f"acknowledged, and now {row.state if row else 'unknown'}")
        elif promise.artefact is not None and row.artefact != promise.artefact:
            yield Finding("I2", at, f"acknowledged with another artefact than {promise.artefact[:SHORT]}")


def _bounded(data: Path, root: Path) -> Findings:
    """I10, beside a living gateway: names in the quarantine last a moment, and logs are set aside."""
    for directory in (data / QUARANTINE,):
        for entry in directory.iterdir() if directory.is_dir() else ():
            yield Finding("I10", f"quarantine file {entry.name[:80]!r}", "still has a name")
    if (data / QUARANTINE).is_dir() and (data / QUARANTINE).stat().st_mode & 0o077:
        yield Finding("I1", "quarantine", "others may read it")
    for log in data.glob("*.log*"):
        if log.stat().st_size > LOG_BYTES:
            yield Finding("I10", log.name, f"{log.stat().st_size} bytes")


def _secrets(data: Path, secrets: Iterable[str]) -> Audit:
    """I14: no key in any file but weights (which nobody wrote words into) and what strangers sent."""
    wanted = [secret.encode() for secret in secrets if len(secret) >= SECRET_BYTES]
    if not wanted:
        return Audit((), skipped=(Skipped("keys in files", f"none of {SECRET_BYTES} characters or more was given"),))
    findings, searched, unread = [], 0, 0
    for path in _files(data):
        try:
            with path.open("rb") as file:
                text = file.read(SCAN_BYTES)
        except FileNotFoundError:  # removed meanwhile
            continue
        except OSError:
            unread += 1
            continue
        searched += 1
        if any(secret in text for secret in wanted):
            findings.append(Finding("I14", str(path.relative_to(data)), "holds a key"))
    skipped = (Skipped("keys in files", f"{unread} files could not be read", asked=not searched),) if unread else ()
    return Audit(tuple(findings), counts={"files_searched_for_keys": searched}, skipped=skipped)


def _files(data: Path) -> Iterator[Path]:
    for folder, below, names in os.walk(data):
        if Path(folder) == data and uploads.ORIGINALS in below:
            below.remove(uploads.ORIGINALS)
        for name in names:
            path = Path(folder, name)
            if name != WEIGHTS_FILE and path.is_file() and not path.is_symlink():
                yield path


def _holder_lives(root: Path) -> bool:
    """Whether the process that took the store's lock is alive; no, where its number means nothing to us."""
    try:
        return Path("/proc", str(int((root / LOCK).read_text(encoding="ascii")))).exists()
    except (OSError, ValueError):
        return False


def _notes(adapters: tuple[AdapterSeen, ...], root: Path, standing: PolicyInForce | None) -> Iterator[str]:
    flying = sum(row.state in IN_FLIGHT for one in adapters for row in one.versions)
    if flying:
        yield f"{flying} versions in flight (failed at the next start, if no gateway is at work on them)"
    staged = sum(1 for _ in (root / STAGING).iterdir()) if (root / STAGING).is_dir() else 0
    if staged:
        yield f"{staged} entries in staging (swept at the next start)"
    if standing is None:
        yield "what policy is in force is not written down: verdicts were not compared with it"
    elif standing.withheld:
        yield f"{len(standing.withheld)} versions withheld by the policy in force"
