"""Structural tags and patterns: what of them goes on, and what would hold up every other request."""

import json
from typing import Any

import pytest

from app.domain.errors import INVALID_REQUEST, SCHEMA_TOO_COSTLY, Refused
from app.serve.request import parse

ANY: dict[str, Any] = {"type": "any_text"}


def asked(fmt: Any) -> bytes:
    tag = {"type": "structural_tag", "format": fmt}
    return json.dumps({"messages": [{"role": "user", "content": "x"}], "response_format": tag}).encode()


def in_text(fmt: Any) -> bytes:
    tag = {"structural_tag": json.dumps({"type": "structural_tag", "format": fmt})}
    return json.dumps({"messages": [{"role": "user", "content": "x"}], "structured_outputs": tag}).encode()


def tag_of(content: Any) -> dict[str, Any]:
    return {"type": "tag", "begin": "<a>", "content": content, "end": "</a>"}


@pytest.mark.parametrize(
    "fmt",
    [
        ANY,
        {"type": "const_string", "value": "a"},
        {"type": "json_schema", "json_schema": {"type": "object"}, "style": "qwen_xml"},
        {"type": "json_schema", "json_schema": True},
        {"type": "qwen_xml_parameter", "json_schema": {}},
        {"type": "sequence", "elements": [{"type": "regex", "pattern": "a+(b|c)?"}, ANY]},
        {"type": "or", "elements": [ANY, tag_of(ANY)]},
        {"type": "tags_with_separator", "tags": [tag_of(ANY)], "separator": ",", "at_least_one": True},
        {"type": "triggered_tags", "triggers": ["<a"], "tags": [tag_of(ANY)], "stop_after_first": True},
        {"type": "tag", "begin": {"type": "token", "token": 5}, "content": {"type": "any_tokens"}, "end": ["a", "b"]},
        {"type": "token_triggered_tags", "trigger_tokens": [5, "x"], "tags": [tag_of({"type": "exclude_token"})]},
    ],
)
def test_a_tag_goes_on_as_it_was_without_what_is_unknown(fmt: dict[str, Any]) -> None:
    for made in (asked, in_text):
        plain, padded = parse("chat", made(fmt)), parse("chat", made(fmt | {"unknown": {"a": 1}}))
        assert padded.fields == plain.fields
        assert (plain.ignored, padded.ignored) == ("", "format.unknown")
        assert plain.load.schemas > 0
    assert parse("chat", asked(fmt)).fields["response_format"]["format"] == fmt
    assert json.loads(parse("chat", in_text(fmt)).fields["structured_outputs"]["structural_tag"])["format"] == fmt


@pytest.mark.hostile("P15")
@pytest.mark.parametrize(
    "fmt",
    [
        *({"type": kind, "content": ANY, "min": 0, "max": 256} for kind in ("repeat", "star", "plus", "optional")),
        *({"type": kind, "rules": [["a", ANY]]} for kind in ("dispatch", "token_dispatch")),
        {"type": "grammar", "grammar": "root ::= root root"},
        ANY | {"max_chars": 30},
        ANY | {"max_tokens": 30},
        {"type": "regex", "pattern": "([a-z]+){0,256}"},
        {"type": "tags_with_separator", "tags": [ANY], "separator": ","},
        {"type": "unheard_of"},
        {"type": []},
        "x",
    ],
)
def test_a_format_that_would_hold_up_others_is_refused_wherever_it_stands(fmt: Any) -> None:
    for made in (asked, in_text):
        for where in (fmt, {"type": "sequence", "elements": [tag_of(fmt)]}):
            with pytest.raises(Refused) as caught:
                parse("chat", made(where))
            assert caught.value.code is INVALID_REQUEST
            assert caught.value.param in ("response_format", "structured_outputs")


@pytest.mark.hostile("P15")
@pytest.mark.parametrize(
    "fmt",
    [
        {"type": "sequence", "elements": [ANY] * 33},
        {"type": "or", "elements": [{"type": "json_schema", "json_schema": {"pattern": "[a-z]{1000}" * 9}}] * 9},
        {"type": "or", "elements": [{"type": "or", "elements": [{"type": "const_string", "value": "a"}] * 200}] * 6},
    ],
)
def test_many_formats_are_too_costly(fmt: Any) -> None:
    for made in (asked, in_text):
        with pytest.raises(Refused) as caught:
            parse("chat", made(fmt))
        assert caught.value.code is SCHEMA_TOO_COSTLY
