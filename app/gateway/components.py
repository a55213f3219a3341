"""Components of one gateway as one value: what the use cases share."""

from dataclasses import dataclass

from app.concurrency.pools import Pools
from app.domain.artefact import Artefact
from app.domain.lora import TargetModel
from app.domain.policy import Policy
from app.gateway.desired_state import StateInForce
from app.load.fleet.fleet import Fleet
from app.load.reconcile.reconciler import Reconciler
from app.observe.metrics import Metrics
from app.observe.upload_progress import Progress
from app.sandbox.sanitise import Measure, Sanitise
from app.screen.reference.open import Reference
from app.serve.routing_table import RoutingTable
from app.store.artefacts.local import BlobStore
from app.store.catalogue.catalogue import Catalogue
from app.store.cluster.peers import Peers
from app.store.uploads import KeptUploads
from app.validate.adapter import ValidateLimits


@dataclass(frozen=True, slots=True)
class Components:
    """Filled in once, by server/wiring.py.

    screen_seconds: the longest one screening may take.
    parameters: one key for all that a verdict depends on besides the bytes; other parameters, new verdict.
    keep_versions: of each adapter this many retired versions stay loaded, the newest.
    sanitise: makes of an upload what may be stored, in this process or in the sandbox.
    reconciler: keeps the engine equal to the desired state; the fleet, when there are several engines.
    desired: desired state in force.
    progress: steps of each upload, for those who watch.
    zero: adapter that stands in for the served model where the engine cannot mix both in a batch.
    pools: threads for what blocks.
    peers: the gateways that share the catalogue, if several may.
    """

    target: TargetModel
    limits: ValidateLimits
    reference: Reference
    policy: Policy
    screen_seconds: float
    parameters: str
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
    peers: Peers | None = None

    @property
    def measure(self) -> Measure:
        """Everything that a verdict depends on besides the upload."""
        return Measure(self.target, self.limits, self.reference, self.policy, self.screen_seconds)
