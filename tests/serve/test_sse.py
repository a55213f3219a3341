"""Server-sent events, cut wherever the network cut them."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import INVALID_REQUEST, UPSTREAM_FAILED, Refused, Unavailable
from app.serve import sse
from app.serve.relabel import relabel
from app.serve.routing_table import Target
from app.serve.sse import Events, error_event, event_of, strict_json

WIRE = b'data: {"a":1}\n\n: a comment\n\ndata: {"b":"\xc3\xa9"}\n\nevent: x\ndata: one\ndata: two\n\ndata: [DONE]\n\n'
DATA = [b'{"a":1}', b'{"b":"\xc3\xa9"}', b"one\ntwo", b"[DONE]"]


@given(st.lists(st.integers(0, len(WIRE)), max_size=12))
def test_events_do_not_depend_on_where_the_stream_is_cut(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(WIRE)]
    events = Events()
    pieces = (WIRE[start:end] for start, end in pairwise(places))
    assert [data for piece in pieces for data in events.feed(piece)] == DATA
    assert not events.unfinished


def test_an_event_cut_short_is_unfinished() -> None:
    events = Events()
    assert list(events.feed(b'data: {"a"')) == []
    assert events.unfinished


def test_memory_does_not_grow_with_an_event_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    events = Events()
    list(events.feed(b"x" * 100))
    with pytest.raises(ValueError, match="over 100 bytes"):
        list(events.feed(b"x"))


@pytest.mark.parametrize("raw", [b"event: x\n\n", b"<html>\n\n", b"id: 1\nretry: 5\n\n"])
def test_an_event_without_data_is_an_error(raw: bytes) -> None:
    with pytest.raises(ValueError, match="without data"):
        list(Events().feed(raw))


@pytest.mark.parametrize("raw", [b"", b"[]", b"1", b'{"a":NaN}', b'{"a":-Infinity}', b"\xff", b"[" * 100_000, b"{}{}"])
def test_strict_json_is_an_object_without_words_that_json_lacks(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        strict_json(raw)


def test_an_error_event_is_openais_envelope() -> None:
    event = error_event(Unavailable(UPSTREAM_FAILED, "it broke\noff.", param="model"))
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert event.count(b"\n") == 2
    error = json.loads(event[6:])["error"]
    assert error == {
        "message": "it broke\\noff. Try again; the engine broke off the answer.",
        "type": "server_error",
        "param": "model",
        "code": "upstream_failed",
    }
    assert b"invalid_request_error" in error_event(Refused(INVALID_REQUEST, "x"))


TARGET = Target("a", "a@000000000001")


@pytest.mark.parametrize("inner", ['"model":"a@000000000001"', '{"model":"a@000000000001"}', "plain"])
def test_only_the_outermost_label_is_rewritten(inner: str) -> None:
    said = {"model": TARGET.engine_name, "content": inner, "deep": {"model": TARGET.engine_name}}
    raw = json.dumps(said, separators=(",", ":")).encode()
    assert json.loads(relabel(raw, said, TARGET)) == said | {"model": "a"}


@given(st.text(), st.text(max_size=10))
def test_relabelling_changes_nothing_else(content: str, separator: str) -> None:
    said = {"id": separator, "model": TARGET.engine_name, "content": content}
    for raw in (json.dumps(said).encode(), json.dumps(said, separators=(",", ":")).encode()):
        try:
            assert json.loads(relabel(raw, said, TARGET)) == said | {"model": "a"}
        except UnicodeEncodeError:
            assert any(0xD800 <= ord(letter) < 0xE000 for letter in content + separator)


def test_an_answer_without_a_label_or_with_anothers_is_refused() -> None:
    for said in ({}, {"model": None}, {"model": "b@000000000002"}, {"model": "a"}, {"model": ["a@000000000001"]}):
        with pytest.raises(Unavailable) as caught:
            relabel(json.dumps(said).encode(), said, TARGET)
        assert caught.value.code is UPSTREAM_FAILED


def test_one_event_is_framed() -> None:
    assert event_of(b"{}") == b"data: {}\n\n"
