"""Schemas are weighed before an engine compiles them; each shape here was seen to cost one seconds, or its life."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import SCHEMA_TOO_COSTLY, Refused
from app.serve.grammar_cost import MAX_COST, MAX_PATTERN_COST, TooCostly, pattern_cost, schema_cost
from app.serve.request import parse
from app.serve.request_load import Kind


def text(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern}


def refers(count: int, **last: Any) -> dict[str, Any]:
    """A chain of definitions, each of which refers to the next twice."""
    defs: dict[str, Any] = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": defs | {f"d{count}": last or {"type": "string"}}}


COSTLY: list[tuple[str, dict[str, Any]]] = [
    ("nested parentheses", text("(" * 17 + "a" + ")" * 17)),
    ("200 KB of nested parentheses", text("(" * 100_000 + ")" * 100_000)),
    ("nested parentheses, none closed", text("(" * 900)),
    ("a long pattern", text("a" * 2000)),
    ("a long repetition", text("a{10000}")),
    ("a counted repetition of a repetition", text("^([a-z]+){0,64}$")),
    ("repetitions of repetitions", text("((a{30}){30}){30}")),
    ("repetitions of repetitions, open", text("((a{99,}){99,}){99,}")),
    ("classes", text(r"\w" * 400)),
    ("a long enumeration", {"enum": list(range(3000))}),
    ("references in a ring", {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
    ("a reference to itself", {"$ref": "#"}),
    ("references that double", refers(20)),
    (
        "a long chain of references",
        {"$ref": "#/$defs/0", "$defs": {str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(900)}},
    ),
    ("another document", {"$ref": "http://169.254.169.254/schema"}),
    ("a reference to nothing", {"$ref": "#/$defs/none"}),
    ("alternatives multiplied", {"allOf": [{"anyOf": [{"minimum": 1}, {"maximum": 2}]}] * 12}),
    ("a pattern for names", {"patternProperties": {"(" * 40 + ")" * 40: {}}}),
    ("a pattern of names", {"propertyNames": {"pattern": "(a{99}){99}"}}),
    ("deep down", {"properties": {"pattern": {"items": {"anyOf": [{"not": text("x" * 5000)}]}}}}),
]
TOO_MUCH: list[tuple[str, dict[str, Any]]] = [
    ("lengths", {"properties": {f"p{i}": {"type": "string", "maxLength": 1000, "minLength": i} for i in range(9)}}),
    ("classes in all", {"properties": {f"p{i}": text(r"\d" * 200 + f"{i}") for i in range(20)}}),
    ("patterns for names", {"patternProperties": {f"^a{i}[a-z]+$": {} for i in range(900)}}),
]
FINE: list[dict[str, Any]] = [
    text(r"^[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}$"),
    text("^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$"),
    text(r"^\d{4}-(0[1-9]|1[0-2])-([0-2]\d|3[01])T([01]\d|2[0-3]):[0-5]\d:[0-5]\dZ$"),
    text("^.{1,255}$"),
    text(r"[\]()[](\()"),
    {"type": "object", "properties": {f"p{i}": {"type": "string", "maxLength": 200} for i in range(300)}},
    {"type": "object", "properties": {"pattern": {"type": "string"}, "$ref": {"type": "string"}, "enum": {}}},
    {
        "$defs": {"n": {"properties": {"next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}}}},
        "$ref": "#/$defs/n",
    },
    {"type": "array", "maxItems": 10_000, "items": {"enum": [f"country {i}" for i in range(250)]}},
    refers(5),
]


def body(kind: Kind, schema: dict[str, Any], place: str) -> bytes:
    tool: dict[str, Any] = {"name": "f", "parameters": schema}
    fields: dict[str, Any] = {"input": "x"} if kind == "responses" else {"messages": [{"role": "user", "content": "x"}]}
    if place == "format" and kind == "chat":
        fields["response_format"] = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    elif place == "format":
        fields["text"] = {"format": {"type": "json_schema", "name": "n", "schema": schema}}
    else:
        fields["tools"] = [
            {"type": "function", **tool} if kind == "responses" else {"type": "function", "function": tool}
        ]
        fields["tool_choice"] = place
    return json.dumps({"model": "a", **fields}).encode()


@pytest.mark.hostile("P15")
@pytest.mark.parametrize("place", ["format", "required", "auto"])
@pytest.mark.parametrize("kind", ["chat", "responses"])
@pytest.mark.parametrize(("name", "schema"), COSTLY, ids=[name for name, _ in COSTLY])
def test_a_part_that_costs_too_much_is_refused_and_named(kind: Kind, place: str, name: str, schema: Any) -> None:
    began = time.thread_time()
    with pytest.raises(Refused) as caught:
        parse(kind, body(kind, schema, place))
    assert time.thread_time() - began < 0.5
    assert caught.value.code is SCHEMA_TOO_COSTLY
    assert str(caught.value.param).startswith(("response_format.json_schema.schema", "text.format.schema", "tools.0."))


@pytest.mark.hostile("P15")
@pytest.mark.parametrize(("name", "schema"), TOO_MUCH, ids=[name for name, _ in TOO_MUCH])
def test_what_costs_too_much_in_all_is_refused_where_it_is_compiled(name: str, schema: Any) -> None:
    assert schema_cost(schema) > MAX_COST
    for place in ("format", "required"):
        with pytest.raises(Refused, match="schema_too_costly"):
            parse("chat", body("chat", schema, place))
    assert parse("chat", body("chat", schema, "auto")).load.schemas == 0


@pytest.mark.parametrize("schema", FINE)
def test_schemas_as_people_write_them_pass(schema: Any) -> None:
    assert 0 < parse("chat", body("chat", schema, "format")).load.schemas == schema_cost(schema) < MAX_COST / 3


PATTERN = st.text(st.sampled_from("ab()[]{}|*+?\\.^-,19"), max_size=60)


@given(pattern=PATTERN)
def test_a_pattern_has_a_cost_or_is_refused(pattern: str) -> None:
    try:
        cost = pattern_cost(pattern)
    except ValueError:
        return
    assert 0 <= cost <= MAX_PATTERN_COST


@given(pattern=PATTERN, times=st.integers(2, 50))
def test_a_repetition_costs_no_less_than_what_is_repeated(pattern: str, times: int) -> None:
    try:
        once, often = pattern_cost(f"(?:{pattern}|a)"), pattern_cost(f"(?:{pattern}|a){{{times}}}")
    except ValueError:
        return
    assert often >= once


SCHEMA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["$ref", "allOf", "anyOf", "pattern", "enum", "items", "maxLength", "properties", "patternProperties"]
            ),
            inner | st.sampled_from(["#", "#/allOf", "#/properties/items"]),
            max_size=5,
        )
    ),
    max_leaves=30,
)


@given(schema=st.dictionaries(st.sampled_from(["$ref", "allOf", "anyOf", "properties", "items", "minLength"]), SCHEMA))
def test_no_schema_breaks_the_estimate(schema: dict[str, Any]) -> None:
    try:
        assert schema_cost(schema) >= 1
    except TooCostly as error:
        assert str(error)
