"""Additions to the OpenAPI description that FastAPI cannot derive: request bodies parsed and responses written by the
gateway itself, and the refusals of each route, generated from the table of error codes and so always up to date.
"""

from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI
from fastapi.routing import APIRoute

from app.api.access.rules import NOBODY_ASKED, ROUTES
from app.domain.errors import CODES, NO_SPACE, UNSUPPORTED_ENCODING, UPLOAD_TIMEOUT, Stage
from app.domain.version_state import State
from app.serve.fields.chat import CHAT, COMPLETIONS, UNHEARD
from app.serve.fields.responses import EMBEDDINGS, RESPONSES

Schema = dict[str, Any]

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
    ("GET", "/adapters/{name}/events"): _STORED,
    ("POST", "/adapters/{name}/warm"): _STORED | {Stage.LOAD},
    ("POST", "/adapters/{name}/rollback"): _STORED | {Stage.LOAD},
    ("POST", "/adapters/{name}/rescreen"): _UPLOAD,
    ("POST", "/rescreen"): _UPLOAD,
    ("DELETE", "/adapters/{name}"): _STORED | {Stage.LOAD},
    ("PUT", "/adapters/{name}/owner"): _STORED,
    ("GET", "/resolve/{model}"): _SERVED | _STORED,
    ("GET", "/artefacts/{digest}/{file}"): _SERVED | _STORED,
    ("GET", "/metrics/engine"): _DOOR | {Stage.LOAD},
    ("GET", "/v1/models"): _SERVED,
    ("GET", "/v1/models/{name}"): _SERVED,
    ("POST", "/v1/chat/completions"): _SERVED,
    ("POST", "/v1/completions"): _SERVED,
    ("POST", "/v1/responses"): _SERVED,
    ("POST", "/v1/embeddings"): _SERVED,
}
"""Stages whose refusals a route may return, in addition to `door`."""


def _object(
    required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None, *, more: bool = False
) -> Schema:
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **(optional or {})},
        "additionalProperties": more,
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(kind: str) -> Schema:
    return {"type": [kind, "null"]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_TEXT: Final[Schema] = {"type": "string"}
_INTEGER: Final[Schema] = {"type": "integer"}
_TIME: Final[Schema] = {"type": "string", "format": "date-time"}
_ENGINE: Final = _object(
    {
        "loaded": {"type": "boolean"},
        "loaded_in": _list(_INTEGER),
        "in_flight": _INTEGER,
        "last_used": {"anyOf": [{"type": "null"}, _TIME]},
    }
)
_VERSION: Final[Mapping[str, Schema]] = {
    "name": _TEXT,
    "version": _INTEGER,
    "model": _or_null("string"),
    "state": {"enum": [state.value for state in State]},
    "active": {"type": "boolean"},
    "withheld": _or_null("string"),
    "unloaded": {"type": "boolean"},
    "outcome": _or_null("string"),
    "modules_total": _or_null("integer"),
    "modules_pruned": _or_null("integer"),
    "modules_projected": _or_null("integer"),
    "digest": _or_null("string"),
    "verdict_id": _or_null("string"),
    "engine": {"anyOf": [{"type": "null"}, _ENGINE]},
    "created_at": _TIME,
    "error": {"anyOf": [{"type": "null"}, _object({"code": _TEXT, "message": _or_null("string")})]},
}
_REPORT: Final = _object({"received": {"type": "object"}, "verdict": {"type": "object"}})
_ERROR: Final = _object(
    {"message": _TEXT, "type": _TEXT, "param": _or_null("string"), "code": {"enum": sorted(CODES)}},
)
_CARD: Final = _object(
    {
        "id": _TEXT,
        "object": {"const": "model"},
        "created": _INTEGER,
        "owned_by": _TEXT,
        "root": _TEXT,
        "parent": _or_null("string"),
    },
    {"version": _INTEGER, "digest": _or_null("string")},
)

_SCHEMAS: Final[Mapping[str, Schema]] = {
    "Refusal": _object({"error": _ERROR}, {"version": _ref("Version")}),
    "Version": _object(_VERSION, {"report": _REPORT}),
    "Adapter": _object(
        {
            "name": _TEXT,
            "active_version": _or_null("integer"),
            "created_at": _TIME,
            "versions": _list(_ref("Version")),
        },
        {"owner": _or_null("string")},
    ),
    "Report": _REPORT,
    "Model": _CARD,
}

_JSON: Final = "application/json"
_METRICS: Final = {"text/plain; version=0.0.4; charset=utf-8": {"schema": _TEXT}}
_ANSWER: Final = {
    _JSON: {"schema": _object({"choices": _list({"type": "object"}), "model": _TEXT}, more=True)},
    "text/event-stream": {},
}
_RESPONSE: Final = {
    _JSON: {"schema": _object({"id": _TEXT, "object": {"const": "response"}, "model": _TEXT}, more=True)},
    "text/event-stream": {},
}
_EMBEDDINGS: Final = {_JSON: {"schema": _object({"data": _list({"type": "object"}), "model": _TEXT}, more=True)}}
_TEXTS: Final[Schema] = {"type": "object", "additionalProperties": _TEXT}
_PARTS: Final = _object({"status": _TEXT, "parts": _TEXTS, "details": _TEXTS})


_RESOLVED: Final = _object(
    {
        "model": _TEXT,
        "engine_name": _TEXT,
        "digest": _TEXT,
        "bytes": {"type": "object", "additionalProperties": _INTEGER},
    }
)


_WARM: Final[Mapping[str, Schema]] = {
    "engine": _INTEGER,
    "warm": {"type": "boolean"},
    "seconds": {"type": "number"},
    "error": {"anyOf": [{"type": "null"}, _ERROR]},
}
_WARMED: Final = _object({"model": _TEXT, "digest": _or_null("string"), "engines": _list(_object(_WARM))})


def _json(schema: Schema) -> Schema:
    return {_JSON: {"schema": schema}}


_ANSWERS: Final[Mapping[tuple[str, str], Mapping[int, Schema]]] = {
    ("GET", "/health"): {200: _json(_object({"status": {"const": "ok"}}))},
    ("GET", "/ready"): {200: _json(_PARTS), 503: _json(_PARTS)},
    ("GET", "/metrics"): {200: _METRICS},
    ("GET", "/metrics/engine"): {200: _METRICS},
    ("POST", "/adapters"): dict.fromkeys((200, 201, 202), _json(_ref("Version"))),
    ("POST", "/screen"): {200: _json(_ref("Report"))},
    ("GET", "/adapters"): {200: _json(_object({"adapters": _list(_ref("Adapter")), "next": _or_null("string")}))},
    ("GET", "/adapters/{name}"): {200: _json(_ref("Adapter"))},
    ("GET", "/adapters/{name}/versions/{number}"): {200: _json(_ref("Version"))},
    ("POST", "/adapters/{name}/warm"): {200: _json(_WARMED)},
    ("POST", "/adapters/{name}/rollback"): {200: _json(_ref("Version"))},
    ("POST", "/adapters/{name}/rescreen"): dict.fromkeys((200, 201, 202), _json(_ref("Version"))),
    ("POST", "/rescreen"): {200: {"text/event-stream": {}}},
    ("GET", "/resolve/{model}"): {200: _json(_RESOLVED)},
    ("GET", "/artefacts/{digest}/{file}"): {200: {"application/octet-stream": {}}},
    ("GET", "/adapters/{name}/events"): {200: {"text/event-stream": {}}},
    ("DELETE", "/adapters/{name}"): {204: {}},
    ("PUT", "/adapters/{name}/owner"): {200: _json(_object({"name": _TEXT, "owner": _TEXT}))},
    ("GET", "/v1/models"): {200: _json(_object({"object": {"const": "list"}, "data": _list(_ref("Model"))}))},
    ("GET", "/v1/models/{name}"): {200: _json(_ref("Model"))},
    ("POST", "/v1/chat/completions"): {200: _ANSWER},
    ("POST", "/v1/completions"): {200: _ANSWER},
    ("POST", "/v1/responses"): {200: _RESPONSE},
    ("POST", "/v1/embeddings"): {200: _EMBEDDINGS},
}

_MESSAGES: Final = _list(_object({"role": _TEXT, "content": {}}, more=True))
_CHAT: Final[Mapping[str, Schema]] = {name: {} for name in {**CHAT, **UNHEARD} if name != "messages"}
_COMPLETIONS: Final[Mapping[str, Schema]] = {name: {} for name in {**COMPLETIONS, **UNHEARD} if name != "prompt"}
_RESPONSES: Final[Mapping[str, Schema]] = {
    name: {} for name in {**RESPONSES, **UNHEARD} if name not in ("model", "input")
}
_EMBED: Final[Mapping[str, Schema]] = {name: {} for name in {**EMBEDDINGS, **UNHEARD} if name not in ("model", "input")}
_BODIES: Final[Mapping[tuple[str, str], Schema]] = {
    ("POST", "/v1/chat/completions"): _object({"model": _TEXT, "messages": _MESSAGES}, _CHAT),
    ("POST", "/v1/completions"): _object({"model": _TEXT, "prompt": {}}, _COMPLETIONS),
    ("POST", "/v1/responses"): _object({"model": _TEXT, "input": {}}, _RESPONSES),
    ("POST", "/v1/embeddings"): _object({"model": _TEXT, "input": {}}, _EMBED),
    ("PUT", "/adapters/{name}/owner"): _object(
        {"owner": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"}}
    ),
}
"""Request bodies: names of the allowed fields. Their limits are defined in the code that checks them and its messages."""


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
    components["schemas"] = dict(_SCHEMAS)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for route in app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            for method in route.methods:
                _complete(page["paths"][route.path][method.lower()], (method, route.path))
    return page


def _complete(operation: Schema, at: tuple[str, str]) -> None:
    statuses = {code.status for code in CODES.values() if code.stage in _STAGES.get(at, _DOOR) | _DOOR}
    statuses |= _ANYWHERE if at[0] == "GET" else _ANYWHERE | _WRITING
    answers: dict[str, Schema] = {
        str(status): {"description": "Refused; `code` says why", "content": _json(_ref("Refusal"))}
        for status in statuses
    }
    for status, content in _ANSWERS.get(at, {}).items():
        description = operation["responses"].get(str(status), {}).get("description", "Answered")
        answers[str(status)] = {"description": description} | ({"content": content} if content else {})
    operation["responses"] = dict(sorted(answers.items()))
    if at in _BODIES:
        operation["requestBody"] = {"required": True, "content": _json(_BODIES[at])}
    if ROUTES.get(at) != NOBODY_ASKED:
        operation["security"] = [{"key": []}]
