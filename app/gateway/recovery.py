"""Recovery: work that a stopped gateway left half done, at the start and when another gateway dies."""

import logging

from app.domain.errors import RESERVED_NAME, STORE_FAILED, Refused, Unavailable
from app.domain.names import AdapterName
from app.gateway.catalogue_follower import CatalogueFollower
from app.gateway.components import Components
from app.gateway.garbage import GarbageCollector
from app.observe.log import event


def recover(components: Components, follower: CatalogueFollower, garbage: GarbageCollector) -> None:
    """At the start, blocking, before uploads and engine: fail what was interrupted, collect, follow the catalogue."""
    catalogue = components.catalogue
    if catalogue.has_named(namesake := AdapterName(components.target.name).key):
        why = f"adapter {namesake!r} has the served model's name: one of them must be called otherwise"
        raise Refused(RESERVED_NAME, why)
    refuse_a_lost_catalogue(components)
    recovered = catalogue.recover()
    for row in recovered.to_load:
        if row.emptied:  # waits for no engine
            catalogue.activate(row.name, row.number)
    follower.follow()
    garbage.forget_uploads()  # the first pass does it again
    event("recovered", interrupted=len(recovered.interrupted), to_load=len(recovered.to_load))


async def take_over(components: Components, garbage: GarbageCollector) -> None:
    """Another gateway died: fail what it was at work on."""
    recovered = await components.pools.store(components.catalogue.recover)
    garbage.suspect()
    event("took_over", logging.WARNING, interrupted=len(recovered.interrupted))


def refuse_a_lost_catalogue(components: Components) -> None:
    """Artefacts of uploads and no row at all: not a new store but one whose catalogue was lost. Nothing is thrown away."""
    if components.catalogue.ever_used():
        return
    blobs = components.blobs
    if theirs := [digest for digest in blobs.digests() if blobs.received_bytes(digest)]:
        why = f"the catalogue is empty and {len(theirs)} artefacts of uploads are there: restore it, or move them away"
        raise Unavailable(STORE_FAILED, why)
