"""Zero adapter: stands in for the served model in an engine that cannot mix adapters and the bare model in one batch."""

from typing import Final

from app.domain.artefact import Artefact
from app.domain.digest import Digest, digest_of
from app.domain.lora import Received, TargetModel
from app.domain.names import AdapterName, engine_name
from app.domain.policy import Policy
from app.prune.canonical import canonicalise
from app.prune.zero_adapter import zero_adapter
from app.screen.balance import balance_all
from app.screen.reference.open import Reference
from app.screen.screen import screen
from app.store.open import Store

NAME: Final = AdapterName("base")
"""Name of the zero adapter in the engine; reserved, so no upload can have it."""


def zero_adapter_name(digest: Digest) -> str:
    """Return the engine name of the zero adapter with this digest."""
    return engine_name(NAME, digest)


def store_zero_adapter(target: TargetModel, reference: Reference, policy: Policy, store: Store) -> Artefact:
    """Make, store and return this model's zero adapter: screened, stamped, canonical and claimed like every other."""
    nothing = digest_of(b"")
    adapter = balance_all(zero_adapter(target))
    verdict = screen(adapter, reference, policy)
    artefact = canonicalise(adapter, verdict, Received(nothing, nothing, 0, 0), target)
    if store.peers is not None:  # no row will ever name it, so it needs a claim
        store.peers.keep(artefact.digest)
    store.blobs.put(artefact)
    return artefact
