"""Signatures of artefacts: an artefact's manifest carries a signed statement about its files and how they were screened."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from app import __version__
from app.domain.errors import Refused
from app.domain.statement import ARTEFACT, PAYLOAD_TYPE, Statement, artefact_statement
from app.store.envelope import PublicKey, Signer, opened_by

FIELD: Final = "statement"
"""Field of a manifest that holds the envelope."""

BOUND: Final = ("received", "reference", "metric", "policy", "verdict")
"""Fields of the statement that must be the manifest's own; releases may add others."""


@dataclass(frozen=True, slots=True)
class Signatures:
    """Key that signs new artefacts, and keys of which one must have signed an artefact that an engine is to read.

    signer: None: manifests are written unsigned. trusted: None: no signature is asked for.
    """

    signer: Signer | None = None
    trusted: tuple[PublicKey, ...] | None = None

    def signed(self, manifest: bytes) -> bytes:
        """Return the manifest with a statement by the signer in place of any other; unchanged without a signer.

        Raises ValueError if it is not a manifest.
        """
        if self.signer is None:
            return manifest
        try:
            fields = json.loads(manifest)
            payload = artefact_statement(__version__, fields).encode()
        except (LookupError, TypeError, RecursionError) as error:
            raise ValueError(f"no manifest: {type(error).__name__}") from error
        fields[FIELD] = self.signer.sign(payload, PAYLOAD_TYPE)
        return (json.dumps(fields, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()

    def objection(self, manifest: bytes) -> str | None:
        """Return why no engine may read an artefact with this manifest; None if a trusted key signed it, or none is asked.

        The statement must be about these files and this verdict: one that was signed for another artefact does not count.
        """
        return None if self.trusted is None else _objection(manifest, self.trusted)

    def lacks(self, manifest: bytes) -> bool:
        """Return whether there is a key, and neither it nor a trusted one signed this manifest."""
        if self.signer is None:
            return False
        return _objection(manifest, (self.signer.key.public_key(), *(self.trusted or ()))) is not None


def statement_in(manifest: bytes) -> dict[str, Any] | None:
    """Return the envelope that a manifest carries, unchecked; None if it carries none."""
    try:
        found = json.loads(manifest)[FIELD]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


UNSIGNED: Final = Signatures()
"""Nothing is signed, and no signature is asked for."""


def _objection(manifest: bytes, keys: Sequence[PublicKey]) -> str | None:
    if (envelope := statement_in(manifest)) is None:
        return "it carries no signed statement"
    try:
        payload, _ = opened_by(json.dumps(envelope).encode(), PAYLOAD_TYPE, keys)
        said, wanted = Statement.decode(payload), artefact_statement("", json.loads(manifest))
        about_this = said.kind == ARTEFACT and said.files == wanted.files
        about_this = about_this and all(said.predicate[name] == wanted.predicate[name] for name in BOUND)
    except Refused as refused:
        return refused.message
    except (ValueError, LookupError, TypeError, RecursionError):
        about_this = False
    return None if about_this else "its statement is about something else than this artefact and its verdict"
