"""The relay over the real vLLM: chat by adapter, stream, disconnect, and kill -9 in mid-stream (hostile.md F07, F08)."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from app.domain.errors import ENGINE_UNAVAILABLE, GatewayError, Refused, Unavailable
from app.load.client.engine import HttpEngine
from app.load.reconcile.callbacks import Callbacks
from app.load.reconcile.reconciler import Reconciler
from app.serve.relay import PATHS, Relay, only
from app.serve.request_load import Kind
from app.serve.routing_table import RoutingTable, Served
from app.serve.stream import Stream
from tests.support.engine import LiveEngine
from tests.support.tiny_model import BLANKS

pytestmark = pytest.mark.engine

NOOP = "noop@000000000000"


class Gateway:
    """load and serve as main wires them, over the tests' engine."""

    def __init__(self, live: LiveEngine) -> None:
        self.client = HttpEngine(live.url)
        self.desired: dict[str, Path] = {NOOP: live.adapter(0)}
        self.desired |= {f"a{seed}@{seed:012d}": live.adapter(seed) for seed in (1, 2)}
        self.routing_table = RoutingTable(live.model, base=NOOP, loaded=self.is_loaded)
        named = [Served(f"a{n}", n, f"a{n}@{n:012d}", f"d{n}", active=True) for n in (1, 2)]
        self.routing_table.replace((*named, Served("emptied", 1, None, None, active=True)))
        self.reconciler = Reconciler(
            self.client,
            Callbacks(lambda: self.desired, lambda *_: None, interval_s=0.5, idle=self.routing_table.in_flight.idle),
        )
        self.relay = Relay(only(self.client), self.routing_table, missing=lambda _: self.reconciler.poke())

    def is_loaded(self, name: str) -> bool:
        return self.reconciler.is_loaded(name)

    async def chat(self, model: str, tokens: int = 8, **more: Any) -> dict[str, Any]:
        answer = await self.relay.complete("chat", body(model, tokens, **more))
        assert isinstance(answer.body, bytes)
        found = json.loads(answer.body)
        assert isinstance(found, dict)
        return found

    async def text(self, model: str) -> str:
        said = await self.chat(model)
        assert said["model"] == model
        return str(said["choices"][0]["message"]["content"])

    async def stream(self, model: str, tokens: int) -> Stream:
        answer = await self.relay.complete("chat", body(model, tokens, stream=True))
        assert isinstance(answer.body, Stream)
        return answer.body

    async def all_loaded(self, timeout_s: float = 180) -> None:
        async with asyncio.timeout(timeout_s):
            while self.reconciler.loaded != self.desired.keys():
                await asyncio.sleep(0.05)


def body(model: str, tokens: int, **more: Any) -> bytes:
    wanted = {"messages": [{"role": "user", "content": "w1 w2"}], "max_tokens": tokens, "temperature": 0}
    return json.dumps(wanted | {"model": model, "ignore_eos": True} | more).encode()


@pytest_asyncio.fixture
async def gateway(engine: LiveEngine) -> AsyncIterator[Gateway]:
    made = Gateway(engine)
    made.reconciler.start()
    await made.all_loaded()
    yield made
    await made.reconciler.stop()
    made.desired.clear()
    await made.reconciler.reconcile()  # strays go
    await made.client.close()


async def test_each_name_is_answered_by_its_own_weights(gateway: Gateway, engine: LiveEngine) -> None:
    alone = {name: await gateway.text(name) for name in (engine.model, "a1", "a2", "emptied")}
    assert len({alone[engine.model], alone["a1"], alone["a2"]}) == 3
    assert alone["emptied"] == alone[engine.model]
    assert await gateway.text("a1@1") == alone["a1"]
    together = await asyncio.gather(*(gateway.text(name) for name in alone for _ in range(4)))
    assert together == [alone[name] for name in alone for _ in range(4)]


async def test_a_stream_says_what_the_whole_answer_says(gateway: Gateway) -> None:
    whole = await gateway.text("a1")
    sent = b"".join([piece async for piece in await gateway.stream("a1", 8)])
    *events, done, rest = sent.split(b"\n\n")
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events]
    assert (done, rest) == (b"data: [DONE]", b"")
    assert {chunk["model"] for chunk in chunks} == {"a1"}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == whole


@pytest.mark.parametrize("kind", ["chat", "completions"])
@pytest.mark.parametrize(
    "options",
    [{}, {"include_usage": False}, {"include_usage": False, "continuous_usage_stats": True}, {"include_usage": True}],
)
async def test_asking_for_usage_ourselves_shows_a_caller_nothing_more(
    gateway: Gateway, kind: Kind, options: dict[str, bool]
) -> None:
    more = {"stream": True} | ({"stream_options": options} if options else {})
    asked = json.loads(body("a1", 4, **more)) | ({"prompt": "w1 w2"} if kind == "completions" else {})
    if kind == "completions":
        del asked["messages"]
    answer = await gateway.relay.complete(kind, json.dumps(asked).encode())
    assert isinstance(answer.body, Stream)
    ours = b"".join([piece async for piece in answer.body])
    response = await gateway.client.post(PATHS[kind], json.dumps(asked | {"model": f"a1@{1:012d}"}).encode())
    direct = b"".join([piece async for piece in response.chunks()])
    response.close()
    assert shapes(ours) == shapes(direct)
    assert (b'"usage"' in ours) is bool(options.get("include_usage"))


def events_of(sent: bytes) -> list[dict[str, Any]]:
    *events, done, _ = sent.split(b"\n\n")
    assert done == b"data: [DONE]"
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


def shapes(sent: bytes) -> list[tuple[Any, ...]]:
    """Shapes in their order; how many tokens one event carries is the engine's own affair, and differs from run to run."""
    return [one for one, _ in groupby(map(shape, events_of(sent)))]


def shape(event: dict[str, Any]) -> tuple[Any, ...]:
    """What one event has: its fields, its choices', and the tokens used. The engine's fingerprint goes with its usage."""
    return (
        sorted(event.keys() - {"system_fingerprint"}),
        [sorted(choice) for choice in event["choices"]],
        event.get("usage"),
    )


async def test_what_the_engine_refuses_is_said_in_its_words(gateway: Gateway) -> None:
    with pytest.raises(Refused, match="max_model_len"):
        await gateway.chat("a1", tokens=100_000)


@pytest.mark.parametrize(
    "more",
    [
        {"logprobs": True, "top_logprobs": 3, "n": 2, "seed": 1, "temperature": 0.5, "stop": ["w7"]},
        {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "stop_token_ids": [9], "min_tokens": 2},
        {"logit_bias": {"20": 5}, "presence_penalty": 1, "frequency_penalty": 1, "top_p": 0.9, "user": "me"},
        {"skip_special_tokens": False, "bad_words": ["w3"], "allowed_token_ids": [7, 8, 9], "max_completion_tokens": 4},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "w1"}, {"type": "text", "text": "w2"}]}]},
    ],
)
async def test_the_fields_on_the_table_are_taken_by_the_engine(gateway: Gateway, more: dict[str, Any]) -> None:
    said = await gateway.chat("a1", **more)
    assert len(said["choices"]) == more.get("n", 1)


async def test_an_adapter_that_is_taken_away_and_wanted_again(gateway: Gateway) -> None:
    before = await gateway.text("a2")
    path = gateway.desired.pop("a2@000000000002")
    await gateway.reconciler.retire("a2@000000000002")
    with pytest.raises(Unavailable) as caught:
        await gateway.text("a2")
    assert caught.value.code is ENGINE_UNAVAILABLE
    gateway.desired["a2@000000000002"] = path
    await gateway.reconciler.ensure("a2@000000000002")
    assert await gateway.text("a2") == before


def server_of(engine: LiveEngine) -> int:
    """The process that answers HTTP."""
    (pid,) = [pid for pid in engine.processes("vllm.entrypoints") if pid != engine.embedded.pid]
    return pid


def core_of(engine: LiveEngine) -> int:
    """Its child that computes: told by its parent, because the name vLLM gives it is not always there."""
    server = server_of(engine)
    (pid,) = [
        pid
        for pid in engine.processes()
        if parent_of(pid) == server and pid not in engine.processes("resource_tracker")
    ]
    return pid


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("victim", [server_of, core_of])
async def test_kill_9_in_mid_stream_is_an_error_event_then_503_then_everything_is_back(
    gateway: Gateway, engine: LiveEngine, victim: Callable[[LiveEngine], int]
) -> None:
    before = {name: await gateway.text(name) for name in (engine.model, "a1", "a2")}
    generation = engine.embedded.generation
    pid = victim(engine)  # found before: while a busy machine looks for it, all 480 tokens may have been computed
    stream = await gateway.stream("a1", 480)
    await anext(stream)
    os.kill(pid, signal.SIGKILL)
    rest = b"".join([piece async for piece in stream])
    last = json.loads(rest.strip().split(b"\n\n")[-1].removeprefix(b"data: "))
    assert last["error"]["code"] in ("upstream_failed", "engine_unavailable")
    assert b"[DONE]" not in rest
    seen = set()
    async with asyncio.timeout(180):
        while engine.embedded.generation == generation or gateway.reconciler.loaded != gateway.desired.keys():
            for name, said in before.items():
                try:
                    assert await gateway.text(name) == said  # right, or refused: never another's words
                except GatewayError as error:
                    seen.add(error.code)
            await asyncio.sleep(0.2)
    assert seen == {ENGINE_UNAVAILABLE}
    assert {name: await gateway.text(name) for name in before} == before


COLOUR: dict[str, Any] = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}},
    "required": ["colour"],
}
COLOUR |= {"additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "paint", "parameters": COLOUR, "strict": True}}
NAMED = {"type": "function", "function": {"name": "paint"}}
BRIEF = {"ignore_eos": False, "logit_bias": {str(blank): -100 for blank in BLANKS}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "c", "schema": COLOUR, "strict": True}}


@pytest.mark.parametrize("model", ["a1", "a2", "emptied"])
async def test_an_answer_has_the_form_its_schema_asks_for(gateway: Gateway, model: str) -> None:
    said = await gateway.chat(model, tokens=40, response_format=SCHEMA, **BRIEF)
    assert json.loads(said["choices"][0]["message"]["content"])["colour"] in ("red", "green")


async def test_a_tool_is_called_by_name_whole_and_streamed(gateway: Gateway) -> None:
    asked = {"tools": [TOOL], "tool_choice": NAMED, **BRIEF}
    said = await gateway.chat("a1", tokens=40, **asked)
    (whole,) = said["choices"][0]["message"]["tool_calls"]
    assert whole["function"]["name"] == "paint"
    assert json.loads(whole["function"]["arguments"])["colour"] in ("red", "green")
    answer = await gateway.relay.complete("chat", body("a1", 40, stream=True, **asked))
    assert isinstance(answer.body, Stream)
    deltas = [event["choices"][0]["delta"] for event in events_of(b"".join([piece async for piece in answer.body]))]
    calls = [call for delta in deltas for call in delta.get("tool_calls") or []]
    assert "".join(call["function"].get("name") or "" for call in calls) == "paint"
    streamed = "".join(call["function"].get("arguments") or "" for call in calls)
    assert json.loads(streamed) == json.loads(whole["function"]["arguments"])


async def test_a_conversation_with_a_tools_answer_goes_on(gateway: Gateway) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "paint", "arguments": '{"colour": "red"}'}}
    turns = [
        {"role": "user", "content": "w1"},
        {"role": "assistant", "content": "w2", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "w3"},
    ]
    said = await gateway.chat("a1", messages=turns, tools=[TOOL], tool_choice="none")
    assert said["choices"][0]["message"]["content"]
