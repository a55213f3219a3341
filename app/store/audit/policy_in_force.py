"""Record of the policy in force, kept beside the artefacts so that an auditor can check it.

A version is served if it was screened by the policy in force, or if its stored bytes were measured again by that policy
and passed; a version that did not pass is withheld. An artefact's manifest stays as it was when the bytes were written:
it records that measurement, and several policies may share one artefact.
"""

import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from app.domain.digest import Digest
from app.domain.tenants import split_name
from app.store.artefacts.files import disk_errors, sync_directory, write_durably

FILE_NAME: Final = ".standing.json"
_MODE: Final = 0o644


@dataclass(frozen=True, slots=True)
class PolicyInForce:
    """Policy in force. parameters: key of everything a verdict depends on besides the bytes.

    passed: artefacts of versions screened under other parameters that passed when measured again by these. withheld:
    (adapter, version number) of those that did not. keep_versions: number of an adapter's retired versions that the
    engines hold; None: all. evaluation: key of the evaluation that a version must have passed before it gets its name;
    None: none. tenants: tenant → parameters and evaluation, of those that have rules of their own.
    """

    parameters: str
    passed: frozenset[Digest] = frozenset()
    withheld: frozenset[tuple[str, int]] = frozenset()
    keep_versions: int | None = None
    evaluation: str | None = None
    tenants: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)

    def of(self, adapter: str) -> tuple[str, str | None]:
        """Return the keys of parameters and evaluation for this adapter's versions."""
        return self.tenants.get(split_name(adapter)[0], (self.parameters, self.evaluation))

    @classmethod
    def make(
        cls,
        parameters: str,
        passed: Iterable[Digest],
        withheld: Iterable[tuple[str, int]],
        keep_versions: int | None = None,
        evaluation: str | None = None,
        tenants: Mapping[str, tuple[str, str | None]] | None = None,
    ) -> Self:
        """Return a record from any iterables."""
        return cls(parameters, frozenset(passed), frozenset(withheld), keep_versions, evaluation, tenants or {})

    def write(self, root: Path) -> None:
        """Write the record to the store's directory, all of it or nothing. Raises Unavailable NO_SPACE or STORE_FAILED."""
        fields = {
            "parameters": self.parameters,
            "passed": sorted(digest.hex for digest in self.passed),
            "withheld": sorted(self.withheld),
            "keep_versions": self.keep_versions,
            "evaluation": self.evaluation,
            "tenants": self.tenants,
        }
        fresh = root / f".standing-{secrets.token_hex(8)}"
        with disk_errors("write down what is in force"):
            try:
                write_durably(fresh, json.dumps(fields, indent=1).encode(), _MODE)
                os.rename(fresh, root / FILE_NAME)
            finally:
                fresh.unlink(missing_ok=True)
            sync_directory(root)

    @classmethod
    def read(cls, root: Path) -> Self | None:
        """Return the record last written there; None if there is none, or if it cannot be read."""
        try:
            fields = json.loads((root / FILE_NAME).read_bytes())
            withheld = ((str(name), int(number)) for name, number in fields["withheld"])
            keep = fields.get("keep_versions")  # not recorded by an earlier release, which kept all
            passed = map(Digest, fields["passed"])
            evaluation = fields.get("evaluation")
            return cls.make(
                str(fields["parameters"]),
                passed,
                withheld,
                None if keep is None else int(keep),
                None if evaluation is None else str(evaluation),
                {str(tenant): _keys(*of) for tenant, of in fields.get("tenants", {}).items()},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None


def _keys(parameters: object, evaluation: object) -> tuple[str, str | None]:
    return str(parameters), None if evaluation is None else str(evaluation)
