"""OpenAPI description, completed: request bodies that the gateway parses itself, and the errors each route may return.

Answers are described by the routes' response models (schemas.py). Errors come from the table of error codes, so that the
description is always complete.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel

from app.api.access.rules import PUBLIC, ROUTES
from app.api.schemas import Refusal
from app.domain.errors import CODES, NO_SPACE, UNSUPPORTED_ENCODING, UPLOAD_TIMEOUT, Stage

Schema = dict[str, Any]

EVENTS: Final[Schema] = {"text/event-stream": {}}
"""Content of a stream of server-sent events."""

_JSON: Final = "application/json"
_SCHEMAS: Final = "#/components/schemas/{model}"
_DOOR: Final = frozenset({Stage.DOOR})
_UPLOAD: Final = frozenset(
    {Stage.DOOR, Stage.UPLOAD, Stage.VALIDATE, Stage.SCREEN, Stage.PRUNE, Stage.STORE, Stage.LOAD}
)
_STORED: Final = frozenset({Stage.DOOR, Stage.STORE})
_SERVED: Final = frozenset({Stage.DOOR, Stage.SERVE, Stage.LOAD})
_ANYWHERE: Final = frozenset({UNSUPPORTED_ENCODING.status, UPLOAD_TIMEOUT.status})
_WRITING: Final = frozenset({NO_SPACE.status})

_STAGES: Final[Mapping[tuple[str, str], frozenset[Stage]]] = {
    ("POST", "/adapters"): _UPLOAD,
    ("POST", "/screen"): _UPLOAD,
    ("GET", "/adapters"): _STORED,
    ("GET", "/adapters/{name}"): _STORED,
    ("GET", "/adapters/{name}/versions/{number}"): _STORED,
    ("GET", "/adapters/{name}/versions/{number}/attestation"): _STORED,
    ("GET", "/adapters/{name}/versions/{number}/signature"): _STORED,
    ("GET", "/adapters/{name}/events"): _STORED,
    ("POST", "/adapters/{name}/warm"): _STORED | {Stage.LOAD},
    ("POST", "/adapters/{name}/rollback"): _STORED | {Stage.LOAD},
    ("GET", "/adapters/{name}/traffic"): _STORED,
    ("PUT", "/adapters/{name}/traffic"): _STORED | {Stage.LOAD, Stage.SERVE},
    ("DELETE", "/adapters/{name}/traffic"): _STORED,
    ("POST", "/adapters/{name}/traffic/promote"): _STORED,
    ("POST", "/adapters/{name}/traffic/abort"): _STORED,
    ("POST", "/adapters/{name}/rescreen"): _UPLOAD,
    ("POST", "/rescreen"): _UPLOAD,
    ("DELETE", "/adapters/{name}"): _STORED | {Stage.LOAD},
    ("PUT", "/adapters/{name}/owner"): _STORED,
    ("GET", "/audit"): _STORED,
    ("GET", "/usage"): _STORED,
    ("GET", "/tenants"): _STORED,
    ("GET", "/tenants/{tenant}/keys"): _STORED,
    ("GET", "/tenants/{tenant}/limits"): _STORED,
    ("PUT", "/tenants/{tenant}/limits"): _STORED,
    ("GET", "/tenants/{tenant}/policy"): _STORED,
    ("PUT", "/tenants/{tenant}/policy"): _STORED,
    ("GET", "/tenants/{tenant}/canaries"): _STORED,
    ("PUT", "/tenants/{tenant}/canaries"): _STORED | {Stage.EVALUATE},
    ("DELETE", "/tenants/{tenant}/canaries"): _STORED,
    ("POST", "/tenants/{tenant}/keys"): _STORED,
    ("POST", "/tenants/{tenant}/keys/{key}/rotate"): _STORED,
    ("DELETE", "/tenants/{tenant}/keys/{key}"): _STORED,
    ("GET", "/tenants/{tenant}/webhooks"): _STORED,
    ("POST", "/tenants/{tenant}/webhooks"): _STORED,
    ("DELETE", "/tenants/{tenant}/webhooks/{webhook}"): _STORED,
    ("POST", "/tenants/{tenant}/webhooks/{webhook}/ping"): _STORED,
    ("GET", "/tenants/{tenant}/webhooks/{webhook}/messages"): _STORED,
    ("GET", "/resolve/{model}"): _SERVED | _STORED,
    ("GET", "/artefacts/{digest}/{file}"): _SERVED | _STORED,
    ("GET", "/metrics/engine"): _DOOR | {Stage.LOAD},
    ("GET", "/v1/models"): _SERVED,
    ("GET", "/v1/models/{name}"): _SERVED,
    ("POST", "/v1/chat/completions"): _SERVED,
    ("POST", "/v1/completions"): _SERVED,
    ("POST", "/v1/responses"): _SERVED,
    ("POST", "/v1/embeddings"): _SERVED,
    ("POST", "/v1/messages"): _SERVED,
    ("POST", "/v1/messages/count_tokens"): _SERVED,
    ("POST", "/tokenize"): _SERVED,
    ("POST", "/detokenize"): _SERVED,
}
"""Stages whose errors a route may return, besides the door's."""


def text(media_type: str) -> dict[int | str, Schema]:
    """Return a route's `responses` for a body of text."""
    return {200: {"description": "Answered", "content": {media_type: {"schema": {"type": "string"}}}}}


def body(schema: Schema, media_type: str = _JSON) -> Schema:
    """Return a route's `openapi_extra` for a request body that the gateway parses itself."""
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def fields(required: Mapping[str, Schema], optional: Collection[str] = ()) -> Schema:
    """Return the schema of an object with these fields; the gateway's code checks the optional ones and ignores others."""
    properties = {**{name: {} for name in optional}, **required}
    return {"type": "object", "required": list(required), "properties": properties}


def describe(app: FastAPI) -> None:
    """Extend `app.openapi()`. Call it after all routes are added and before the first request."""
    framework = app.openapi

    def openapi() -> Schema:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(framework(), app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # documented by FastAPI as the way to extend it


def _completed(page: Schema, app: FastAPI) -> Schema:
    components = page.setdefault("components", {})
    components["schemas"] = {**components.get("schemas", {}), **_schemas_of(Refusal)}
    for unused in ("HTTPValidationError", "ValidationError"):  # such errors are Refusals here
        components["schemas"].pop(unused, None)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for route in app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            for method in route.methods:
                _complete(page["paths"][route.path][method.lower()], (method, route.path))
    return page


def _schemas_of(model: type[BaseModel]) -> Schema:
    """Return the schema of a model and of every model it uses, by name."""
    schema = model.model_json_schema(mode="serialization", ref_template=_SCHEMAS)
    used: Schema = schema.pop("$defs", {})
    return {**used, model.__name__: schema}


def _complete(operation: Schema, at: tuple[str, str]) -> None:
    statuses = {code.status for code in CODES.values() if code.stage in _STAGES.get(at, _DOOR) | _DOOR}
    statuses |= _ANYWHERE if at[0] == "GET" else _ANYWHERE | _WRITING
    refusal = {_JSON: {"schema": {"$ref": _SCHEMAS.format(model=Refusal.__name__)}}}
    answers: Schema = {
        str(status): {"description": "Refused; `code` says why", "content": refusal} for status in statuses
    }
    described = {status: answer for status, answer in operation["responses"].items() if status != "422"}
    operation["responses"] = dict(sorted({**answers, **described}.items()))
    if ROUTES.get(at) != PUBLIC:
        operation["security"] = [{"key": []}]
