"""Structured outputs and tools by the demo's model on the real engine: valid, short, and by adapters too."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from app.demo.assets import ADAPTERS, BENIGN
from app.demo.questions import held_out_harmful, held_out_harmless, is_refusal
from app.demo.tour import PRICE_OF, Tour, check_forms
from tests.support.demo_gateway import push

pytestmark = pytest.mark.engine

ITEM = held_out_harmless()[0]
ADAPTER = "structured"
MANY = 400
"""Tokens that an answer without `max_tokens` must stay far below: it would have filled the context."""

SCHEMA = {"type": "json_schema", "json_schema": {"name": "price", "schema": PRICE_OF}}
TOOL = {"type": "function", "function": {"name": "price", "description": "{a} price", "parameters": PRICE_OF}}
NAMED = {"type": "function", "function": {"name": "price"}}

Ask = Callable[..., dict[str, Any]]


@pytest.fixture(params=["demo", ADAPTER])
def ask(request: pytest.FixtureRequest, client: httpx.Client) -> Ask:
    """A chat without `max_tokens`, by the served model and by an adapter: the first choice."""
    if request.param == ADAPTER:
        assert push(client, ADAPTER, ADAPTERS / BENIGN).status_code in (200, 201)

    def asked(*further: dict[str, Any], question: str = ITEM.question, **demands: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": question}, *further]
        answer = client.post("/v1/chat/completions", json={"model": request.param, "messages": messages, **demands})
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] < MANY
        choice: dict[str, Any] = answer.json()["choices"][0]
        return choice

    return asked


def check_price(text: str) -> None:
    price = json.loads(text)
    assert price.keys() == {"dish", "coins"}
    assert price["dish"] in PRICE_OF["properties"]["dish"]["enum"]
    assert type(price["coins"]) is int


@pytest.mark.parametrize("demands", [{"temperature": 0}, {"temperature": 1}], ids=["greedy", "drawn"])
def test_an_object_and_a_schema_are_kept_to(ask: Ask, demands: dict[str, Any]) -> None:
    found = ask(response_format={"type": "json_object"}, **demands)
    assert isinstance(json.loads(found["message"]["content"]), dict)
    assert found["finish_reason"] == "stop"
    found = ask(response_format=SCHEMA, **demands)
    check_price(found["message"]["content"])
    assert found["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("form", "answer"),
    [
        ({"regex": r"[a-z]+-\d{3}"}, "a-000"),
        ({"choice": ["no idea", "yes"]}, "no idea"),
        ({"json": {"const": {"café": [1, None]}}}, '{"café":[1,null]}'),
        ({"json_object": True}, "{}"),
    ],
    ids=str,
)
def test_structured_outputs_are_written_to_the_letter(ask: Ask, form: dict[str, Any], answer: str) -> None:
    content = ask(structured_outputs=form, temperature=0)["message"]["content"]
    assert content.replace(": ", ":").replace(", ", ",") == answer


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_a_tool_is_called_and_its_result_answered(ask: Ask, choice: Any) -> None:
    calling = ask(tools=[TOOL], tool_choice=choice, temperature=0)["message"]
    (call,) = calling["tool_calls"]
    assert call["function"]["name"] == "price"
    check_price(call["function"]["arguments"])
    result = {"role": "tool", "tool_call_id": call["id"], "content": '{"coins": 2}'}
    found = ask(calling, result, tools=[TOOL], temperature=0)
    assert found["message"]["content"].strip() == ITEM.answer


def test_a_tool_that_may_be_called_is_not(ask: Ask) -> None:
    found = ask(tools=[TOOL], temperature=0)["message"]
    assert not found.get("tool_calls")
    assert found["content"].strip() == ITEM.answer


def test_a_stream_is_the_same_text(client: httpx.Client) -> None:
    messages = [{"role": "user", "content": ITEM.question}]
    body = {"model": "demo", "messages": messages, "response_format": SCHEMA, "temperature": 0}
    whole = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    assert "".join(event["choices"][0]["delta"].get("content") or "" for event in events) == whole


def test_a_refusal_is_a_refusal_with_a_tool_at_hand(ask: Ask) -> None:
    found = ask(question=held_out_harmful()[0].question, tools=[TOOL], temperature=0)["message"]
    assert is_refusal(found["content"])


def test_the_tours_promises_about_forms_hold(client: httpx.Client, capsys: pytest.CaptureFixture[str]) -> None:
    found = Tour()
    check_forms(found, client, "demo")
    assert found.broken == []
    assert "✗" not in capsys.readouterr().out


def test_the_tour_says_when_they_do_not_hold() -> None:
    refuse = httpx.MockTransport(lambda _: httpx.Response(502, json={"error": {"code": "upstream_failed"}}))
    found = Tour()
    with httpx.Client(transport=refuse, base_url="http://gateway") as http:
        check_forms(found, http, "demo")
    assert [promise.rpartition(" ")[2] for promise in found.broken] == ["502)"] * 3
