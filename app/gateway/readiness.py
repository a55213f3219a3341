"""Readiness: each part of the gateway with its problem, if any, for /ready."""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from app.domain.errors import GatewayError
from app.domain.policy import Towers
from app.domain.spellings import is_tower
from app.gateway.components import Components
from app.load.client.engine import HttpEngine
from app.load.fleet.fleet import Fleet
from app.load.reconcile.reconciler import Reconciler
from app.observe.log import event


def readiness_of(engine: HttpEngine | Fleet, components: Components) -> Callable[[], Awaitable[dict[str, str | None]]]:
    """Return the check behind /ready."""
    reconciler, peers, in_thread = components.reconciler, components.peers, components.pools.readiness

    async def readiness() -> dict[str, str | None]:
        """Return part → problem, or None if it is ready.

        The engine is ready if the reconciler found it usable when it last asked, holds what answers for the served model,
        and can compute now.
        """
        up = reconciler.engine_up and _answers(components) and await engine.healthy()
        return {
            "reference": await in_thread(_problem_with, "reference", components.reference.check_unchanged),
            "store": await in_thread(_problem_with, "store", components.blobs.check_writable),
            "engine": None if up else _reason_down(reconciler),
            **({} if peers is None or peers.fresh else {"catalogue": "not read for too long"}),
        }

    return readiness


def details_of(components: Components) -> Callable[[], dict[str, str]]:
    """Return the details for /ready: the identity of the model behind each engine, whether behaviour is looked at, and, of
    a model with towers, whether a LoRA on them is served."""
    towers = (
        {"towers": _TOWERS[components.rules.operators.policy.towers]}
        if any(map(is_tower, components.reference.modules))
        else {}
    )

    def details() -> dict[str, str]:
        each = components.reconciler.each
        notes = {one.number: one.objection.model.note for one in each if one.objection.model is not None}
        model = next(iter(notes.values()), "not asked yet")
        if len(set(notes.values())) > 1:
            model = "; ".join(f"engine {number}: {note}" for number, note in notes.items())
        return {"model": model, "behaviour": components.rules.note, **towers}

    return details


_TOWERS: Final = {
    Towers.CUT: "modules of towers and projectors are cut out of adapters",
    Towers.REJECT: "adapters on towers and projectors are rejected",
    Towers.SERVE: "served: an external engine has to run with --enable-tower-connector-lora",
}


def _answers(components: Components) -> bool:
    """Return whether the served model can be asked: an adapter that stands in for it must be loaded first."""
    try:
        components.routing_table.resolve(components.target.name)
    except GatewayError:
        return False
    return True


def _reason_down(reconciler: Reconciler | Fleet) -> str:
    return next((one.objection.why for one in reconciler.each if one.objection.why), "starting or away")


def _problem_with(part: str, check: Callable[[], None]) -> str | None:
    """Run the check; return its failure in a form for every caller, without the message, which may name a path."""
    try:
        check()
    except GatewayError as error:
        event("not_ready", logging.WARNING, part=part, why=error.message)
        return "not in order; the log says why"
    return None
