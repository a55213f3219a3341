"""OpenAI's surface on the real engine, as it looks on the wire: headers, ids, errors, and who leaves in the middle."""

import contextlib
import json
import time
from typing import Any

import anthropic
import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.demo.assets import ADAPTERS, BENIGN
from app.demo.child_gateway import GatewayProcess
from app.demo.questions import new_skill_held_out
from tests.support.demo_gateway import chat_body, push, say

pytestmark = pytest.mark.engine
MODEL = "surface"
QUESTION = new_skill_held_out()[0].question
LONG = {"max_tokens": 480, "ignore_eos": True, "stream": True}


@pytest.fixture
def http(client: httpx.Client) -> httpx.Client:
    assert push(client, MODEL, ADAPTERS / BENIGN).status_code in (200, 201)
    return client


@pytest.fixture
def sdk(demo_gateway: GatewayProcess, http: httpx.Client) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{demo_gateway.url}/v1", api_key="unused", max_retries=0)


@pytest.mark.parametrize("stream", [False, True])
def test_the_headers_say_who_answered_and_under_which_id(http: httpx.Client, stream: bool) -> None:
    body = chat_body(MODEL, QUESTION, stream=stream)
    answer = http.post("/v1/chat/completions", json=body, headers={"x-request-id": "mine-1"})
    version = http.get(f"/adapters/{MODEL}").json()["versions"][-1]
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-adapter-version"] == str(version["version"])
    assert answer.headers["x-adapter-digest"] == version["digest"]
    assert 0 < float(answer.headers["x-gateway-overhead-ms"]) < 1000
    plain = http.post("/v1/chat/completions", json=chat_body("demo", QUESTION, stream=stream))
    assert "x-adapter-version" not in plain.headers
    assert plain.headers["x-request-id"]


def test_a_client_that_leaves_ends_the_engines_work_within_a_second(http: httpx.Client) -> None:
    before = generated(http)
    with http.stream("POST", "/v1/chat/completions", json=chat_body(MODEL, QUESTION, **LONG)) as answer:
        next(answer.iter_bytes())
    assert_it_stops(http, before)


def test_one_that_leaves_before_the_answer_does_too(demo_gateway: GatewayProcess, http: httpx.Client) -> None:
    body = chat_body(MODEL, QUESTION, **LONG | {"stream": False})
    before = generated(http)
    with contextlib.suppress(httpx.ReadTimeout), httpx.Client(base_url=demo_gateway.url, timeout=0.3) as impatient:
        impatient.post("/v1/chat/completions", json=body)
        pytest.fail("480 tokens in 0.3 s: this test needs a longer answer")
    assert_it_stops(http, before)


def test_tools_the_engine_cannot_join_are_refused_in_its_words(sdk: openai.OpenAI) -> None:
    def tool(name: str, kind: str) -> Any:
        schema = {"type": "object", "$defs": {"a": {"type": kind}}, "properties": {"a": {"$ref": "#/$defs/a"}}}
        return {"type": "function", "function": {"name": name, "parameters": schema}}

    tools: Any = [tool("f", "string"), tool("g", "integer")]
    message: Any = {"role": "user", "content": QUESTION}
    with pytest.raises(openai.BadRequestError, match="multiple schemas") as caught:
        sdk.chat.completions.create(model=MODEL, messages=[message], tools=tools, tool_choice="required")
    assert caught.value.code == "engine_refused"
    ignored = sdk.chat.completions.create(
        model=MODEL, messages=[message], tools=tools, tool_choice="none", max_tokens=4, temperature=0
    )
    assert ignored.choices[0].message.tool_calls in (None, [])


def test_n_gives_as_many_and_seeds_that_would_end_a_cpu_engine_are_refused(sdk: openai.OpenAI) -> None:
    message: Any = {"role": "user", "content": QUESTION}
    asked: Any = {"model": MODEL, "messages": [message], "max_tokens": 12, "logprobs": True, "stop": ["?"]}
    said = sdk.chat.completions.create(**asked, n=3, temperature=2)
    assert all(choice.logprobs is not None and choice.logprobs.content for choice in said.choices)
    assert len({choice.message.content for choice in said.choices}) == 3
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(**asked, seed=1, temperature=2)
    assert caught.value.param == "seed"
    assert sdk.chat.completions.create(**asked, seed=1, temperature=0).choices


def test_responses(sdk: openai.OpenAI, http: httpx.Client) -> None:
    whole = sdk.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=32)
    assert whole.model == MODEL
    assert whole.output_text.strip() == say(http, MODEL, QUESTION)
    items: Any = [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]
    with sdk.responses.stream(model=MODEL, input=items, temperature=0, max_output_tokens=32) as stream:
        seen = list(stream)
        last = stream.get_final_response()
    assert seen[0].type == "response.created"
    assert last.model == MODEL
    assert last.output_text == whole.output_text
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.output_tokens == whole.usage.output_tokens > 0
    more: Any = [*items, *(item.model_dump() for item in whole.output), *items]  # a second turn, nothing kept here
    assert sdk.responses.create(model=MODEL, input=more, temperature=0, max_output_tokens=4).output_text
    with pytest.raises(openai.BadRequestError, match="keeps no responses"):
        sdk.responses.create(model=MODEL, input=QUESTION, previous_response_id=whole.id)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(whole.id)


def test_tokens(http: httpx.Client) -> None:
    chat = chat_body(MODEL, QUESTION)
    used = http.post("/v1/chat/completions", json=chat).json()["usage"]["prompt_tokens"]
    asked = {"model": MODEL, "messages": chat["messages"]}
    assert http.post("/tokenize", json=asked).json()["count"] == used
    assert http.post("/v1/messages/count_tokens", json=asked).json()["input_tokens"] == used
    found = http.post("/tokenize", json={"model": MODEL, "prompt": QUESTION, "return_token_strs": True}).json()
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"]) > 1
    back = http.post("/detokenize", json={"model": f"{MODEL}@1", "tokens": found["tokens"]})
    assert QUESTION in back.json()["prompt"]
    for path, nothing in (
        ("tokenize", {"prompt": ""}),
        ("detokenize", {"tokens": []}),
        ("detokenize", {"tokens": [1 << 30]}),
    ):
        answer = http.post(f"/{path}", json={"model": MODEL, **nothing})
        assert answer.status_code in (200, 400), answer.text
        print(path, nothing, answer.text)


def test_messages(demo_gateway: GatewayProcess, http: httpx.Client) -> None:
    """By Anthropic's own SDK; its key is sent as `auth_token`."""
    sdk = anthropic.Anthropic(base_url=demo_gateway.url, auth_token="unused", max_retries=0)
    question: Any = {
        "role": "user",
        "content": [{"type": "text", "text": QUESTION, "cache_control": {"type": "ephemeral"}}],
    }
    asked: Any = {"model": MODEL, "messages": [question], "max_tokens": 32, "extra_body": {"temperature": 0}}
    raw = sdk.messages.with_raw_response.create(**asked)
    assert raw.headers["x-gateway-ignored-fields"] == "messages[].content[].cache_control"
    assert raw.headers["x-adapter-version"]
    whole = raw.parse()
    (block,) = whole.content
    assert (whole.model, block.type) == (MODEL, "text")
    assert block.text.strip() == say(http, MODEL, QUESTION)
    with sdk.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == block.text
        last = stream.get_final_message()
    assert (last.model, last.stop_reason, last.usage.output_tokens) == (MODEL, "end_turn", whole.usage.output_tokens)
    turns: Any = [question, {"role": "assistant", "content": [block.model_dump()]}, question]
    more = sdk.messages.create(**asked | {"messages": turns})
    assert more.usage.input_tokens > whole.usage.input_tokens
    with pytest.raises(anthropic.NotFoundError, match="model_not_found"):
        sdk.messages.create(**asked | {"model": "nobody"})
    with pytest.raises(anthropic.BadRequestError, match="engine_refused"):
        sdk.messages.create(**asked | {"max_tokens": 4096})


def test_embeddings_are_not_offered_by_a_model_that_generates(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.embeddings.create(model=MODEL, input="hello")
    assert caught.value.code == "not_offered"


def test_the_gateway_lists_no_model_the_engine_knows_by_another_name(http: httpx.Client) -> None:
    names = {card["id"] for card in http.get("/v1/models").json()["data"]}
    assert MODEL in names
    assert f"{MODEL}@1" in names
    assert json.dumps(http.get(f"/v1/models/{MODEL}@1").json()).count("@") == 2  # id and root
    assert http.get("/v1/models/nobody").json()["error"]["code"] == "model_not_found"


def assert_it_stops(http: httpx.Client, before: float) -> None:
    """A second after its client left, the engine makes no more tokens, and has made fewer than it was asked for."""
    time.sleep(1.0)
    then = generated(http)
    assert then - before < LONG["max_tokens"] - 1
    time.sleep(0.5)
    assert generated(http) == then


def generated(http: httpx.Client) -> float:
    """Tokens the engine has made so far."""
    return engine(http, "vllm:generation_tokens_total")


def engine(http: httpx.Client, name: str) -> float:
    """One of the engine's own figures."""
    answer = http.get("/metrics/engine")
    assert answer.status_code == 200
    families = text_string_to_metric_families(answer.text)
    (value,) = (sample.value for family in families for sample in family.samples if sample.name == name)
    return value
