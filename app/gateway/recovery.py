"""Recovery of versions that a stopped gateway left unfinished: at start, and when another gateway dies."""

import logging

from app.domain.errors import RESERVED_NAME, STORE_FAILED, Refused, Unavailable
from app.domain.names import AdapterName
from app.gateway.catalogue_follower import CatalogueFollower
from app.gateway.components import Components
from app.gateway.garbage import GarbageCollector
from app.observe.log import event


def recover(components: Components, follower: CatalogueFollower, garbage: GarbageCollector) -> None:
    """Fail interrupted versions, publish emptied ones, follow the catalogue, and remove unneeded kept uploads.

    Blocking; called at start, before uploads and the engine. Raises Refused RESERVED_NAME if an adapter has the served
    model's name; Unavailable, also if the catalogue was lost.
    """
    catalogue = components.catalogue
    if catalogue.has_named(namesake := AdapterName(components.target.name).key):
        why = f"adapter {namesake!r} has the served model's name: one of the two must be renamed"
        raise Refused(RESERVED_NAME, why)
    refuse_a_lost_catalogue(components)
    recovered = catalogue.recover()
    emptied = [row for row in recovered.to_load if row.emptied]
    for row in emptied:  # they need no engine
        catalogue.activate(row.name, row.number)
    follower.follow()
    garbage.forget_uploads()  # repeated after the first reconcile pass
    to_load = len(recovered.to_load) - len(emptied)
    event("recovered", interrupted=len(recovered.interrupted), to_load=to_load, emptied=len(emptied))


async def take_over(components: Components, garbage: GarbageCollector) -> None:
    """Fail the versions that a dead gateway was working on."""
    recovered = await components.pools.store(components.catalogue.recover)
    garbage.suspect()
    event("took_over", logging.WARNING, interrupted=len(recovered.interrupted))


def refuse_a_lost_catalogue(components: Components) -> None:
    """Raise Unavailable STORE_FAILED if artefacts of uploads exist and the catalogue was never used: it was lost.

    No artefact is removed.
    """
    if components.catalogue.ever_used():
        return
    blobs = components.blobs
    if theirs := [digest for digest in blobs.digests() if blobs.received_bytes(digest)]:
        why = f"the catalogue is empty and {len(theirs)} artefacts of uploads are there: restore it, or move them away"
        raise Unavailable(STORE_FAILED, why)
