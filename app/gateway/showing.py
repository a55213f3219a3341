"""A version as the other rooms are shown it: a route, a gauge, a refusal."""

from app.domain.errors import GatewayError, Refused
from app.domain.version_state import State
from app.observe.metrics import Fates
from app.serve.routing_table import Served
from app.store.catalogue.tables import VersionRow


class VersionRefused(Refused):
    """A refusal that left a version, with its report, in the catalogue."""

    def __init__(self, error: GatewayError, row: VersionRow) -> None:
        super().__init__(error.code, error.message, param=error.param)
        self.row = row


def served_as(row: VersionRow) -> Served:
    """What the routes are told of a version."""
    return Served(
        adapter=str(row.name),
        version=row.number,
        engine_name=row.engine_name,
        digest=str(row.artefact) if row.artefact else None,
        active=row.state is State.READY,
        created=int(row.created_at.timestamp()),
    )


def fates_of(row: VersionRow) -> Fates:
    """How many of its modules were kept, pruned, projected: what the gauges show."""
    pruned, projected = row.modules_pruned or 0, row.modules_projected or 0
    return Fates(kept=(row.modules_total or 0) - pruned - projected, pruned=pruned, projected=projected)
