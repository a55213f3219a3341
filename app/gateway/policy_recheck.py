"""Policy recheck: measures versions screened under another policy or reference again before they are served."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Final

from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
from app.domain.digest import Digest
from app.domain.errors import Refused, Unavailable
from app.domain.verdict import Outcome
from app.domain.version_state import SERVABLE
from app.gateway.components import Components
from app.gateway.desired_state import Key
from app.observe.log import event
from app.sandbox.sanitise import accepting
from app.screen.screen import screen
from app.store.audit.policy_in_force import PolicyInForce
from app.store.catalogue.tables import VersionRow
from app.validate.adapter import ValidateLimits, validate

FAILED_CANARIES: Final = "asked again, it failed canaries that the served model passes; its report has the counts"
"""Reason why a version is withheld that failed the evaluation in force."""

RETRY_S: Final = 60.0
"""Seconds before a version that could not be measured is measured again."""


class PolicyRecheck:
    """Recheck of versions screened under other parameters, each measured once. Not thread-safe."""

    def __init__(self, components: Components, objection: Callable[[VersionRow], str | None] | None = None) -> None:
        """objection: returns why a version's artefact does not pass the policy in force, None if it passes; blocking."""
        self._components = components
        self._objection = objection or (lambda row: policy_objection(components, row))
        self._withheld: Mapping[Key, str] = {}
        self._measured: set[Key] = set()
        self._retry_at: Mapping[Key, float] = {}
        self._written: tuple[str, frozenset[Key]] | None = None

    @property
    def due(self) -> bool:
        """True if a version that could not be measured must be measured again now."""
        now = time.monotonic()
        return any(at <= now for at in self._retry_at.values())

    def check(self, rows: Iterable[VersionRow], written: AbstractSet[Digest] = frozenset()) -> Mapping[Key, str]:
        """Measure versions if needed; return version → reason for all that the rules in force do not pass. Blocking.

        Those that failed the evaluation in force are among them (canary_recheck.py asks them). A version that cannot be
        measured, because its artefact is damaged or the storage is away, is withheld as well; it is measured again RETRY_S
        later, or once its artefact is among those `written` since.
        """
        c, rows = self._components, tuple(rows)
        failed = {row.key: FAILED_CANARIES for row in rows if c.evaluation and row.failed_evaluation == c.evaluation}
        older = {row.key: row for row in rows if row.parameters not in c.rules.measured_alike and not row.emptied}
        found = {key: why for key, why in self._withheld.items() if key in older}
        retry_at = {key: at for key, at in self._retry_at.items() if key in older}
        self._measured &= older.keys()
        measured = len(self._measured)
        for key, row in older.items():
            waits = time.monotonic() < retry_at.get(key, 0.0) and row.artefact not in written
            if key in self._measured or waits:
                continue
            retry_at.pop(key, None)
            measured_now = False
            try:
                why = self._objection(row)
                self._measured.add(key)
                measured_now = True
            except (Unavailable, OSError) as error:
                why = f"it cannot be measured: {error}"
                retry_at[key] = time.monotonic() + RETRY_S
            if why is None:
                found.pop(key, None)
                continue
            if key not in found:
                event("withheld", logging.WARNING, adapter=row.name, version=row.number, why=why)
            if measured_now and row.state in SERVABLE:
                c.notices.withheld(row.name, row.number, c.parameters)
            found[key] = why
        self._withheld, self._retry_at = found, retry_at
        withheld = failed | found
        in_force = (c.parameters, frozenset(withheld))
        if in_force != self._written or len(self._measured) > measured:
            self._write(withheld)
            self._written = in_force
        return withheld

    def _write(self, withheld: Mapping[Key, str]) -> None:
        """Record the rules in force for the auditor."""
        c = self._components
        rows = (*c.catalogue.served(), *c.catalogue.pending())
        older = (row for row in rows if row.parameters != c.parameters and row.key not in withheld)
        passed = (row.artefact for row in older if row.artefact is not None)
        PolicyInForce.make(c.parameters, passed, withheld, c.keep_versions, c.evaluation).write(c.blobs.root)


def policy_objection(components: Components, row: VersionRow) -> str | None:
    """Measure a stored artefact by the policy in force; return why it does not pass, None if it passes unchanged. Blocking.

    Its bytes are measured as stored, not balanced first, because the engine reads them as they are; an older release may
    have written them unbalanced. Screening refuses factors that the engine's rounding would turn into another update.
    Raises Unavailable or OSError if they cannot be read.
    """
    if row.artefact is None:
        return None
    c, folder = components, components.blobs.path(row.artefact)
    try:
        c.blobs.verify(row.artefact)
        with (folder / WEIGHTS_FILE).open("rb") as weights:  # canonical form: the served model's name, scaling 1
            adapter = validate((folder / CONFIG_FILE).read_bytes(), weights, c.target, ValidateLimits())
        verdict = screen(adapter, c.reference, accepting(c.policy), complete=False, deadline_s=c.screen_seconds)
    except Refused as error:
        return str(error)
    return None if verdict.outcome is Outcome.CLEAN else f"by the policy in force it would be {verdict.outcome}"
