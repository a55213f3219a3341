"""Statements about an artefact or a version, in in-toto's form: the files covered, and how they were screened.

The form is Statement v1 of the in-toto Attestation Framework (github.com/in-toto/attestation, spec/v1/statement.md); the
predicates are ours. They state what was measured when the artefact was made, not that an adapter is harmless.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
from app.domain.digest import Digest, digest_of
from app.domain.errors import BAD_STATEMENT, Refused
from app.domain.printable import printable

STATEMENT: Final = "https://in-toto.io/Statement/v1"
SCREENING: Final = "urn:lora-gateway:screening:1"
"""Type of the predicate about a version: its name, how it was screened, what the canaries said."""

ARTEFACT: Final = "urn:lora-gateway:artefact:1"
"""Type of the predicate about an artefact: how it was screened, whatever versions it has."""

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
"""Media type of a statement in its envelope."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement: digests of the files by name, the predicate as plain JSON values, and the predicate's type."""

    files: Mapping[str, Digest]
    predicate: Mapping[str, Any]
    kind: str = SCREENING

    def encode(self) -> bytes:
        """Return the statement as JSON; the same values give the same bytes."""
        subject = [{"name": name, "digest": {"sha256": digest.hex}} for name, digest in sorted(self.files.items())]
        fields = {"_type": STATEMENT, "subject": subject, "predicateType": self.kind, "predicate": self.predicate}
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def decode(cls, payload: bytes) -> "Statement":
        """Parse what `encode` wrote. Raises Refused BAD_STATEMENT for anything else."""
        try:
            fields = json.loads(payload)
            if fields["_type"] != STATEMENT or fields["predicateType"] not in (SCREENING, ARTEFACT):
                raise Refused(
                    BAD_STATEMENT, f"it is a statement about something else: {_text(fields['predicateType'])}"
                )
            files = {str(one["name"]): Digest(one["digest"]["sha256"]) for one in fields["subject"]}
            if files.keys() != {CONFIG_FILE, WEIGHTS_FILE}:
                raise Refused(BAD_STATEMENT, f"it covers other files than an adapter's: {_text(sorted(files))}")
            return cls(files, dict(fields["predicate"]), fields["predicateType"])
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise Refused(BAD_STATEMENT, f"it is not a statement of this gateway: {type(error).__name__}") from error

    def check(self, found: Mapping[str, Digest | None]) -> None:
        """Raise Refused BAD_STATEMENT unless the files `found` are those it covers, all of them and no others.

        The digest of a folder is None.
        """
        for name in sorted(self.files.keys() | found.keys()):
            if name not in found:
                raise Refused(BAD_STATEMENT, f"{name} is missing", param=name)
            if name not in self.files:
                raise Refused(BAD_STATEMENT, f"{_text(name)} is there, and the statement does not cover it", param=name)
            if found[name] != self.files[name]:
                raise Refused(BAD_STATEMENT, f"{name} has other bytes than the statement covers", param=name)


def screening_statement(model: str, gateway: str, manifest: Mapping[str, Any], report: Mapping[str, Any]) -> Statement:
    """Return the statement about a version.

    model: name@number. gateway: version of the gateway. manifest: that of its artefact. report: that of the version.
    """
    behaviour = report.get("behaviour")
    asked = None if behaviour is None else {key: behaviour[key] for key in ("battery", "judge", "tolerance", "chosen")}
    predicate = {"model": model, **_screened(gateway, report), "canaries": asked}
    return Statement(_files(manifest), predicate)


def artefact_statement(gateway: str, manifest: Mapping[str, Any]) -> Statement:
    """Return the statement about an artefact. gateway: version of the gateway.

    Raises LookupError, TypeError or ValueError if `manifest` is not an artefact's manifest.
    """
    return Statement(_files(manifest), _screened(gateway, manifest), ARTEFACT)


def _screened(gateway: str, source: Mapping[str, Any]) -> dict[str, Any]:
    """Return what both predicates have. source: a manifest or a report."""
    verdict = source["verdict"]
    scores = json.dumps(verdict["modules"], sort_keys=True, separators=(",", ":")).encode()
    counts = ("id", "outcome", "modules_total", "modules_pruned", "modules_projected")
    return {
        "gateway": gateway,
        "received": source["received"],
        **({"source": source["source"]} if "source" in source else {}),
        "reference": verdict["reference"],
        "metric": verdict["metric"],
        "policy": verdict["policy"],
        "verdict": {**{key: verdict[key] for key in counts}, "scores_sha256": digest_of(scores).hex},
    }


def _files(manifest: Mapping[str, Any]) -> dict[str, Digest]:
    return {name: Digest(manifest["files"][name]) for name in (CONFIG_FILE, WEIGHTS_FILE)}


def _text(value: object) -> str:
    return printable(str(value), 80)
