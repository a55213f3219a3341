"""OpenAI's /v1/models, made from the routing table: every valid value of `model`, and no data of the engine's."""

from typing import Any

from app.domain.errors import MODEL_NOT_FOUND, Refused
from app.serve.routing_table import RoutingTable, Served

OWNER = "lora-gateway"


def models_payload(routing_table: RoutingTable) -> dict[str, Any]:
    """Return the list: the served model first, then each adapter's name, then each of its versions."""
    versions = sorted(routing_table.snapshot.served, key=lambda served: (served.adapter.casefold(), served.version))
    data = [_card(routing_table.model, routing_table.created, None)]
    data += [_adapter(served, served.adapter, routing_table.model) for served in versions if served.active]
    data += [_adapter(served, f"{served.adapter}@{served.version}", routing_table.model) for served in versions]
    return {"object": "list", "data": data}


def model_payload(routing_table: RoutingTable, name: str) -> dict[str, Any]:
    """Return the entry of one model. Raises Refused MODEL_NOT_FOUND."""
    if name == routing_table.model:
        return _card(routing_table.model, routing_table.created, None)
    table = routing_table.snapshot
    if (target := table.targets.get(name)) is not None:
        meant = (target.adapter, target.version)
        served = next(one for one in table.served if (one.adapter, one.version) == meant)
        return _adapter(served, name, routing_table.model)
    raise Refused(MODEL_NOT_FOUND, f"The model {name[:80]!r} does not exist", param="model")


def _adapter(served: Served, name: str, parent: str) -> dict[str, Any]:
    return _card(name, served.created, parent) | {"version": served.version, "digest": served.digest}


def _card(name: str, created: int, parent: str | None) -> dict[str, Any]:
    # `root` equals `id`: vLLM's own `root` would be a path of this machine
    return {"id": name, "object": "model", "created": created, "owned_by": OWNER, "root": name, "parent": parent}
