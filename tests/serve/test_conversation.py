"""Conversations: every request of one is known again, whatever was said since; others are told apart."""

import json
from typing import Any

import pytest

from app.serve.conversation import conversation_of
from app.serve.request import parse
from app.serve.request_load import Kind


def of(kind: Kind, session: str | None = None, **fields: Any) -> bytes:
    inference = parse(kind, json.dumps({"model": "a", **fields}).encode())
    return conversation_of(inference.user, session, inference.fields)


def turns(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return first + [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]


def test_later_turns_belong_to_the_first() -> None:
    first = of("chat", messages=turns("hello", system="be kind"))
    assert of("chat", messages=turns("hello", "hi", "and now?", system="be kind"), temperature=0.5) == first
    assert of("chat", messages=turns("good day", system="be kind")) != first


def test_everybody_with_one_system_prompt_is_not_one_conversation() -> None:
    assert of("chat", messages=turns("a", system="s")) != of("chat", messages=turns("b", system="s"))


def test_a_user_is_one_conversation_whatever_is_said() -> None:
    first = of("chat", messages=turns("hello"), user="ann")
    assert of("chat", messages=turns("something else"), user="ann") == first
    assert of("chat", messages=turns("hello"), safety_identifier="ann") == first
    assert of("messages", messages=turns("hello"), max_tokens=5, metadata={"user_id": "ann"}) == first
    assert of("chat", messages=turns("hello"), user="bob") != first


def test_a_session_counts_where_no_user_is_named() -> None:
    first = of("chat", session="s-1", messages=turns("hello"))
    assert of("chat", session="s-1", messages=turns("something else")) == first
    assert of("chat", session="s-2", messages=turns("hello")) != first
    assert of("chat", session="s-1", messages=turns("x"), user="ann") == of("chat", messages=turns("x"), user="ann")


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("completions", {"prompt": "hello"}),
        ("responses", {"input": "hello"}),
        ("embeddings", {"input": "hello"}),
        ("tokenize", {"prompt": "hello"}),
        ("detokenize", {"tokens": [1, 2]}),
        ("count_tokens", {"messages": turns("hello")}),
    ],
)
def test_each_kind_of_request_has_one(kind: Kind, fields: dict[str, Any]) -> None:
    changed: dict[str, Any] = {"tokens": [9], "messages": turns("other")}
    other = {name: changed.get(name, "other") for name in fields}
    assert of(kind, **fields) == of(kind, **fields) != of(kind, **other)


def test_a_turn_of_a_response_belongs_to_the_first() -> None:
    first = of("responses", instructions="i", input=[{"role": "user", "content": "hello"}])
    more = [*({"role": role, "content": "x"} for role in ("assistant", "user"))]
    assert of("responses", instructions="i", input=[{"role": "user", "content": "hello"}, *more]) == first
    assert of("responses", instructions="j", input=[{"role": "user", "content": "hello"}]) != first


@pytest.mark.parametrize("metadata", [{"user_id": 7}, {"user_id": ""}, {}, None])
def test_metadata_without_a_user_names_none(metadata: Any) -> None:
    plain = of("messages", messages=turns("hello"), max_tokens=5)
    assert of("messages", messages=turns("hello"), max_tokens=5, metadata=metadata) == plain


def test_text_that_is_not_unicode_names_a_user_all_the_same() -> None:
    raw = b'{"model": "a", "user": "\\ud800", "messages": [{"role": "user", "content": "x"}]}'
    inference = parse("chat", raw)
    assert conversation_of(inference.user, None, inference.fields) == b"user ?"
