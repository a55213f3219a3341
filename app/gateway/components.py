"""The rooms of one gateway as one value: what the pipeline leads through and publishing keeps in step."""

from dataclasses import dataclass

from app.concurrency.pools import Pools
from app.domain.artefact import Artefact
from app.domain.lora import TargetModel
from app.domain.policy import Policy
from app.load.fleet.fleet import Fleet
from app.load.reconcile.reconciler import Reconciler
from app.observe.metrics import Metrics
from app.observe.upload_progress import Progress
from app.sandbox.sanitise import Measure, Sanitise
from app.screen.reference.open import Reference
from app.serve.routing_table import Routes
from app.store.artefacts.local import BlobStore
from app.store.catalogue.catalogue import Catalogue
from app.store.cluster.peers import Peers
from app.store.uploads import Originals
from app.validate.adapter import ValidateLimits


@dataclass(frozen=True, slots=True)
class Rooms:
    """Filled in once, by `main`.

    parameters: one key for all that a verdict depends on besides the bytes; other parameters, new verdict.
    screen_seconds: the longest one screening may take.
    keep_versions: of each adapter this many retired versions stay loaded, the newest.
    progress: what becomes of each upload, for those who watch.
    sanitise: makes of an upload what may be stored, here or in a process that is shut away.
    reconciler: keeps the engine filled, or the fleet of several.
    pools: threads for what blocks.
    peers: the gateways that share the catalogue, where several may.
    noop: the zero adapter that stands in for the served model where the engine cannot mix both in a batch, else None.
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
    originals: Originals
    catalogue: Catalogue
    reconciler: Reconciler | Fleet
    routes: Routes
    metrics: Metrics
    progress: Progress
    noop: Artefact | None
    pools: Pools
    peers: Peers | None = None

    @property
    def measure(self) -> Measure:
        """What a verdict depends on besides the upload."""
        return Measure(self.target, self.limits, self.reference, self.policy, self.screen_seconds)
