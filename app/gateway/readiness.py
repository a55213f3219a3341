"""Readiness: each part of the gateway and what is wrong with it, for /ready."""

import logging
from collections.abc import Awaitable, Callable

from app.domain.errors import GatewayError
from app.gateway.components import Components
from app.load.client.engine import HttpEngine
from app.load.fleet.fleet import Fleet
from app.load.reconcile.reconciler import Reconciler
from app.observe.log import event


def readiness_of(engine: HttpEngine | Fleet, components: Components) -> Callable[[], Awaitable[dict[str, str | None]]]:
    """Check behind /ready."""
    reconciler, peers, in_thread = components.reconciler, components.peers, components.pools.readiness

    async def readiness() -> dict[str, str | None]:
        """Part → what is wrong with it, or None. The engine counts as ready once its adapters were looked after."""
        up = reconciler.engine_up and await engine.healthy()
        return {
            "reference": await in_thread(_wrong_with, "reference", components.reference.check_unchanged),
            "store": await in_thread(_wrong_with, "store", components.blobs.check_writable),
            "engine": None if up else _why_down(reconciler),
            **({} if peers is None or peers.fresh else {"catalogue": "not read for too long"}),
        }

    return readiness


def details_of(reconciler: Reconciler | Fleet) -> dict[str, str]:
    """Details of /ready: what is known of the model behind each engine."""
    notes = {one.number: one.objection.model.note for one in reconciler.each if one.objection.model is not None}
    if len(set(notes.values())) > 1:
        return {"model": "; ".join(f"engine {number}: {note}" for number, note in notes.items())}
    return {"model": next(iter(notes.values()), "not asked yet")}


def _why_down(reconciler: Reconciler | Fleet) -> str:
    return next((one.objection.why for one in reconciler.each if one.objection.why), "starting or away")


def _wrong_with(part: str, check: Callable[[], None]) -> str | None:
    """For everybody's eyes, so without the message, which may name a path."""
    try:
        check()
    except GatewayError as error:
        event("not_ready", logging.WARNING, part=part, why=error.message)
        return "not in order; the log says why"
    return None
