"""Forms that an answer must have: OpenAI's response_format, vLLM's structured_outputs, and structural tags within both.

What compiling them costs the engine is estimated afterwards (format_cost.py). Grammars are refused: their cost at each
token has no bound that could be read from their text.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from app.domain.errors import Refused
from app.serve import json_body
from app.serve.fields.validators import Check, boolean, free, integer, list_of, need, object_of, of_type, one_of, text
from app.serve.grammar_cost import MAX_ENUM, MAX_PATTERN_CHARS
from app.serve.pattern_ambiguity import Ambiguity, ambiguity

MAX_TEXT_CHARS: Final = 1 << 18
"""Characters of a schema or a structural tag that is sent as a string of JSON; it is decoded a second time."""

MAX_WHITESPACE_CHARS: Final = 64
"""Characters of the pattern of whitespace, which is compiled into many places of a schema."""

MAX_NAMED: Final = 64
"""Characters of the name of a schema: OpenAI's bound."""

MAX_MARKS: Final = 256
MAX_MARK_CHARS: Final = 256
"""Texts in one list of a structural tag, such as triggers, and characters of each."""

MAX_PARTS: Final = 256
"""Parts of one sequence, and of other lists of formats, in a structural tag."""

MAX_COUNT: Final = 256
"""Characters of whitespace between two parts of a schema."""

MAX_TOKEN_ID: Final = (1 << 31) - 1

NO_GRAMMAR: Final = "is not taken: its cost at each token has no bound; use a schema, a pattern or a choice"

UNBOUNDED: Final = ("grammar", "optional", "plus", "star", "repeat", "dispatch", "token_dispatch")
"""Formats of structural tags that are refused like grammars.

Repetitions of what repeats make xgrammar 0.2.8 follow so many states that the mask of a single token takes seconds.
"""


def schema(value: Any) -> Any:
    """Check a JSON schema: free in form, but limited in depth and size."""
    need(isinstance(value, dict), "must be an object")
    return free(value)


def _schema_or_flag(value: Any) -> Any:
    return value if isinstance(value, bool) else schema(value)


def _refused(reason: str) -> Check:
    def check(_: Any) -> Any:
        raise ValueError(reason)

    return check


def _decoded(value: str) -> dict[str, Any]:
    try:
        return json_body.read(text(MAX_TEXT_CHARS)(value).encode())
    except (Refused, UnicodeEncodeError) as error:
        raise ValueError("must be JSON of an object") from error


def _format(value: Any) -> Any:
    return _BY_TYPE(value)


def _tag_only(value: Any) -> Any:
    found = _format(value)
    need(found["type"] == "tag", "takes only formats of type tag")
    return found


def _token(value: Any) -> Any:
    return text(MAX_MARK_CHARS)(value) if isinstance(value, str) else integer(0, MAX_TOKEN_ID)(value)


def _mark(value: Any) -> Any:
    return _FORMATS["token"](value) if isinstance(value, dict) else text(MAX_MARK_CHARS)(value)


def _end(value: Any) -> Any:
    return _MARKS(value) if isinstance(value, list) else _mark(value)


def pattern(value: Any) -> Any:
    """Check a regular expression that an answer must match."""
    text(MAX_PATTERN_CHARS)(value)
    need(
        ambiguity(value) is Ambiguity.NONE,
        "takes no repetition of a group that holds one, unless each round begins or ends with a character that nothing "
        "else in the group matches, as in ([a-z]+,)*: its cost at each token has no bound",
    )
    return value


_MARKS: Final = list_of(text(MAX_MARK_CHARS), 0, MAX_MARKS)
_TOKENS: Final = list_of(_token, 0, MAX_MARKS)
_COUNT: Final = integer(0, MAX_COUNT)
_INNER: Final = list_of(_format, 1, MAX_PARTS)
_TAGS: Final = list_of(_tag_only, 1, MAX_PARTS)
_NO_COUNTS: Final = dict.fromkeys(("max_chars", "max_tokens"), _refused(NO_GRAMMAR))
_HOW_MANY: Final[Mapping[str, Check]] = {"at_least_one": boolean, "stop_after_first": boolean}
_STYLES = one_of(
    *("json", "qwen_xml", "minimax_xml", "minimax_m3_xml", "deepseek_xml", "glm_xml", "cohere_xml", "kimi_k3_xml"),
    "deepseek_v4_1_xml",
)


def _format_of(allowed: Mapping[str, Check], *required: str) -> Check:
    return object_of("format", {"type": text(), **allowed}, *required)


_FORMATS: Final[Mapping[str, Check]] = {
    "const_string": _format_of({"value": text()}, "value"),
    "json_schema": _format_of(
        {"json_schema": _schema_or_flag, "style": _STYLES, "any_order": boolean, "max_whitespace_cnt": _COUNT},
        "json_schema",
    ),
    "qwen_xml_parameter": _format_of({"json_schema": _schema_or_flag}, "json_schema"),
    "any_text": _format_of({"excludes": _MARKS, **_NO_COUNTS}),
    "token": _format_of({"token": _token}, "token"),
    "exclude_token": _format_of({"exclude_tokens": _TOKENS}),
    "any_tokens": _format_of({"exclude_tokens": _TOKENS, **_NO_COUNTS}),
    "regex": _format_of({"pattern": pattern}, "pattern"),
    "sequence": _format_of({"elements": _INNER}, "elements"),
    "or": _format_of({"elements": _INNER}, "elements"),
    "tag": _format_of({"begin": _mark, "content": _format, "end": _end}, "begin", "content", "end"),
    "triggered_tags": _format_of(
        {"triggers": _MARKS, "tags": _TAGS, "excludes": _MARKS, **_HOW_MANY}, "triggers", "tags"
    ),
    "token_triggered_tags": _format_of(
        {"trigger_tokens": _TOKENS, "tags": _TAGS, "exclude_tokens": _TOKENS, **_HOW_MANY}, "trigger_tokens", "tags"
    ),
    "tags_with_separator": _format_of(
        {"tags": _TAGS, "separator": text(MAX_MARK_CHARS), **_HOW_MANY}, "tags", "separator"
    ),
    **{kind: _refused(f"a format of type {kind} {NO_GRAMMAR}") for kind in UNBOUNDED},
}
"""Formats of xgrammar's structural tags, by their type."""

_BY_TYPE = of_type(
    _FORMATS, f"must be an object whose type is one of {', '.join(kind for kind in _FORMATS if kind not in UNBOUNDED)}"
)

_STRUCTURE = object_of(
    "structures[]",
    {"begin": text(MAX_MARK_CHARS), "schema": schema, "end": text(MAX_MARK_CHARS)},
    *("begin", "end"),
)
_WITH_STRUCTURES = object_of(
    "response_format",
    {"type": text(), "structures": list_of(_STRUCTURE, 1, MAX_PARTS), "triggers": _MARKS},
    *("structures", "triggers"),
)
_WITH_FORMAT = object_of("response_format", {"type": text(), "format": _format}, "format")


def structural_tag(value: Any) -> Any:
    """Check a structural tag, in the present form with `format` or the earlier one with `structures`."""
    free(value)  # its depth, before it is descended into
    return (_WITH_STRUCTURES if isinstance(value, dict) and "structures" in value else _WITH_FORMAT)(value)


_NAMED: Final[Callable[[Any], Any]] = text(MAX_NAMED)
_JSON_SCHEMA = object_of(
    "response_format.json_schema",
    {"name": _NAMED, "description": text(), "schema": schema, "strict": boolean},
    *("name", "schema"),
)
_RESPONSE_FORMATS: Final[Mapping[str, Check]] = {
    "text": object_of("response_format", {"type": text()}),
    "json_object": object_of("response_format", {"type": text()}),
    "json_schema": object_of("response_format", {"type": text(), "json_schema": _JSON_SCHEMA}, "json_schema"),
    "structural_tag": structural_tag,
}

response_format: Final = of_type(
    _RESPONSE_FORMATS, f"must be an object whose type is one of {', '.join(_RESPONSE_FORMATS)}"
)
"""Check of response_format in the chat and the completions API."""


def _json(value: Any) -> Any:
    return schema(_decoded(value) if isinstance(value, str) else value)


def _tag_text(value: Any) -> Any:
    found = structural_tag(_decoded(value))
    return json.dumps({"type": "structural_tag", **found}, ensure_ascii=False, allow_nan=False)


_CONSTRAINTS: Final[Mapping[str, Check]] = {
    "json": _json,
    "regex": pattern,
    "choice": list_of(text(), 1, MAX_ENUM),
    "json_object": boolean,
    "structural_tag": _tag_text,
}


def _whitespace(value: Any) -> Any:
    return pattern(text(MAX_WHITESPACE_CHARS)(value))


_STRUCTURED = object_of(
    "structured_outputs",
    {
        **_CONSTRAINTS,
        "disable_any_whitespace": boolean,
        "disable_additional_properties": boolean,
        "whitespace_pattern": _whitespace,
    },
)


def structured_outputs(value: Any) -> Any:
    """Check vLLM's structured_outputs: one constraint, and how it is compiled."""
    need(not isinstance(value, dict) or value.get("grammar") is None, f"grammar: {NO_GRAMMAR}")
    found = _STRUCTURED(value)
    need(len(found.keys() & _CONSTRAINTS) == 1, f"must have exactly one of {', '.join(_CONSTRAINTS)}")
    return found
