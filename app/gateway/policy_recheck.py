"""Policy recheck: measures versions screened under another policy or reference again before they are served."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Final

from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
from app.domain.digest import Digest
from app.domain.errors import Refused, Unavailable
from app.domain.policy import Policy
from app.domain.verdict import Outcome
from app.domain.version_state import SERVABLE, State
from app.gateway.components import Components
from app.gateway.desired_state import Key
from app.gateway.rules_in_force import Rules
from app.observe.log import event
from app.sandbox.sanitise import accepting
from app.screen.screen import screen
from app.store.audit.policy_in_force import PolicyInForce
from app.store.catalogue.tables import VersionRow
from app.validate.adapter import ValidateLimits, validate

FAILED_CANARIES: Final = "asked again, it failed canaries that the served model passes; its report has the counts"
"""Reason why a version is withheld that failed the evaluation in force."""

UNMEASURED: Final = "it cannot be measured: "
"""Beginning of the reason for withholding a version whose artefact the storage did not give."""

WAITS: Final = "it waits to be measured by the policy in force"
"""Reason why a version is withheld that was not measured yet."""

SLICE_S: Final = 1.0
"""Seconds that versions are measured before changes of other tenants are followed."""

RETRY_S: Final = 60.0
"""Seconds before a version that could not be measured is measured again."""


class PolicyRecheck:
    """Recheck of versions screened under other parameters, each measured once. Not thread-safe."""

    def __init__(self, components: Components, objection: Callable[[VersionRow], str | None] | None = None) -> None:
        """objection: returns why a version's artefact does not pass the policy in force, None if it passes; blocking."""
        self._components = components
        self._objection = objection or (lambda row: policy_objection(components, row))
        self._withheld: Mapping[Key, str] = {}
        self._measured: Mapping[Key, Policy] = {}  # the policy by which each was measured
        self._started = False
        self._retry_at: Mapping[Key, float] = {}
        self._written: tuple[Rules, Mapping[str, Rules], frozenset[Key]] | None = None

    @property
    def due(self) -> bool:
        """True if a version must be measured now that could not be measured before, or waits for others."""
        now = time.monotonic()
        return WAITS in self._withheld.values() or any(at <= now for at in self._retry_at.values())

    def check(self, rows: Iterable[VersionRow], written: AbstractSet[Digest] = frozenset()) -> Mapping[Key, str]:
        """Measure versions if needed; return version → reason for all that the rules in force do not pass. Blocking.

        Those that failed the evaluation in force are among them (canary_recheck.py asks them). A version that cannot be
        measured, because its artefact is damaged or the storage is away, is withheld as well; it is measured again RETRY_S
        later, or once its artefact is among those `written` since. The first check, at the start, measures all; later ones
        measure for SLICE_S, and withhold the rest until the next.
        """
        c, rows = self._components, tuple(rows)
        rules = {tenant: c.rules.of(tenant) for tenant in {row.name.tenant for row in rows}}
        alike = {tenant: c.rules.measured_alike(tenant) for tenant in rules}
        failed = {
            row.key: FAILED_CANARIES
            for row in rows
            if row.failed_evaluation is not None and row.failed_evaluation == rules[row.name.tenant].evaluation
        }
        older = {row.key: row for row in rows if row.parameters not in alike[row.name.tenant] and not row.emptied}
        found = {key: why for key, why in self._withheld.items() if key in older}
        retry_at = {key: at for key, at in self._retry_at.items() if key in older}
        measured = {key: policy for key, policy in self._measured.items() if key in older}
        before, until = dict(measured), time.monotonic() + SLICE_S if self._started else math.inf
        tried = False
        self._started = True
        for key, row in sorted(older.items(), key=lambda one: one[1].state is not State.READY):
            policy = rules[row.name.tenant].policy
            waits = time.monotonic() < retry_at.get(key, 0.0) and row.artefact not in written
            if measured.get(key) == policy or waits:
                continue
            if tried and time.monotonic() > until:
                found[key] = WAITS
                measured.pop(key, None)
                continue
            retry_at.pop(key, None)
            tried, measured_now = True, False
            try:
                why = self._objection(row)
                measured[key] = policy
                measured_now = True
            except (Unavailable, OSError) as error:
                why = f"{UNMEASURED}{error}"
                retry_at[key] = time.monotonic() + RETRY_S
            if why is None:
                found.pop(key, None)
                continue
            if found.get(key, WAITS) == WAITS:
                event("withheld", logging.WARNING, adapter=row.name, version=row.number, why=why)
            if measured_now and row.state in SERVABLE:
                c.notices.withheld(row.name, row.number, rules[row.name.tenant].parameters)
            found[key] = why
        self._withheld, self._retry_at, self._measured = found, retry_at, measured
        withheld = failed | found
        in_force = (c.rules.operators, c.rules.of_tenants, frozenset(withheld))
        if in_force != self._written or measured != before:
            self._write(withheld)
            self._written = in_force
        return withheld

    def _write(self, withheld: Mapping[Key, str]) -> None:
        """Record the rules in force for the auditor."""
        c = self._components
        rows = (*c.catalogue.served(), *c.catalogue.pending())
        older = (row for row in rows if row.parameters != c.rules_of(row).parameters and row.key not in withheld)
        passed = (row.artefact for row in older if row.artefact is not None)
        tenants = {tenant: (own.parameters, own.evaluation) for tenant, own in c.rules.of_tenants.items()}
        evaluation = c.rules.operators.evaluation
        PolicyInForce.make(c.parameters, passed, withheld, c.keep_versions, evaluation, tenants).write(c.blobs.root)


def is_judged(why: str) -> bool:
    """Return whether this reason for withholding a version is about the version, and not about what it waits for."""
    return why != WAITS and not why.startswith(UNMEASURED)


def policy_objection(components: Components, row: VersionRow) -> str | None:
    """Measure a stored artefact by its tenant's policy in force; return why it does not pass, None if it passes unchanged.

    Blocking. Its bytes are measured as stored, not balanced first, because the engine reads them as they are; an older
    release may have written them unbalanced. Screening refuses factors that the engine's rounding would turn into another
    update.
    Raises Unavailable or OSError if they cannot be read.
    """
    if row.artefact is None:
        return None
    c, folder = components, components.blobs.path(row.artefact)
    try:
        c.blobs.verify(row.artefact)
        with (folder / WEIGHTS_FILE).open("rb") as weights:  # canonical form: the served model's name, scaling 1
            adapter = validate((folder / CONFIG_FILE).read_bytes(), weights, c.target, ValidateLimits())
        policy = accepting(c.rules_of(row).policy)
        verdict = screen(adapter, c.reference, policy, complete=False, deadline_s=c.screen_seconds)
    except Refused as error:
        return str(error)
    return None if verdict.outcome is Outcome.CLEAN else f"by the policy in force it would be {verdict.outcome}"
