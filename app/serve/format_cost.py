"""Estimate of an engine's cost of compiling the forms that one request asks for, in the unit of grammar_cost.py."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from app.domain.errors import SCHEMA_TOO_COSTLY, Refused
from app.serve.grammar_cost import MAX_COST, TooCostly, pattern_cost, schema_cost

MAX_FORMATS: Final = 1024
"""Formats in one structural tag: a tag and a schema for each of hundreds of tools."""

MAX_LOOSE: Final = 32
"""Formats in it that match texts of any length: the engine follows each of them at each token."""

_LOOSE: Final = frozenset({"any_text", "any_tokens", "exclude_token"})
_FORMS: Final = frozenset({"response_format", "structured_outputs", "text", "output_config", "tools"})
"""Fields that may have the engine compile something."""

_LOOSE_COST: Final = 300
"""Cost of a format that matches any text: ten character classes."""

_MARK_CHARS: Final = 16
"""Characters of a text that cost 1, as in an enumeration."""


def cost_of(fields: Mapping[str, Any], *, within: str | None = None) -> int:
    """Return the cost of the forms that the engine compiles for checked fields.

    Those are the answer's, and the tools' schemas if one of the tools must be called. Schemas of tools that may be called
    are part of the prompt, but the caps on their parts apply to them too. within: field that holds the answer's format, in
    APIs whose formats and tools have no inner object; None for `response_format`.

    Raises Refused SCHEMA_TOO_COSTLY, naming the place.
    """
    if _FORMS.isdisjoint(fields):
        return 0
    answer, where = _answers(fields, within)
    tools = _tools(fields, flat=within is not None)
    choice = fields.get("tool_choice")
    chosen = choice.get("type") if isinstance(choice, Mapping) else choice
    total = answer + (tools if chosen not in (None, "none", "auto") else 0)
    if total > MAX_COST:
        message = f"schemas that cost {total} to compile, the cap is {MAX_COST}"
        raise Refused(SCHEMA_TOO_COSTLY, message, param="tools" if tools else where)
    return total


def _answers(fields: Mapping[str, Any], within: str | None) -> tuple[int, str]:
    """Return the cost of the answer's forms, and the place of the last of them."""
    total, where = 0, ""
    asked = (fields.get(within) or {}).get("format") if within else fields.get("response_format")
    if asked is not None:
        where = f"{within}.format" if within else "response_format"
        if asked.get("type") == "structural_tag":
            total += _named(_tag, asked, where)
        else:
            inner, where = (asked, where) if within else (asked.get("json_schema") or {}, f"{where}.json_schema")
            total += _named(schema_cost, inner.get("schema"), f"{where}.schema")
    if (structured := fields.get("structured_outputs")) is not None:
        where = "structured_outputs"
        total += _structured(structured)
    return total, where


def _tools(fields: Mapping[str, Any], *, flat: bool) -> int:
    total = 0
    for number, tool in enumerate(fields.get("tools", ())):
        inner, where = (tool, f"tools.{number}") if flat else (tool["function"], f"tools.{number}.function")
        for name in ("parameters", "input_schema"):
            total += _named(schema_cost, inner.get(name), f"{where}.{name}")
        for second, one in enumerate(tool.get("tools", ())):
            total += _named(schema_cost, one.get("parameters"), f"{where}.tools.{second}.parameters")
    return total


def _structured(asked: Mapping[str, Any]) -> int:
    where = "structured_outputs"
    total = _named(schema_cost, asked.get("json"), f"{where}.json")
    total += _named(_pattern, asked.get("regex"), f"{where}.regex")
    total += _named(lambda choice: schema_cost({"enum": choice}), asked.get("choice"), f"{where}.choice")
    total += _named(lambda text: _tag(json.loads(text)), asked.get("structural_tag"), f"{where}.structural_tag")
    # It may stand between any two parts.
    return total * (1 + _named(_pattern, asked.get("whitespace_pattern"), f"{where}.whitespace_pattern"))


def _named(cost: Callable[[Any], int], value: Any, where: str) -> int:
    """Return the cost of a value that may be absent. Raises Refused SCHEMA_TOO_COSTLY with the place."""
    if value is None:
        return 0
    try:
        return cost(value)
    except TooCostly as error:
        raise Refused(SCHEMA_TOO_COSTLY, f"{where}{error.path}: {error}", param=f"{where}{error.path}") from error


def _pattern(pattern: str) -> int:
    try:
        return pattern_cost(pattern)
    except ValueError as error:
        raise TooCostly("", str(error)) from error


def _tag(tag: Mapping[str, Any]) -> int:
    if "structures" in tag:
        listed = tag["structures"]
        return sum(len(one["begin"]) + len(one["end"]) + schema_cost(one.get("schema", {})) for one in listed)
    return _Formats().cost(tag["format"], ".format")


class _Formats:
    """Estimate of one structural tag, which counts its formats."""

    def __init__(self) -> None:
        self._formats = self._loose = 0

    def cost(self, node: Mapping[str, Any], path: str) -> int:
        """Return the cost of a format with everything in it. Raises TooCostly."""
        kind = node["type"]
        self._count(kind, path)
        own: int = _LOOSE_COST * (kind in _LOOSE) + sum(_length(value) for value in node.values())
        if isinstance(node.get("json_schema"), dict):
            own += schema_cost(node["json_schema"])
        if kind == "regex":
            own += _pattern(node["pattern"])
        within = [node["content"]] if "content" in node else []
        within += [*node.get("elements", ()), *node.get("tags", ())]
        return 1 + own + sum(self.cost(one, f"{path}.{number}") for number, one in enumerate(within))

    def _count(self, kind: str, path: str) -> None:
        self._formats += 1
        self._loose += kind in _LOOSE
        if self._formats > MAX_FORMATS:
            raise TooCostly(path, f"over {MAX_FORMATS} formats")
        if self._loose > MAX_LOOSE:
            raise TooCostly(path, f"over {MAX_LOOSE} formats that match texts of any length")


def _length(value: Any) -> int:
    """Return the cost of a text, or of the texts of a list, that is written out."""
    texts = value if isinstance(value, list) else [value]
    return sum(1 + len(one) // _MARK_CHARS for one in texts if isinstance(one, str))
