"""Policy recheck: measures versions screened under another policy or reference again before they are served."""

import logging
from collections.abc import Callable, Iterable, Mapping

from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
from app.domain.errors import GatewayError
from app.domain.verdict import Outcome
from app.gateway.components import Components
from app.observe.log import event
from app.sandbox.sanitise import accepting
from app.screen.screen import screen
from app.store.audit.policy_in_force import PolicyInForce
from app.store.catalogue.tables import VersionRow
from app.validate.adapter import ValidateLimits, validate


class PolicyRecheck:
    """Recheck of versions screened under other parameters, each measured once. Not thread-safe."""

    def __init__(self, components: Components, objection: Callable[[VersionRow], str | None] | None = None) -> None:
        """objection: returns why a version's artefact does not pass the policy in force, None if it passes; blocking."""
        self._components = components
        self._objection = objection or (lambda row: policy_objection(components, row))
        self._withheld: Mapping[tuple[str, int], str] = {}
        self._measured: set[tuple[str, int]] = set()
        self._written = False

    def check(self, rows: Iterable[VersionRow]) -> Mapping[tuple[str, int], str]:
        """Measure versions if needed; return version → reason for all that the policy in force does not pass. Blocking."""
        found, measured = dict(self._withheld), len(self._measured)
        for row in rows:
            if row.parameters == self._components.parameters or row.emptied or row.key in self._measured:
                continue
            if (why := self._objection(row)) is not None:
                found[row.key] = why
                event("withheld", logging.WARNING, adapter=row.name, version=row.number, why=why)
            self._measured.add(row.key)
        self._withheld = found
        if not self._written or len(self._measured) > measured:
            self._write()
            self._written = True
        return found

    def _write(self) -> None:
        """Record the policy in force for the auditor."""
        c = self._components
        rows = (*c.catalogue.served(), *c.catalogue.pending())
        older = (row for row in rows if row.parameters != c.parameters and row.key not in self._withheld)
        passed = (row.artefact for row in older if row.artefact is not None)
        PolicyInForce.make(c.parameters, passed, self._withheld, c.keep_versions).write(c.blobs.root)


def policy_objection(components: Components, row: VersionRow) -> str | None:
    """Measure a stored artefact by the policy in force; return why it does not pass, None if it passes unchanged. Blocking.

    Its bytes are measured as stored, not balanced first, because the engine reads them as they are; an older release may
    have written them unbalanced. Screening refuses factors that the engine's rounding would turn into another update.
    """
    if row.artefact is None:
        return None
    c, folder = components, components.blobs.path(row.artefact)
    try:
        c.blobs.verify(row.artefact)
        with (folder / WEIGHTS_FILE).open("rb") as weights:  # canonical form: the served model's name, scaling 1
            adapter = validate((folder / CONFIG_FILE).read_bytes(), weights, c.target, ValidateLimits())
        verdict = screen(adapter, c.reference, accepting(c.policy), deadline_s=c.screen_seconds)
    except (GatewayError, OSError) as error:
        return str(error)
    return None if verdict.outcome is Outcome.CLEAN else f"by the policy in force it would be {verdict.outcome}"
