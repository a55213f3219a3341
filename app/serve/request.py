"""Body of one inference request: parsed strictly, every field checked against a table, built anew for the engine.

The engine gets no byte of the original body: no unknown field, no duplicate key, no number that JSON does not have.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from app.domain.errors import INVALID_REQUEST, REQUEST_TOO_LARGE, SCHEMA_TOO_COSTLY, Refused
from app.serve import json_body
from app.serve.fields.chat import CHAT, COMPLETIONS, DROPPED_FIELDS, MAX_ALL_TOKENS, MAX_MESSAGES, MAX_SEQUENCES
from app.serve.fields.responses import EMBEDDINGS, RESPONSES
from app.serve.fields.validators import Check
from app.serve.grammar_cost import MAX_COST, TooCostly, schema_cost
from app.serve.sse import dump

Kind = Literal["chat", "completions", "responses", "embeddings"]

_TABLES: Final[Mapping[Kind, Mapping[str, Check]]] = {
    "chat": CHAT,
    "completions": COMPLETIONS,
    "responses": RESPONSES,
    "embeddings": EMBEDDINGS,
}
_REQUIRED: Final[Mapping[Kind, str]] = {
    "chat": "messages",
    "completions": "prompt",
    "responses": "input",
    "embeddings": "input",
}
_WITH_COUNTS: Final[frozenset[Kind]] = frozenset({"chat", "completions"})
"""Kinds whose streams give token counts only on request; streams of /v1/responses always do."""


TOKENS_UNSAID: Final = 1024
"""Tokens assumed for a sequence if the request does not limit them: an answer of some length."""


@dataclass(frozen=True, slots=True)
class Load:
    """Load that a request puts on the engine.

    sequences: prompts × n.
    tokens: tokens that all sequences together may write.
    schemas: cost of the schemas that are compiled for it.
    """

    sequences: int = 1
    tokens: int = TOKENS_UNSAID
    schemas: int = 0


@dataclass(frozen=True, slots=True)
class Inference:
    """One checked request. model: as sent, not resolved yet. fields: values for the engine, without `model`."""

    kind: Kind
    model: object
    fields: Mapping[str, Any]
    load: Load = Load()

    @property
    def stream(self) -> bool:
        """True if the answer is to be streamed token by token."""
        return self.fields.get("stream") is True

    @property
    def usage_wanted(self) -> bool:
        """True if the caller asked for token counts at the end of a stream."""
        return bool((self.fields.get("stream_options") or {}).get("include_usage"))

    @property
    def scores_prompt(self) -> bool:
        """True if log-probabilities of the prompt itself are requested, not only of the answer."""
        return bool(self.fields.get("echo")) and "logprobs" in self.fields

    @property
    def seeded(self) -> bool:
        """True if the engine would sample its tokens with a seed of the caller's."""
        return "seed" in self.fields and self.fields.get("temperature", 1) != 0

    def encode(self, engine_name: str) -> bytes:
        """Return the body for the engine. Raises Refused INVALID_REQUEST for text that is not Unicode."""
        return addressed(self.written(), engine_name)

    def written(self) -> bytes:
        """Return the body for the engine without `model`.

        The engine is always asked for token counts, because the gateway counts them even if the caller does not. It is
        asked for them once, at the end; vLLM then sends its `system_fingerprint` there, and not with the last token.
        """
        fields = self.fields
        if self.kind == "responses":
            fields = {**fields, "store": False}  # its default is true
        if self.stream and self.kind in _WITH_COUNTS and not self.usage_wanted:
            asked = {**(fields.get("stream_options") or {}), "include_usage": True}
            asked.pop("continuous_usage_stats", None)  # vLLM ignores it without include_usage
            fields = {**fields, "stream_options": asked}
        return json_body.write(fields)


def addressed(written: bytes, engine_name: str, cache_salt: str | None = None) -> bytes:
    """Return `written`, which has members, as a request to the version called `engine_name` in the engine.

    cache_salt: the engine shares cached prompts only among requests with the same salt.
    """
    salted = b"" if cache_salt is None else b'"cache_salt":' + dump(cache_salt) + b","
    return b'{"model":' + dump(engine_name) + b"," + salted + written[1:]


def parse(kind: Kind, raw: bytes) -> Inference:
    """Parse an untrusted body.

    Raises Refused INVALID_REQUEST, REQUEST_TOO_LARGE or SCHEMA_TOO_COSTLY, naming the field.
    """
    body = json_body.read(raw)
    table = _TABLES[kind]
    fields = {}
    for name, value in body.items():
        check = table.get(name) or DROPPED_FIELDS.get(name)
        if check is None:
            raise Refused(INVALID_REQUEST, f"unknown field {name[:64]!r}", param=name[:64])
        if value is None:  # means absent, and vLLM refuses it in some fields
            continue
        if name == "messages" and isinstance(value, list) and len(value) > MAX_MESSAGES:
            raise Refused(REQUEST_TOO_LARGE, f"{len(value)} messages, the cap is {MAX_MESSAGES}", param=name)
        try:
            passed = check(value)
        except ValueError as error:
            raise Refused(INVALID_REQUEST, f"{name}: {error}", param=name) from error
        if name not in DROPPED_FIELDS:
            fields[name] = passed
    model = fields.pop("model", None)
    _check_combinations(kind, fields)
    return Inference(kind, model, fields, _load(kind, fields))


def _check_combinations(kind: Kind, fields: Mapping[str, Any]) -> None:
    """Check the rules that involve several fields. Raises Refused INVALID_REQUEST."""
    required = _REQUIRED[kind]
    if required not in fields:
        raise Refused(INVALID_REQUEST, f"{required} is missing", param=required)
    if "stream_options" in fields and not fields.get("stream"):
        raise Refused(INVALID_REQUEST, "stream_options needs stream: true", param="stream_options")
    if kind == "chat" and fields.get("top_logprobs") and not fields.get("logprobs"):
        raise Refused(INVALID_REQUEST, "top_logprobs needs logprobs: true", param="top_logprobs")


def _load(kind: Kind, fields: Mapping[str, Any]) -> Load:
    """Return the load. Raises Refused INVALID_REQUEST if the product of its parts is over a cap, SCHEMA_TOO_COSTLY."""
    prompts = fields.get("prompt") if kind == "completions" else fields.get("input") if kind == "embeddings" else None
    listed = isinstance(prompts, list) and not isinstance(prompts[0], int)
    count, answers = len(prompts) if listed and isinstance(prompts, list) else 1, fields.get("n", 1)
    sequences = count * answers
    if sequences > MAX_SEQUENCES:
        raise Refused(INVALID_REQUEST, f"{count} prompts × n {answers}: the cap is {MAX_SEQUENCES}", param="n")
    if kind == "embeddings":
        return Load(sequences, 0)
    asked = next((name for name in _TOKENS if name in fields), None)
    tokens = sequences * (TOKENS_UNSAID if asked is None else fields[asked])
    if tokens > MAX_ALL_TOKENS:
        raise Refused(
            INVALID_REQUEST, f"{tokens} tokens in {sequences} sequences: the cap is {MAX_ALL_TOKENS}", param=asked
        )
    return Load(sequences, tokens, _schemas(kind, fields))


_TOKENS: Final = ("max_completion_tokens", "max_output_tokens", "max_tokens")


def _schemas(kind: Kind, fields: Mapping[str, Any]) -> int:
    """Return the cost of the schemas that the engine compiles.

    Those are the format's, and the tools' if one of them must be called. Schemas of tools that may be called are part
    of the prompt, but the caps on their parts apply to them too.
    """
    flat = kind == "responses"
    asked = (fields.get("text") or {}).get("format") if flat else fields.get("response_format")
    total = 0
    if asked is not None:
        schema, where = (
            (asked, "text.format") if flat else (asked.get("json_schema") or {}, "response_format.json_schema")
        )
        total += _cost(schema.get("schema"), f"{where}.schema")
    tools = 0
    for number, tool in enumerate(fields.get("tools", ())):
        function, where = (tool, f"tools.{number}") if flat else (tool["function"], f"tools.{number}.function")
        tools += _cost(function.get("parameters"), f"{where}.parameters")
    if fields.get("tool_choice") not in (None, "none", "auto"):
        total += tools
    if total > MAX_COST:
        raise Refused(
            SCHEMA_TOO_COSTLY,
            f"schemas that cost {total} to compile, the cap is {MAX_COST}",
            param="tools" if tools else where,
        )
    return total


def _cost(schema: Any, where: str) -> int:
    if schema is None:
        return 0
    try:
        return schema_cost(schema)
    except TooCostly as error:
        raise Refused(SCHEMA_TOO_COSTLY, f"{where}{error.path}: {error}", param=f"{where}{error.path}") from error
