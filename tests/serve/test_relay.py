"""The relay over a simulated engine: the right version answers, or somebody says why not (hostile.md P01, P11, P12; I5)."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from app.domain.errors import (
    ENGINE_REFUSED,
    ENGINE_UNAVAILABLE,
    INVALID_REQUEST,
    MODEL_NOT_FOUND,
    UPSTREAM_FAILED,
    Code,
    GatewayError,
    Refused,
    Unavailable,
)
from app.load.client import engine as engine_module
from app.load.client.engine import HttpEngine
from app.serve import relay as relay_module
from app.serve import stream as stream_module
from app.serve.relabel import refusal
from app.serve.relay import Relay, only
from app.serve.routing_table import RoutingTable, Served, Target
from app.serve.stream import Stream
from app.serve.timing import CLIENT_GONE, NoHooks
from tests.support.simulator import MODEL, Simulator
from tests.support.waiting import until

ENGINE_NAME = "a@000000000001"


class Heard(NoHooks):
    """Hooks that remember."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, int, Mapping[str, Any] | None]] = []
        self.firsts: list[str] = []

    def answered(self, target: Target, status: int, seconds: float, usage: Mapping[str, Any] | None) -> None:
        assert seconds >= 0
        self.answers.append((target.asked, status, usage))

    def first_token(self, target: Target, seconds: float) -> None:
        assert seconds >= 0
        self.firsts.append(target.asked)


class Gateway:
    """A relay and what stands around it."""

    def __init__(self, client: HttpEngine) -> None:
        self.heard = Heard()
        self.missing: list[str] = []
        self.routing_table = RoutingTable(MODEL)
        self.routing_table.replace(
            (Served("a", 1, ENGINE_NAME, "d1", active=True), Served("e", 1, None, None, active=True))
        )
        self.relay = Relay(only(client), self.routing_table, hooks=self.heard, missing=self.missing.append)

    async def ask(self, **more: Any) -> dict[str, Any]:
        answer = await self.relay.complete("chat", body(**more))
        assert isinstance(answer.body, bytes)
        found = json.loads(answer.body)
        assert isinstance(found, dict)
        return found

    async def stream(self, **more: Any) -> Stream:
        answer = await self.relay.complete("chat", body(stream=True, **more))
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        assert isinstance(answer.body, Stream)
        return answer.body


def body(**more: Any) -> bytes:
    return json.dumps({"model": "a", "messages": [{"role": "user", "content": "hello"}]} | more).encode()


@pytest_asyncio.fixture
async def gateway(
    simulator: Simulator, simulated_client: HttpEngine, tiny_adapter: Callable[[int], Path]
) -> AsyncIterator[Gateway]:
    await simulated_client.load(ENGINE_NAME, tiny_adapter(1))
    made = Gateway(simulated_client)
    yield made
    assert made.routing_table.in_flight.idle(ENGINE_NAME)  # whatever happened, nothing is counted as in flight for ever


def events(sent: bytes) -> list[Any]:
    assert sent.endswith(b"\n\n")
    data = [event.removeprefix(b"data: ") for event in sent.split(b"\n\n")[:-1]]
    return [entry.decode() if entry == b"[DONE]" else json.loads(entry) for entry in data]


async def drained(stream: Stream) -> list[Any]:
    return events(b"".join([piece async for piece in stream]))


@pytest.mark.hostile("P18")
@pytest.mark.parametrize("logprobs", [0, 1])
async def test_log_probabilities_of_a_prompt_are_not_asked_of_an_engine_that_ends_over_them(
    gateway: Gateway, simulator: Simulator, logprobs: int
) -> None:
    """vLLM 0.32's CPU build: punica_cpu.add_lora_logits fails for a batch of such prompts, and the core ends."""
    sent = json.dumps({"model": "a", "prompt": ["one", "two"], "echo": True, "logprobs": logprobs}).encode()
    with pytest.raises(Refused) as caught:
        await gateway.relay.complete("completions", sent)
    assert (caught.value.code, caught.value.param) == (INVALID_REQUEST, "echo")
    assert not simulator.seen


async def test_log_probabilities_of_a_prompt_are_asked_for_where_the_operator_says_so(
    gateway: Gateway, simulator: Simulator, simulated_client: HttpEngine
) -> None:
    gateway.relay = Relay(only(simulated_client), gateway.routing_table, prompt_logprobs=True)
    sent = {"model": "a", "prompt": "one", "echo": True, "logprobs": 1}
    assert (await gateway.relay.complete("completions", json.dumps(sent).encode())).status == 200
    assert simulator.seen[-1]["echo"] is True


@pytest.mark.hostile("P17")
async def test_seeds_are_not_passed_to_an_engine_that_ends_over_them(
    gateway: Gateway, simulator: Simulator, simulated_client: HttpEngine
) -> None:
    """vLLM 0.32's CPU build: its generators have no offset to go back to after a step that read a part of a prompt."""
    gateway.relay = Relay(only(simulated_client), gateway.routing_table, seeds=False)
    sent: dict[str, Any] = {"model": "a", "prompt": ["one"] * 64, "seed": 1}
    with pytest.raises(Refused) as caught:
        await gateway.relay.complete("completions", json.dumps(sent).encode())
    assert (caught.value.code, caught.value.param) == (INVALID_REQUEST, "seed")
    assert not simulator.seen
    greedy = json.dumps({**sent, "prompt": "one", "temperature": 0}).encode()
    assert (await gateway.relay.complete("completions", greedy)).status == 200


# ---- answers that are not streamed -------------------------------------------------------------------------------------


async def test_the_version_answers_under_the_name_that_was_asked(gateway: Gateway, simulator: Simulator) -> None:
    for asked in ("a", "a@1"):
        said = await gateway.ask(model=asked)
        assert said["model"] == asked
        assert said["choices"][0]["message"]["content"] == "words of a"
        assert simulator.seen[-1]["model"] == ENGINE_NAME
    assert gateway.heard.answers[-1] == ("a@1", 200, said["usage"])


async def test_the_answer_says_which_version_it_is(gateway: Gateway) -> None:
    answer = await gateway.relay.complete("chat", body())
    assert (answer.target.version, answer.target.digest, answer.content_type) == (1, "d1", "application/json")


async def test_the_served_model_and_an_emptied_adapter_are_answered_by_it(
    gateway: Gateway, simulator: Simulator
) -> None:
    for asked in (MODEL, "e", "e@1"):
        assert (await gateway.ask(model=asked))["model"] == asked
        assert simulator.seen[-1]["model"] == MODEL


async def test_completions_go_to_their_own_path(gateway: Gateway) -> None:
    answer = await gateway.relay.complete("completions", b'{"model":"a","prompt":"x"}')
    assert isinstance(answer.body, bytes)
    said = json.loads(answer.body)
    assert (said["object"], said["model"]) == ("text_completion", "a")


@pytest.mark.parametrize(
    ("raw", "code"),
    [(b"{", INVALID_REQUEST), (body(model="nobody"), MODEL_NOT_FOUND), (body(model=ENGINE_NAME), MODEL_NOT_FOUND)],
)
async def test_what_is_refused_at_the_door_never_reaches_the_engine(
    gateway: Gateway, simulator: Simulator, raw: bytes, code: Code
) -> None:
    with pytest.raises(Refused) as caught:
        await gateway.relay.complete("chat", raw)
    assert caught.value.code is code
    assert simulator.seen == []


BEFORE_ITS_HEAD: list[tuple[str, Code]] = [
    ("500", UPSTREAM_FAILED),
    ("503", ENGINE_UNAVAILABLE),
    ("400", ENGINE_REFUSED),
    ("reset", ENGINE_UNAVAILABLE),
    ("hang", ENGINE_UNAVAILABLE),
]
IN_ITS_BODY: list[tuple[str, Code]] = [
    ("garbage", UPSTREAM_FAILED),
    ("nan", UPSTREAM_FAILED),
    ("other", UPSTREAM_FAILED),
    ("cut", ENGINE_UNAVAILABLE),
]


@pytest.mark.parametrize(
    ("stream", "fault", "code"),
    [
        *((stream, *case) for stream in (False, True) for case in BEFORE_ITS_HEAD),
        *((False, *case) for case in IN_ITS_BODY),
    ],
)
async def test_an_engine_that_fails_before_its_answer_is_an_error(
    gateway: Gateway, simulator: Simulator, monkeypatch: pytest.MonkeyPatch, stream: bool, fault: str, code: Code
) -> None:
    if fault == "hang":
        monkeypatch.setattr(engine_module, "SILENCE_S", 0.2)
        client = HttpEngine(simulator.url)
        gateway.relay = Relay(only(client), gateway.routing_table, hooks=gateway.heard)
    simulator.faults["chat"] = fault
    with pytest.raises(GatewayError) as caught:
        await gateway.relay.complete("chat", body(stream=stream))
    assert caught.value.code is code
    assert gateway.heard.answers == [("a", code.status, None)]
    if fault == "hang":
        await client.close()


async def test_a_dead_core_behind_a_living_server_is_an_engine_that_is_away(
    gateway: Gateway, simulator: Simulator
) -> None:
    simulator.faults |= {"chat": "dead-core", "health": "503"}
    with pytest.raises(Unavailable) as caught:
        await gateway.ask()
    assert caught.value.code is ENGINE_UNAVAILABLE


async def test_an_engine_that_is_gone_is_a_503(gateway: Gateway, simulator: Simulator) -> None:
    await simulator.stop()
    with pytest.raises(Unavailable) as caught:
        await gateway.ask()
    assert caught.value.code is ENGINE_UNAVAILABLE


async def test_an_adapter_the_engine_forgot_is_a_503_and_is_loaded_again(
    gateway: Gateway, simulator: Simulator
) -> None:
    simulator.loaded.clear()
    with pytest.raises(Unavailable) as caught:
        await gateway.ask()
    assert (caught.value.code, caught.value.param) == (ENGINE_UNAVAILABLE, "model")
    assert gateway.missing == [ENGINE_NAME]


async def test_the_engines_words_name_no_engine_name(gateway: Gateway, simulator: Simulator) -> None:
    simulator.faults["chat"] = "400"
    with pytest.raises(Refused, match=r"the engine says 400 of a$"):
        await gateway.ask()


@pytest.mark.ruling("P12")
async def test_nan_as_vllm_reports_it_is_a_502(gateway: Gateway) -> None:
    error = refusal(400, "Out of range float values are not JSON compliant")
    assert error.code is UPSTREAM_FAILED


@pytest.mark.ruling("P11")
async def test_an_answer_without_end_is_cut(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, simulator: Simulator
) -> None:
    monkeypatch.setattr(relay_module, "MAX_ANSWER_BYTES", 50)
    with pytest.raises(Unavailable, match="over 50 bytes"):
        await gateway.ask()


async def test_a_client_that_leaves_before_the_answer_frees_the_engine(gateway: Gateway, simulator: Simulator) -> None:
    simulator.faults["chat"] = "hang"
    asking = asyncio.create_task(gateway.ask())
    await asyncio.sleep(0.05)
    assert not gateway.routing_table.in_flight.idle(ENGINE_NAME)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert gateway.routing_table.in_flight.idle(ENGINE_NAME)


# ---- streams -----------------------------------------------------------------------------------------------------------


async def test_a_stream_is_relabelled_chunk_by_chunk_and_ends_with_done(gateway: Gateway) -> None:
    *chunks, done = await drained(await gateway.stream(stream_options={"include_usage": True}))
    assert done == "[DONE]"
    assert {chunk["model"] for chunk in chunks} == {"a"}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks[:-1]) == "t0 t1 t2 t3 t4 "
    assert gateway.heard.answers == [("a", 200, chunks[-1]["usage"])]
    assert gateway.heard.firsts == ["a"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("half", "broke off"),
        ("eof", "broke off"),
        ("malformed", "cannot be read"),
        ("nan", "NaN is not JSON"),
        ("error", "EngineCore is dead"),
        ("endless", "an event of over"),
    ],
)
@pytest.mark.ruling("P11")
async def test_a_stream_that_goes_wrong_ends_with_an_error_event(
    gateway: Gateway, simulator: Simulator, monkeypatch: pytest.MonkeyPatch, fault: str, said: str
) -> None:
    monkeypatch.setattr("app.serve.sse.MAX_EVENT_BYTES", 1 << 20)
    simulator.faults["chat"] = fault
    *chunks, last = await drained(await gateway.stream())
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == ["t0 ", "t1 "]  # what was good came through
    assert (last["error"]["code"], last["error"]["type"]) == ("upstream_failed", "server_error")
    assert said in last["error"]["message"]
    assert gateway.heard.answers == [("a", 502, {"completion_tokens": 2})]  # no usage was said: what came is counted


async def test_another_adapters_words_are_never_passed_on(gateway: Gateway, simulator: Simulator) -> None:
    simulator.faults["chat"] = "other"
    (last,) = await drained(await gateway.stream())
    assert "answered as another model than 'a'" in last["error"]["message"]
    assert "another@" not in json.dumps(last)


async def test_an_engine_that_dies_in_mid_stream_is_an_error_event(gateway: Gateway, simulator: Simulator) -> None:
    simulator.faults["chat"] = "slow"
    stream = await gateway.stream()
    first = await anext(stream)
    await simulator.stop()
    rest = await drained(stream)
    assert events(first)[0]["choices"]
    assert rest[-1]["error"]["code"] == "upstream_failed"


@pytest.mark.ruling("P11")
async def test_a_stream_without_end_is_cut(
    gateway: Gateway, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator.faults["chat"] = "slow"
    monkeypatch.setattr(stream_module, "MAX_STREAM_BYTES", 1000)
    assert "over 1000 bytes" in (await drained(await gateway.stream()))[-1]["error"]["message"]
    await until(lambda: simulator.running == 0)


@pytest.mark.ruling("P01")
async def test_a_client_that_leaves_in_mid_stream_ends_the_engines_work(gateway: Gateway, simulator: Simulator) -> None:
    simulator.faults["chat"] = "slow"
    stream = await gateway.stream()
    await anext(stream)
    assert (simulator.running, gateway.routing_table.in_flight.count(ENGINE_NAME)) == (1, 1)
    await stream.aclose()
    await stream.aclose()
    assert gateway.routing_table.in_flight.idle(ENGINE_NAME)
    await until(lambda: simulator.running == 0)
    assert gateway.heard.answers == [("a", CLIENT_GONE, {"completion_tokens": 1})]
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_so_does_one_that_is_cancelled_or_never_began_to_read(gateway: Gateway, simulator: Simulator) -> None:
    simulator.faults["chat"] = "slow"
    reading = asyncio.create_task(drained(await gateway.stream()))
    await asyncio.sleep(0.02)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    unread = await gateway.stream()
    del unread
    await until(lambda: simulator.running == 0 and gateway.routing_table.in_flight.idle(ENGINE_NAME))


@pytest.mark.ruling("P01")
async def test_a_thousand_clients_that_leave_cost_nothing(gateway: Gateway, simulator: Simulator) -> None:
    simulator.faults["chat"] = "slow"

    async def come_and_go() -> None:
        stream = await gateway.stream()
        await anext(stream)
        await stream.aclose()

    for _ in range(50):
        await asyncio.gather(*(come_and_go() for _ in range(20)))
        await until(
            lambda: simulator.running == 0
        )  # or the simulator, in this process, writes ever more streams at once
    assert len(gateway.heard.answers) == 1000


async def test_the_alias_moves_and_a_stream_stays_on_its_version(
    gateway: Gateway, simulator: Simulator, simulated_client: HttpEngine, tiny_adapter: Callable[[int], Path]
) -> None:
    await simulated_client.load("a@000000000002", tiny_adapter(2))
    stream = await gateway.stream()
    gateway.routing_table.replace((Served("a", 2, "a@000000000002", "d2", active=True),))
    assert (await gateway.ask())["model"] == "a"
    assert [seen["model"] for seen in simulator.seen] == [ENGINE_NAME, "a@000000000002"]
    assert (await drained(stream))[-1] == "[DONE]"
