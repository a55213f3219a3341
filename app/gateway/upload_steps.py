"""One upload on its way through the stages: how long each took, to the metrics; how far it came, to the catalogue."""

import json

from app.domain.errors import Stage
from app.domain.manifest import received_json, verdict_json
from app.domain.verdict import Outcome, Verdict
from app.gateway.components import Components
from app.observe.log import event
from app.store.catalogue.tables import VersionRow


def whose(row: VersionRow) -> dict[str, object]:
    """What a stage's log line says of the version it worked on."""
    return {"adapter": str(row.name), "version": row.number, "received": row.received.weights_digest.hex}


class UploadSteps:
    """Follows one upload: durations to the metrics, and where it has a version, its states to the catalogue."""

    def __init__(self, components: Components, row: VersionRow | None) -> None:
        self._components = components
        self._row = row
        self._verdict: Verdict | None = None

    @property
    def verdict(self) -> Verdict:
        """What was found. A programmer's error before it was."""
        assert self._verdict is not None
        return self._verdict

    @property
    def report(self) -> str:
        """What people are shown of it, as JSON."""
        assert self._row is not None
        fields = {"received": received_json(self._row.received), "verdict": verdict_json(self.verdict)}
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
