"""Progress callbacks of one upload: durations of its stages go to the metrics, its states to the catalogue."""

import json

from app.domain.adapter_source import Provenance
from app.domain.errors import Stage
from app.domain.manifest import received_json, verdict_json
from app.domain.verdict import Outcome, Verdict
from app.gateway.components import Components
from app.observe.log import event
from app.store.catalogue.tables import VersionRow


def whose(row: VersionRow) -> dict[str, object]:
    """Return the fields of a stage's log line that identify the version."""
    return {"adapter": str(row.name), "version": row.number, "received": row.received.weights_digest.hex}


class UploadSteps:
    """Steps of one upload: reports durations to the metrics and, if it has a version, its states to the catalogue.

    row: the version; None for a dry run. provenance: origin of an import, for the report.
    """

    def __init__(self, components: Components, row: VersionRow | None, provenance: Provenance | None = None) -> None:
        self._components = components
        self._row = row
        self._provenance = provenance
        self._verdict: Verdict | None = None

    @property
    def verdict(self) -> Verdict:
        """Verdict of the screening. Reading it before the screening has ended is a programmer's error."""
        assert self._verdict is not None
        return self._verdict

    @property
    def report(self) -> str:
        """Report for people, as JSON text: the received digests and sizes, the origin of an import, and the verdict."""
        assert self._row is not None
        origin = {} if self._provenance is None else {"source": self._provenance.plain()}
        fields = {"received": received_json(self._row.received), **origin, "verdict": verdict_json(self.verdict)}
        return json.dumps(fields, allow_nan=False)

    def took(self, stage: Stage, seconds: float, outcome: str) -> None:
        """See Steps."""
        self._components.metrics.took(stage, seconds, outcome, **({} if self._row is None else whose(self._row)))

    def validated(self) -> None:
        """See Steps."""
        if self._row is not None:
            self._components.progress.report(
                self._components.catalogue.record_validated(self._row.name, self._row.number)
            )

    def screened(self, verdict: Verdict) -> None:
        """See Steps."""
        self._verdict, row = verdict, self._row
        if row is None:
            return
        self._components.metrics.screened(verdict)
        counts = {
            "modules": len(verdict.modules),
            "pruned": len(verdict.pruned),
            "projected": len(verdict.projected),
        }
        event("screened", adapter=row.name, version=row.number, outcome=verdict.outcome.value, **counts)
        if verdict.outcome is not Outcome.REJECTED:
            self._components.progress.report(
                self._components.catalogue.record_screened(row.name, row.number, verdict, self.report)
            )
