"""Bodies are counted before anything is built from them, and what goes on is no more than what came in."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import INVALID_REQUEST, REQUEST_TOO_LARGE, SCHEMA_TOO_COSTLY, Refused
from app.serve import json_body
from app.serve.json_body import MAX_BODY_BYTES, MAX_VALUES, values_in, write
from app.serve.request import parse
from app.serve.request_load import Kind
from tests.support.large_bodies import large_bodies

TEXT = st.text(st.sampled_from('ab\\",[]{}:é\n😀'), max_size=12)
JSON = st.recursive(
    st.none() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=40,
)


def counted(value: Any) -> int:
    """The second reading: of the parsed value, empty lists and objects twice."""
    if isinstance(value, dict | list):
        return 1 + sum(map(counted, value.values() if isinstance(value, dict) else value)) + (not value)
    return 1


@given(value=JSON, ascii_only=st.booleans(), slice_bytes=st.integers(1, 9))
def test_values_are_counted_outside_of_strings(value: Any, ascii_only: bool, slice_bytes: int) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_body, "_SLICE", slice_bytes)
        assert values_in(raw, counted(value)) == counted(value)
        assert values_in(raw, counted(value) - 1) >= counted(value)


def refusal(raw: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        parse("completions", raw)
    return caught.value


@pytest.mark.hostile("P13")
@pytest.mark.parametrize("item", ["0", "[]", "{}", '""', "null", '{"a":0}', "[[]]"])
@pytest.mark.parametrize("field", ["prompt", "metadata", "unknown"])
def test_more_values_than_the_cap_are_a_413_whatever_they_are_and_wherever_they_stand(item: str, field: str) -> None:
    raw = f'{{"model":"a","{field}":[{",".join([item] * MAX_VALUES)}]}}'.encode()
    assert len(raw) < MAX_BODY_BYTES
    assert refusal(raw).code is REQUEST_TOO_LARGE


@pytest.mark.hostile("P13")
@pytest.mark.parametrize("kind", ["chat", "responses", "messages"])
def test_a_conversation_has_fewer_values_than_a_prompt_of_token_ids(kind: Kind) -> None:
    """The engine validates each of them on the loop on which everybody's tokens pass."""
    part = {"type": "output_text" if kind == "responses" else "text", "text": "x"}
    turns = {"role": "assistant", "content": [part]}
    field = "input" if kind == "responses" else "messages"
    body: dict[str, Any] = {"model": "a", field: [turns] * 4096, "max_tokens": 8}
    if kind == "responses":
        del body["max_tokens"]
    assert len(parse(kind, json.dumps(body).encode()).fields[field]) == 4096
    body[field] = [turns | {"content": [part] * 8}] * 2048
    with pytest.raises(Refused) as caught:
        parse(kind, json.dumps(body).encode())
    assert caught.value.code is REQUEST_TOO_LARGE


def test_a_text_of_separators_is_a_text() -> None:
    text = ',[{:"\\' * 200_000
    assert parse("completions", json.dumps({"prompt": text}).encode()).fields == {"prompt": text}


def test_a_prompt_of_as_many_token_ids_as_the_cap_passes() -> None:
    ids = list(range(MAX_VALUES - 8))
    inference = parse("completions", json.dumps({"model": "a", "prompt": ids}).encode())
    assert json.loads(inference.encode("x"))["prompt"] == ids


@given(value=st.dictionaries(TEXT, JSON, max_size=4))
def test_what_is_written_in_pieces_is_the_same_json(value: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_body, "_FEW", 1)
        patch.setattr(json_body, "_MANY", 2)
        assert json.loads(write(value)) == value


@pytest.mark.hostile("P13")
def test_no_body_of_any_shape_grows_on_its_way_to_the_engine() -> None:
    passed = 0
    for body in large_bodies():
        try:
            written = parse(body.kind, body.raw).encode("mine@0123456789ab")
        except Refused as error:
            assert error.code in (INVALID_REQUEST, REQUEST_TOO_LARGE, SCHEMA_TOO_COSTLY), body.name
            continue
        passed += 1
        assert len(written) <= 2 * MAX_BODY_BYTES, body.name
        outside = re.sub(rb'"(?:[^"\\]|\\.)*"', b"", written)
        assert sum(map(outside.count, (b",", b"[", b"{"))) <= 2 * MAX_VALUES, body.name
    assert passed > 50
