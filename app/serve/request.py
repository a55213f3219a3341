"""Body of one inference request: parsed strictly, every field checked against a table, built anew for the engine.

The engine gets no byte of the original body: no unknown field, no duplicate key, no number that JSON does not have.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from app.domain.errors import INVALID_REQUEST, REQUEST_TOO_LARGE, Refused
from app.serve import json_body
from app.serve.conversation import user_of
from app.serve.fields.anthropic import COUNT_TOKENS, MESSAGES
from app.serve.fields.chat import CHAT, COMPLETIONS, DROPPED_FIELDS
from app.serve.fields.ignored import Ignored, ignore
from app.serve.fields.messages import MAX_MESSAGES
from app.serve.fields.refused import REFUSED
from app.serve.fields.responses import EMBEDDINGS, RESPONSES
from app.serve.fields.tokens import DETOKENIZE, MAX_TOKENIZED_BYTES, TOKENIZE
from app.serve.fields.validators import DROPPED, Check
from app.serve.request_load import Kind, Load, load_of
from app.serve.sse import dump

TABLES: Final[Mapping[Kind, Mapping[str, Check]]] = {
    "chat": CHAT,
    "completions": COMPLETIONS,
    "responses": RESPONSES,
    "embeddings": EMBEDDINGS,
    "messages": MESSAGES,
    "count_tokens": COUNT_TOKENS,
    "tokenize": TOKENIZE,
    "detokenize": DETOKENIZE,
}
"""Fields that go on to the engine, and the check of each."""

_REQUIRED: Final[Mapping[Kind, tuple[tuple[str, ...], ...]]] = {
    "chat": (("messages",),),
    "completions": (("prompt",),),
    "responses": (("input",),),
    "embeddings": (("input",),),
    "messages": (("messages",), ("max_tokens",)),
    "count_tokens": (("messages",),),
    "tokenize": (("prompt", "messages"),),
    "detokenize": (("tokens",),),
}
"""Groups of fields of which a request must have exactly one each."""

_CAPS: Final[Mapping[Kind, int]] = {"count_tokens": MAX_TOKENIZED_BYTES, "tokenize": MAX_TOKENIZED_BYTES}
"""Bytes of a body, for kinds with a lower cap than MAX_BODY_BYTES."""

_VALUES: Final[Mapping[Kind, int]] = dict.fromkeys(
    ("chat", "responses", "messages", "count_tokens"), json_body.MAX_CONVERSATION_VALUES
)
"""JSON values of a body, for kinds with a lower cap than MAX_VALUES."""

ANTHROPIC: Final[frozenset[Kind]] = frozenset({"messages", "count_tokens"})
"""Kinds in the shape of Anthropic's API."""

_WITH_COUNTS: Final[frozenset[Kind]] = frozenset({"chat", "completions"})
"""Kinds whose streams give token counts only on request; streams of /v1/responses always do."""


@dataclass(frozen=True, slots=True)
class Inference:
    """One checked request.

    model: as sent, not resolved yet.
    fields: values for the engine, without `model`.
    ignored: names of what was left out, as a header's value; "" if nothing was.
    user: name of the user that it is for, which the engine does not get; None if it gives none.
    """

    kind: Kind
    model: object
    fields: Mapping[str, Any]
    load: Load
    ignored: str
    user: str | None = None

    @property
    def stream(self) -> bool:
        """True if the answer is to be streamed token by token."""
        return self.fields.get("stream") is True

    @property
    def usage_wanted(self) -> bool:
        """True if the caller asked for token counts at the end of a stream."""
        return bool((self.fields.get("stream_options") or {}).get("include_usage"))

    @property
    def scores_prompt(self) -> str | None:
        """Name of the field by which log-probabilities of the prompt itself are requested, not only of the answer.

        In a chat `echo` alone has vLLM compute them.
        """
        if "prompt_logprobs" in self.fields:
            return "prompt_logprobs"
        echoed = self.fields.get("echo") and (self.kind == "chat" or "logprobs" in self.fields)
        return "echo" if echoed else None

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
    with Ignored() as ignored:
        most = _VALUES.get(kind, json_body.MAX_VALUES)
        body = json_body.read(raw, _CAPS.get(kind, json_body.MAX_BODY_BYTES), most)
        fields = _checked(TABLES[kind], body)
        model = fields.pop("model", None)
        _check_combinations(kind, fields)
        return Inference(kind, model, fields, load_of(kind, fields), ignored.header(), user_of(body))


def _checked(table: Mapping[str, Check], body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields for the engine, and note those that are left out. Raises Refused."""
    fields = {}
    for name, value in body.items():
        if name in REFUSED:
            raise Refused(INVALID_REQUEST, f"{name} is not taken: {REFUSED[name]}", param=name)
        if value is None:  # means absent, and vLLM refuses it in some fields
            continue
        check = table.get(name) or DROPPED_FIELDS.get(name)
        if check is None:
            ignore("", name)
            continue
        if name == "messages" and isinstance(value, list) and len(value) > MAX_MESSAGES:
            raise Refused(REQUEST_TOO_LARGE, f"{len(value)} messages, the cap is {MAX_MESSAGES}", param=name)
        try:
            passed = check(value)
        except ValueError as error:
            raise Refused(INVALID_REQUEST, f"{name}: {error}", param=name) from error
        if name not in DROPPED_FIELDS and passed is not DROPPED:
            fields[name] = passed
    return fields


def _check_combinations(kind: Kind, fields: dict[str, Any]) -> None:
    """Check the rules that involve several fields, and drop those that say nothing. Raises Refused INVALID_REQUEST."""
    for group in _REQUIRED[kind]:
        if (found := sum(name in fields for name in group)) != 1:
            message = f"{' or '.join(group)} is {'taken, not both' if found else 'missing'}"
            raise Refused(INVALID_REQUEST, message, param=group[0])
    if kind == "chat" or kind in ANTHROPIC:
        _check_tools(kind, fields)
    if not fields.get("stream_options", True):
        del fields["stream_options"]
    if "stream_options" in fields and not fields.get("stream"):
        raise Refused(INVALID_REQUEST, "stream_options needs stream: true", param="stream_options")
    if kind == "chat" and fields.get("top_logprobs") and not fields.get("logprobs"):
        raise Refused(INVALID_REQUEST, "top_logprobs needs logprobs: true", param="top_logprobs")


def _check_tools(kind: Kind, fields: dict[str, Any]) -> None:
    """Drop an empty list of tools, and a choice among none: vLLM refuses them.

    Raises Refused INVALID_REQUEST for a tool chosen in /v1/messages that is not in the list; in a chat, vLLM checks that.
    """
    choice: Any = fields.get("tool_choice")
    names = [tool.get("name") for tool in fields.get("tools", ())]
    word = choice["type"] if kind in ANTHROPIC and choice else choice
    if not names:
        fields.pop("tools", None)
        if word in ("auto", "none"):
            del fields["tool_choice"]
    if kind in ANTHROPIC and ((word == "any" and not names) or (word == "tool" and choice.get("name") not in names)):
        raise Refused(INVALID_REQUEST, "tool_choice: takes tools of this request only", param="tool_choice")
