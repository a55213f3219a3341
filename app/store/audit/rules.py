"""Invariants that a store must hold at every moment: functions over an auditor's snapshot that yield a Finding if broken.

The findings are numbered as INVARIANTS.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from app.domain.artefact import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from app.domain.digest import SHORT
from app.domain.errors import CODES, RECORDED_LIMIT
from app.domain.experts import layer_path, pairs_of
from app.domain.names import in_engines
from app.domain.printable import printable
from app.domain.verdict import Reason
from app.domain.version_state import IN_FLIGHT, State
from app.store.audit.snapshot import AdapterSeen, BlobSeen, CatalogueSeen, VersionSeen

INVARIANTS: Final[Mapping[str, str]] = {
    "I1": "the engine reads only artefacts of this store that passed the policy in force",
    "I2": "every acknowledged version is stored, intact",
    "I3": "nothing half-written is visible, in files or in the catalogue",
    "I4": "the engine holds every version that should be served (checked only with an engine)",
    "I5": "a name leads to exactly one version of its own, an engine name to one digest",
    "I6": "bytes at a digest are those of the digest, and cannot be overwritten",
    "I7": "every served version has a verdict that lets it be served",
    "I8": "the same bytes under the same parameters have the same verdict and the same artefact",
    "I9": "every stored artefact, measured again, passes (checked only with a reference)",
    "I10": "nothing accumulates: quarantine, logs",
    "I12": "every refusal has its reason, every acceptance its manifest",
    "I13": "a version's columns fit its state",
    "I14": "no file contains a key",
}
"""Number of each invariant, as in the audit's report → the invariant."""

FILES: Final = frozenset({CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE})
HAS_ARTEFACT: Final = frozenset({"stored", "ready", "retired"})
MEASURED: Final = frozenset({"screened", *HAS_ARTEFACT})
WRITABLE: Final = 0o222
BY_OTHERS: Final = 0o022
SERVED_DTYPES: Final = frozenset({"F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """Broken invariant: its number, the place, and the observation."""

    invariant: str
    where: str
    what: str


Findings = Iterator[Finding]


def blob(seen: BlobSeen) -> Findings:
    """Check one artefact by itself: I1, I3, I6, I7, I12."""
    at = f"artefact {seen.name[:SHORT]}"
    if set(seen.files) != FILES:
        odd = sorted(set(seen.files) ^ FILES)
        yield Finding("I3", at, f"missing or foreign: {', '.join(odd)}")
        return
    if unreadable := sorted(name for name, file in seen.files.items() if file.sha256 is None):
        yield Finding("I6", at, f"no plain readable file: {', '.join(unreadable)}")
        return
    if seen.content_digest != seen.name:
        yield Finding("I6", at, f"its bytes have the digest {seen.content_digest[:SHORT]}")
    if seen.mode & BY_OTHERS or any(file.mode & WRITABLE for file in seen.files.values()):
        yield Finding("I6", at, "may be written")
    yield from _manifest(at, seen)
    yield from _form(at, seen)


def _manifest(at: str, seen: BlobSeen) -> Findings:
    manifest = seen.manifest or {}
    files = {name: file.sha256 for name, file in seen.files.items() if name != MANIFEST_FILE}
    if manifest.get("digest") != seen.name or manifest.get("files") != files:
        yield Finding("I12", at, "its manifest is missing, or about other bytes")
        return
    decided = _recorded_verdict(manifest)
    if decided is None or decided.outcome not in ("clean", "pruned", "projected"):
        yield Finding("I7", at, "its manifest carries no verdict that lets it be served")
    elif not _holds(seen, decided.named("keep", "project")):
        yield Finding("I7", at, "holds other modules than its verdict keeps or projects")


def _holds(seen: BlobSeen, served: list[str]) -> bool:
    """Return whether an artefact is on these modules; beside a layer's experts also on the others there, which are zero."""
    modules = (seen.config or {}).get("target_modules")
    if not isinstance(modules, list) or modules != sorted(map(str, modules)) or not set(served) <= set(modules):
        return False
    paths = {layer_path(module) for module in served} - {None}
    return all(layer_path(module) in paths for module in set(modules) - set(served))


def _form(at: str, seen: BlobSeen) -> Findings:
    """Check I1: canonical bytes hold scaling 1, a pair of tensors for each module, and no metadata."""
    config, tensors = seen.config or {}, seen.tensors or {}
    if config.get("peft_type") != "LORA" or config.get("r") != config.get("lora_alpha"):
        yield Finding("I1", at, "its configuration is not in canonical form")
    modules = config.get("target_modules")
    named = modules if isinstance(modules, list) else []
    wanted = {f"base_model.model.{pair}.lora_{side}.weight" for pair in pairs_of(map(str, named)) for side in "AB"}
    if not wanted or set(tensors) != wanted or not set(tensors.values()) <= SERVED_DTYPES:
        yield Finding("I1", at, "its tensors are not in canonical form")


def catalogue(seen: CatalogueSeen, schema: int) -> Findings:
    """Check the catalogue as a whole: I3, I5, I8."""
    for line in seen.damage:
        yield Finding("I3", "catalogue", line)
    if seen.schema != (schema,):
        yield Finding("I3", "catalogue", f"schema versions {seen.schema}")
    for stray in seen.strays:
        yield Finding("I5", f"row {stray}", "belongs to no adapter")
    names = Counter(one.name.casefold() for one in seen.adapters)
    engine_names = Counter(row.engine_name for one in seen.adapters for row in one.versions if row.engine_name)
    yield from (Finding("I5", name, "two adapters of one name") for name, count in names.items() if count > 1)
    yield from (Finding("I5", name, "two versions of one engine name") for name, n in engine_names.items() if n > 1)
    yield from _deterministic(seen)


def _deterministic(seen: CatalogueSeen) -> Findings:
    """Check I8 over all rows, deleted ones too; not those whose artefact the engine's answers chose (evaluation)."""
    results: dict[tuple[str, str, str], set[tuple[str | None, str | None, str | None]]] = defaultdict(set)
    for adapter in seen.adapters:
        for row in adapter.versions:
            if row.artefact is not None and row.evaluated is None:
                given = (row.config_digest, row.weights_digest, row.parameters)
                results[given].add((row.verdict_id, row.outcome, row.artefact))
    for given, found in results.items():
        if len(found) > 1:
            yield Finding("I8", f"upload {given[1][:SHORT]}", f"{len(found)} different results of the same bytes")


def adapter(seen: AdapterSeen) -> Findings:
    """Check one adapter and its versions: I5, I7, I12, I13."""
    if seen.name_key != seen.name.casefold():
        yield Finding("I5", seen.name, f"kept under the key {seen.name_key!r}")
    numbers = [row.number for row in seen.versions]
    if len(set(numbers)) < len(numbers) or not all(0 < number < seen.next_version for number in numbers):
        yield Finding("I13", seen.name, f"version numbers {numbers}, the next is {seen.next_version}")
    ready = [row.number for row in seen.versions if row.state == State.READY]
    if ready != ([] if seen.active is None else [seen.active]):
        yield Finding("I5", seen.name, f"points to version {seen.active}, ready are {ready}")
    if seen.deleted and any(row.state != State.DELETED for row in seen.versions):
        yield Finding("I13", seen.name, "deleted, with versions that are not")
    for row in seen.versions:
        yield from version(seen.name, row)


def version(name: str, row: VersionSeen) -> Findings:
    """Check one version's columns against its state: I5, I7, I12, I13."""
    at = f"{name}@{row.number}"
    if row.state not in set(State):
        yield Finding("I13", at, f"state {row.state!r}")
        return
    if row.state in ("rejected", "failed"):
        yield from _refusal(at, row)
    elif row.error_code is not None and row.state != State.DELETED:
        yield Finding("I13", at, f"{row.state} with the error {row.error_code}")
    if row.state in MEASURED:
        yield from _verdict(at, row)
    elif row.state in ("received", "validated") and row.outcome is not None:
        yield Finding("I13", at, f"{row.state} with the outcome {row.outcome}")
    if row.state in HAS_ARTEFACT:
        yield from _placed(name, at, row)
    elif row.state in IN_FLIGHT and row.artefact is not None:
        yield Finding("I13", at, f"{row.state} with an artefact")


def _refusal(at: str, row: VersionSeen) -> Findings:
    code = CODES.get(row.error_code or "")
    if code is None or not row.error_message:
        yield Finding("I12", at, f"{row.state} without a reason: {row.error_code}")
        return
    if row.state == State.REJECTED and code.status >= 500:
        yield Finding("I12", at, f"rejected for what is not the caller's fault: {code.name}")
    if printable(row.error_message, RECORDED_LIMIT) != row.error_message:
        yield Finding("I12", at, "its error message is not fit to be shown")
    if row.state == State.REJECTED and row.outcome == "rejected" and not row.report:
        yield Finding("I12", at, "rejected by a verdict, without a report")


def _verdict(at: str, row: VersionSeen) -> Findings:
    decided = _recorded_verdict(parsed(row.report))
    if row.outcome not in ("clean", "pruned", "projected", "emptied") or decided is None:
        yield Finding("I7", at, f"{row.state} with the outcome {row.outcome} and {'a' if decided else 'no'} report")
        return
    cut, projected = len(decided.named("prune")), len(decided.named("project"))
    recorded = (decided.outcome, decided.id, len(decided.modules), cut, projected)
    if recorded != (row.outcome, row.verdict_id, row.modules_total, row.modules_pruned, row.modules_projected):
        yield Finding("I7", at, "its report is about another verdict")
    if decided.named("reject"):
        yield Finding("I7", at, f"{row.state} although a module is rejected")


def _placed(name: str, at: str, row: VersionSeen) -> Findings:
    emptied = row.outcome == "emptied"
    if emptied is not (row.artefact is None) or emptied is not (row.engine_name is None):
        yield Finding("I13", at, f"{row.outcome}, artefact {row.artefact}, engine name {row.engine_name}")
    elif row.artefact is not None:
        plain = f"{in_engines(name)}@{row.artefact[:SHORT]}"
        if row.engine_name not in (plain, f"{plain}-{row.number}"):
            yield Finding("I5", at, f"the engine calls it {row.engine_name}")


def records(blobs: Iterable[BlobSeen], seen: CatalogueSeen) -> Findings:
    """Check I12 between artefacts and catalogue: a manifest agrees with the report of the upload that wrote it."""
    rows = [row for one in seen.adapters for row in one.versions]
    needed = {row.artefact for row in rows}
    reports = {row.verdict_id: parsed(row.report) for row in rows if row.report and row.verdict_id}
    for one in blobs:
        if one.name not in needed:  # the served model's stand-in, or a leftover of a kill
            continue
        decided, manifest = _recorded_verdict(one.manifest), one.manifest or {}
        if _made_by_no_upload(manifest):  # the stand-in's manifest stays when an upload has the very same bytes
            continue
        report = reports.get(decided.id) if decided else None
        if report is None or not _alike(manifest.get("verdict"), report.get("verdict")):
            yield Finding("I12", f"artefact {one.name[:SHORT]}", "its manifest is not what any report says")


def _made_by_no_upload(manifest: Mapping[str, Any]) -> bool:
    """Return whether this manifest is that of the served model's stand-in: no bytes received, and every module zero."""
    try:
        reasons = {str(entry["reason"]) for entry in manifest["verdict"]["modules"]}
        return bool(manifest["received"]["weights_bytes"] == 0 and reasons == {Reason.ZERO_UPDATE})
    except (LookupError, TypeError):
        return False


def _alike(one: Any, other: Any) -> bool:
    """Return whether both are equal, except for the last bits of measured numbers, which depend on memory addresses."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    return bool(one == other)


@dataclass(frozen=True, slots=True)
class _RecordedVerdict:
    """Verdict as recorded: (module, decision) in its order."""

    id: str
    outcome: str
    modules: tuple[tuple[str, str], ...]

    def named(self, *decisions: str) -> list[str]:
        """Return the modules with one of these decisions."""
        return [name for name, decision in self.modules if decision in decisions]


def _recorded_verdict(record: Mapping[str, Any] | None) -> _RecordedVerdict | None:
    """Return the verdict in a manifest or a report; None if there is no readable one."""
    try:
        verdict = (record or {})["verdict"]
        modules = tuple((str(entry["name"]), str(entry["decision"])) for entry in verdict["modules"])
        return _RecordedVerdict(str(verdict["id"]), str(verdict["outcome"]), modules)
    except (LookupError, TypeError):
        return None


def parsed(text: str | None) -> Mapping[str, Any] | None:
    """Return the report as a dictionary; None if it is not a JSON object."""
    try:
        found = json.loads(text or "")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
