"""OpenAI's /v1/models, made from the routing table: every valid value of `model`, and no data of the engine's."""

from typing import Any

from app.domain.errors import MODEL_NOT_FOUND, Refused
from app.domain.tenants import EVERYTHING, Reach
from app.serve.routing_table import RoutingTable, Served

OWNER = "lora-gateway"


def models_payload(routing_table: RoutingTable, reach: Reach = EVERYTHING) -> dict[str, Any]:
    """Return a caller's list: the served model first, then each adapter's name, then each of its versions."""
    named = ((reach.shown(served.adapter), served) for served in routing_table.snapshot.served)
    versions = [(name, served) for name, served in named if name is not None]
    versions.sort(key=lambda one: (one[0].casefold(), one[1].version))
    data = [_card(routing_table.model, routing_table.created, None)]
    data += [_adapter(served, name, routing_table.model) for name, served in versions if served.active]
    data += [_adapter(served, f"{name}@{served.version}", routing_table.model) for name, served in versions]
    return {"object": "list", "data": data}


def model_payload(routing_table: RoutingTable, name: str, reach: Reach = EVERYTHING) -> dict[str, Any]:
    """Return the entry of one model. Raises Refused MODEL_NOT_FOUND."""
    if name == routing_table.model:
        return _card(routing_table.model, routing_table.created, None)
    if (target := routing_table.target(name, reach)) is not None:
        meant = (target.adapter, target.version)
        served = next(one for one in routing_table.snapshot.served if (one.adapter, one.version) == meant)
        return _adapter(served, name, routing_table.model)
    raise Refused(MODEL_NOT_FOUND, f"The model {name[:80]!r} does not exist", param="model")


def _adapter(served: Served, name: str, parent: str) -> dict[str, Any]:
    return _card(name, served.created, parent) | {"version": served.version, "digest": served.digest}


def _card(name: str, created: int, parent: str | None) -> dict[str, Any]:
    # `root` equals `id`: vLLM's own `root` would be a path of this machine
    return {"id": name, "object": "model", "created": created, "owned_by": OWNER, "root": name, "parent": parent}
