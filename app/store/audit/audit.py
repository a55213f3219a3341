"""Independent audit of everything a gateway stores: disk, catalogue, and the engine's list if one is given.

Only reads, takes no lock, trusts nothing in memory: it may run beside a running gateway, on the leftovers of a kill, or
on a copy. Beside a running gateway an audit sometimes falls between two steps: run it twice there and keep the findings
that both report.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from app.domain.artefact import WEIGHTS_FILE
from app.domain.digest import SHORT
from app.domain.version_state import IN_FLIGHT, SERVABLE, State
from app.store.artefacts.files import entries_of
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
"""Most bytes of one log file: the engine's child wrapper rotates it at 16 MiB, one write late."""

SECRET_BYTES: Final = 8
"""Shortest secret that is searched for, characters: a shorter one would match everywhere."""

SCAN_BYTES: Final = 1 << 30
"""Bytes of a file, from its beginning, that are searched for secrets."""

_HEX: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Promise:
    """Version acknowledged to a client as stored. artefact: its digest; None if unknown, or if the version is emptied."""

    adapter: str
    number: int
    artefact: str | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """Part that was not examined, and the reason. asked: it was requested, and none of it was examined."""

    what: str
    why: str
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Audit:
    """Result of one audit.

    counts: numbers of examined things, and nothing else; skipped: parts not examined; notes: oddities that break no
    rule.
    """

    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()

    def adding(
        self, findings: Iterable[Finding] = (), counts: Mapping[str, int] | None = None, skipped: Iterable[Skipped] = ()
    ) -> "Audit":
        """Return this audit with the results of another examination added."""
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
    between: Callable[[int], object] = lambda _: None,
) -> Audit:
    """Audit the data directory and the catalogue at `url` (a SQLAlchemy URL) once.

    listed: the adapters that the engine lists, by name; None: not asked. fetching: the engine fetches adapters by
    itself. promised: versions acknowledged to clients. secrets: keys that no file may contain. artefacts: their
    directory, if it is not in `data`. store_url: the object storage that holds the artefacts; the local ones are then
    copies. rehash: whether the storage's objects are read, too, not only listed. between: called after each local artefact
    with its bytes, and may wait. Blocking; hashes every artefact.
    Raises Unavailable if the catalogue cannot be read.
    """
    root = artefacts or data / ARTEFACTS
    seen = read_catalogue(url)  # before the files: artefacts are stored before their row, removed after it
    stored = None if store_url is None else s3.look(store_url, rehash=rehash)
    blobs, foreign = _blobs(root, between)
    policy = PolicyInForce.read(root)
    by_digest = {blob.name: tuple(rules.blob(blob)) for blob in blobs}
    findings = [*foreign, *rules.catalogue(seen, SCHEMA_VERSION), *rules.records(blobs, seen)]
    findings += [found for several in by_digest.values() for found in several]
    for adapter in seen.adapters:
        findings += [
            *rules.adapter(adapter),
            *_present(adapter, by_digest, copies=stored is not None),
            *_in_force(adapter, policy),
        ]
    findings += _promises(seen.adapters, promised)
    findings += [] if stored is None else s3.findings(stored, seen.adapters)
    gateway_running = _holder_lives(root)
    findings += _bounded(data, root) if gateway_running else ()
    findings += uploads.originals(data, root, seen, gateway_running=gateway_running)
    searched = _secrets(data, secrets)
    findings += searched.findings
    if listed is not None and fetching:
        findings += engines.fetching(seen.adapters, listed, by_digest, policy)
    elif listed is not None:
        findings += engines.filled(seen.adapters, listed, root, by_digest, policy)
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
    skipped = [*_skipped(root, stored, gateway_running=gateway_running), *searched.skipped]
    notes = [*_notes(seen.adapters, root, policy), *([] if stored is None else s3.notes(stored))]
    if spare := len(set(by_digest) - needed):
        notes.append(f"{spare} artefacts no version needs (one of them may be the served model's stand-in)")
    return Audit(tuple(sorted(set(findings))), tuple(notes), counts, tuple(skipped))


def _skipped(root: Path, stored: s3.Stored | None, *, gateway_running: bool) -> Iterator[Skipped]:
    """Yield the parts that do not exist, or were not to be examined."""
    if not root.is_dir():
        what = "artefacts" if stored is None else "copies of artefacts"
        yield Skipped(what, f"{root} is no directory", asked=stored is None)
    if stored is not None and not stored.rehash:
        yield Skipped("bytes in the object storage", "it was listed only")
    if not gateway_running:
        yield Skipped("names in the quarantine, sizes of logs", "no gateway is at work here")


def _blobs(root: Path, between: Callable[[int], object]) -> tuple[list[BlobSeen], list[Finding]]:
    blobs, foreign = [], []
    for entry in sorted(entries_of(root), key=lambda e: e.name) if root.is_dir() else ():
        if entry.name in (STAGING, LOCK, FILE_NAME, MARK) or entry.name.startswith((".standing-", f"{MARK}-")):
            continue
        if len(entry.name) != 2 * 32 or not set(entry.name) <= _HEX or not entry.is_dir(follow_symlinks=False):
            foreign.append(Finding("I3", f"store entry {entry.name[:80]!r}", "is no artefact"))
            continue
        try:
            blobs.append(read_blob(Path(entry.path)))
        except FileNotFoundError:  # removed meanwhile: if a version needs it, its absence is found
            continue
        between(sum(file.size for file in blobs[-1].files.values()))
    return blobs, foreign


def _present(adapter: AdapterSeen, blobs: Mapping[str, tuple[Finding, ...]], *, copies: bool) -> Findings:
    """Check I2: an artefact that the catalogue names is on the disk, intact. copies: these may be missing there."""
    for row in adapter.versions:
        if row.state not in HAS_ARTEFACT or row.artefact is None:
            continue
        at = f"{adapter.name}@{row.number}"
        if row.artefact not in blobs:
            if not copies:
                yield Finding("I2", at, f"artefact {row.artefact[:SHORT]} is not there")
        elif blobs[row.artefact]:
            yield Finding("I2", at, f"artefact {row.artefact[:SHORT]} is damaged")


def _in_force(adapter: AdapterSeen, policy: PolicyInForce | None) -> Findings:
    """Check I1: every version was screened by the policy in force.

    An emptied version needs no check: the served model itself answers for it.
    """
    if policy is None:
        return
    for row in adapter.versions:
        if row.state in HAS_ARTEFACT and row.artefact is not None and not _allowed(adapter, row, policy):
            yield Finding("I1", f"{adapter.name}@{row.number}", "screened by a policy that is not in force any more")
        if row.state in SERVABLE and not _asked(adapter, row, policy):
            yield Finding("I7", f"{adapter.name}@{row.number}", f"is {row.state}, and its behaviour was not looked at")


def _asked(adapter: AdapterSeen, row: VersionSeen, policy: PolicyInForce) -> bool:
    """Return whether a version passed the evaluation in force, if it needs one.

    Those of earlier parameters and emptied ones do not, nor those that a rollback retired while they waited.
    """
    parameters, evaluation = policy.of(adapter.name)
    needed = evaluation is not None and row.parameters == parameters and row.artefact is not None
    return not needed or row.evaluated == evaluation


def _allowed(adapter: AdapterSeen, row: VersionSeen, policy: PolicyInForce) -> bool:
    return (
        row.parameters == policy.of(adapter.name)[0]
        or row.artefact in {digest.hex for digest in policy.passed}
        or (adapter.name, row.number) in policy.withheld
    )


def _promises(adapters: tuple[AdapterSeen, ...], promised: Iterable[Promise]) -> Findings:
    """Check I2: every acknowledged version is in a state that keeps it."""
    rows = {(one.name, row.number): row for one in adapters for row in one.versions}
    for promise in promised:
        at, row = f"{promise.adapter}@{promise.number}", rows.get((promise.adapter, promise.number))
        if row is None or row.state not in HAS_ARTEFACT:
            yield Finding("I2", at, f"acknowledged, and now {row.state if row else 'unknown'}")
        elif promise.artefact is not None and row.artefact != promise.artefact:
            yield Finding("I2", at, f"acknowledged with another artefact than {promise.artefact[:SHORT]}")


def _bounded(data: Path, root: Path) -> Findings:
    """Check I10, beside a running gateway: files in the quarantine lose their names at once, and logs are rotated."""
    for directory in (data / QUARANTINE,):
        for entry in directory.iterdir() if directory.is_dir() else ():
            yield Finding("I10", f"quarantine file {entry.name[:80]!r}", "still has a name")
    if (data / QUARANTINE).is_dir() and (data / QUARANTINE).stat().st_mode & 0o077:
        yield Finding("I1", "quarantine", "others may read it")
    for log in data.glob("*.log*"):
        if log.stat().st_size > LOG_BYTES:
            yield Finding("I10", log.name, f"{log.stat().st_size} bytes")


def _secrets(data: Path, secrets: Iterable[str]) -> Audit:
    """Check I14: no key in any file except weights (which contain no text) and kept uploads."""
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
    """Return whether the process that took the store's lock is alive; False if its pid is unreadable or unknown here."""
    try:
        return Path("/proc", str(int((root / LOCK).read_text(encoding="ascii")))).exists()
    except (OSError, ValueError):
        return False


def _notes(adapters: tuple[AdapterSeen, ...], root: Path, policy: PolicyInForce | None) -> Iterator[str]:
    in_flight = sum(row.state in IN_FLIGHT for one in adapters for row in one.versions)
    if in_flight:
        yield f"{in_flight} versions in flight (failed at the next start, if no gateway is at work on them)"
    staged = sum(1 for _ in (root / STAGING).iterdir()) if (root / STAGING).is_dir() else 0
    if staged:
        yield f"{staged} entries in staging (swept at the next start)"
    if policy is None:
        yield "what policy is in force is not written down: verdicts were not compared with it"
    elif policy.withheld:
        yield f"{len(policy.withheld)} versions withheld by the policy in force"
