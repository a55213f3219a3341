"""Components of one gateway that the use cases share, as one value."""

from dataclasses import dataclass, field

from app.concurrency.pools import Pools
from app.domain.artefact import Artefact
from app.domain.lora import TargetModel
from app.gateway.desired_state import StateInForce
from app.gateway.rules_in_force import Rules, RulesInForce
from app.gateway.webhook_notices import Notices
from app.load.fleet.fleet import Fleet
from app.load.reconcile.reconciler import Reconciler
from app.observe.metrics import Metrics
from app.observe.upload_progress import Progress
from app.sandbox.sanitise import Sanitise
from app.screen.reference.open import Reference
from app.serve.routing_table import RoutingTable
from app.store.artefacts.local import BlobStore
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.tables import VersionRow
from app.store.cluster.peers import Peers
from app.store.uploads import KeptUploads


@dataclass(frozen=True, slots=True)
class Components:
    """Components that the use cases share; built once, by server/wiring.py.

    screen_seconds: time limit of one screening, seconds.
    keep_versions: number of retired versions of each adapter, the newest, that stay loaded.
    sanitise: turns an upload into the artefact to store, in this process or in the sandbox.
    reconciler: keeps the engine equal to the desired state; the fleet, if there are several engines.
    desired: holder of the desired state in force.
    progress: steps of each upload, for clients that watch.
    zero: adapter that stands in for the served model if the engine cannot mix both in a batch; else None.
    pools: threads for blocking work.
    peers: the gateways that share the catalogue; None if it is this gateway's alone.
    rules: everything a verdict depends on besides the bytes; other rules need a new verdict.
    notices: news for webhooks.
    """

    target: TargetModel
    reference: Reference
    screen_seconds: float
    keep_versions: int
    sanitise: Sanitise
    blobs: BlobStore
    kept_uploads: KeptUploads
    catalogue: Catalogue
    reconciler: Reconciler | Fleet
    desired: StateInForce
    routing_table: RoutingTable
    metrics: Metrics
    progress: Progress
    zero: Artefact | None
    pools: Pools
    rules: RulesInForce
    peers: Peers | None = None
    notices: Notices = field(default_factory=Notices)

    @property
    def parameters(self) -> str:
        """Key of the operator's rules in force."""
        return self.rules.operators.parameters

    def rules_of(self, row: VersionRow) -> Rules:
        """Return the rules in force for a version: its tenant's."""
        return self.rules.of(row.name.tenant)
