"""The openai SDK, unmodified, as a client: list, chat, stream, and its error classes."""

from collections.abc import Iterator

import httpx
import openai
import pytest

from app.demo.assets import ADAPTERS, BENIGN
from app.demo.child_gateway import GatewayProcess
from app.demo.questions import new_skill_held_out
from tests.support.demo_gateway import push, say

pytestmark = pytest.mark.engine
QUESTION = new_skill_held_out()[0].question


@pytest.fixture
def sdk(demo_gateway: GatewayProcess, client: httpx.Client) -> Iterator[openai.OpenAI]:
    assert push(client, "sdk", ADAPTERS / BENIGN).status_code in (200, 201)
    with openai.OpenAI(base_url=f"{demo_gateway.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def test_list_and_retrieve(sdk: openai.OpenAI) -> None:
    assert {"demo", "sdk"} <= {model.id for model in sdk.models.list()}
    assert sdk.models.retrieve("sdk").id == "sdk"


def test_chat_and_stream_say_the_same(sdk: openai.OpenAI, client: httpx.Client) -> None:
    whole = sdk.chat.completions.create(
        model="sdk", messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=32
    )
    assert whole.model == "sdk"
    assert whole.usage is not None
    assert whole.usage.completion_tokens > 0
    stream = sdk.chat.completions.create(
        model="sdk",
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=32,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert {chunk.model for chunk in chunks} == {"sdk"}
    assert chunks[-1].usage == whole.usage
    assert text.strip() == say(client, "sdk", QUESTION)


def test_completions(sdk: openai.OpenAI) -> None:
    made = sdk.completions.create(model="sdk", prompt="<user> hello <assistant>", max_tokens=4, temperature=0)
    assert made.model == "sdk"
    assert made.usage is not None
    assert 0 < made.usage.completion_tokens <= 4


@pytest.mark.parametrize("model", ["nobody", "sdk@99", "sdk@0123456789ab", "../x", "x" * 10_000])
def test_an_unknown_model_is_not_found(sdk: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}])
    assert caught.value.code == "model_not_found"


def test_a_bad_request_is_a_bad_request(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(model="", messages=[{"role": "user", "content": "x"}])
    assert caught.value.code == "model_missing"
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(
            model="sdk", messages=[{"role": "user", "content": "x"}], extra_body={"chat_template": "{{ evil }}"}
        )
    assert caught.value.param == "chat_template"
