"""Evaluation on canaries in the catalogue: the artefact that a rung made, and the rule for publishing a version."""

from dataclasses import dataclass
from typing import Final

from app.domain.digest import Digest
from app.domain.errors import VERSION_NOT_READY, Refused
from app.domain.verdict import Verdict
from app.store.catalogue.tables import VersionRow


@dataclass(frozen=True, slots=True)
class Corrected:
    """Artefact made by a rung above the floor, and its verdict."""

    artefact: Digest
    verdict: Verdict


NOT_EVALUATED: Final = Refused(VERSION_NOT_READY, "the name was rolled back before its behaviour was looked at")
"""Reason why a version failed that waited for its evaluation; the same bytes may be sent again."""


def publishable(row: VersionRow, evaluation: str | None) -> bool:
    """Return whether a version may be published: it passed the evaluation with this key, or needs none."""
    return evaluation is None or row.emptied or row.evaluated == evaluation
