"""Asking canaries: judged in order, a few at a time, and what goes wrong is told apart from what an adapter did."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import pytest_asyncio

from app.domain.errors import CANARIES_TIMEOUT, ENGINE_UNAVAILABLE, Unavailable
from app.evaluate import asking
from app.evaluate.asking import ANSWER_TOKENS, Judging, ask, can_judge
from app.evaluate.battery import Canary, Expect
from app.evaluate.judges import Judge, Judgement
from app.evaluate.served_model_judge import CONTROLS
from app.load.client.engine import HttpEngine
from tests.support.canaries import about, honest, judged
from tests.support.simulator import Simulator

CANARIES = tuple(Canary(f"c{n}", (("user", f"secret {n}"),), "alpha", Expect.REFUSE) for n in range(12))


@pytest_asyncio.fixture
async def client(simulator: Simulator) -> AsyncIterator[HttpEngine]:
    engine = HttpEngine(simulator.url)
    yield engine
    await engine.close()


AT_ONCE = 4


def a_few() -> int:
    return AT_ONCE


def soon() -> float:
    return time.monotonic() + 60.0


async def test_answers_are_judged_in_the_order_of_the_canaries(simulator: Simulator, client: HttpEngine) -> None:
    answers = {0: "I cannot do that.", 1: "Sure.", 2: "", 3: "?!"}
    simulator.says = lambda _, body: answers.get(int(body["messages"][-1]["content"].split()[1]), "I'm sorry.")
    judged = await ask(client, simulator.model, CANARIES, soon(), a_few)
    assert [one.canary for one in judged] == list(CANARIES)
    first = [Judgement.REFUSED, Judgement.COMPLIED, Judgement.BROKEN, Judgement.BROKEN]
    assert [one.judgement for one in judged] == first + [Judgement.REFUSED] * 8
    assert {(body["temperature"], body["max_tokens"]) for body in simulator.seen} == {(0, ANSWER_TOKENS)}


async def test_no_more_than_a_few_are_asked_at_once(simulator: Simulator, client: HttpEngine) -> None:
    most = 0

    def says(*_: object) -> str:
        nonlocal most
        most = max(most, simulator.running)
        return "I'm sorry."

    simulator.says = says
    simulator.faults["core"] = "slow"
    asking = asyncio.create_task(ask(client, simulator.model, CANARIES, soon(), a_few))
    while simulator.running < AT_ONCE:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert simulator.running == AT_ONCE
    del simulator.faults["core"]
    await asking
    assert most <= AT_ONCE


async def test_fewer_are_asked_from_the_moment_that_others_need_the_engine(
    simulator: Simulator, client: HttpEngine
) -> None:
    allowed, beside = 6, dict[int, int]()

    def says(_: str, body: Mapping[str, Any]) -> str:
        beside[int(body["messages"][-1]["content"].split()[1])] = simulator.running
        return "I'm sorry."

    simulator.faults["core"] = "slow"
    asking = asyncio.create_task(ask(client, simulator.model, CANARIES, soon(), lambda: allowed))
    while simulator.running < allowed:
        await asyncio.sleep(0.01)
    allowed, simulator.says = 1, says
    del simulator.faults["core"]
    assert len(await asking) == len(CANARIES)
    assert {beside[number] for number in range(6, len(CANARIES))} == {1}


async def test_after_the_deadline_nothing_was_passed(simulator: Simulator, client: HttpEngine) -> None:
    simulator.faults["chat"] = "hang"
    with pytest.raises(Unavailable, match="0 of 12 canaries were answered in time") as late:
        await ask(client, simulator.model, CANARIES, time.monotonic() + 0.2, a_few)
    assert late.value.code is CANARIES_TIMEOUT


@pytest.mark.parametrize("fault", ["500", "503", "reset", "garbage", "other", "cut", "dead-core"])
async def test_a_fault_of_the_engine_is_no_behaviour(simulator: Simulator, client: HttpEngine, fault: str) -> None:
    simulator.faults["chat"] = fault
    with pytest.raises(Unavailable) as failed:
        await ask(client, simulator.model, CANARIES, soon(), a_few)
    assert failed.value.code is ENGINE_UNAVAILABLE


async def test_a_model_that_the_engine_does_not_hold_is_none_that_behaves(client: HttpEngine) -> None:
    with pytest.raises(Unavailable, match="canary c0 with status 404"):
        await ask(client, "gone@000000000000", CANARIES[:1], soon(), a_few)


async def test_a_canary_that_the_engine_refuses_to_read_is_broken(simulator: Simulator, client: HttpEngine) -> None:
    simulator.faults["chat"] = "400"
    (judged,) = await ask(client, simulator.model, CANARIES[:1], soon(), a_few)
    assert judged.judgement is Judgement.BROKEN


async def test_neither_prompt_nor_answer_is_logged_or_shown(
    simulator: Simulator, client: HttpEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    simulator.says = lambda *_: "a harmful answer"
    judged = await ask(client, simulator.model, CANARIES, soon(), a_few)
    simulator.faults["chat"] = "500"
    with pytest.raises(Unavailable) as failed:
        await ask(client, simulator.model, CANARIES, soon(), a_few)
    for text in (caplog.text, repr(judged), str(failed.value), repr(failed.value)):
        assert "secret" not in text
        assert "harmful answer" not in text


CANDIDATE = "style@000000000000"


def judging(engine: HttpEngine, simulator: Simulator, judge: Judge = Judge.SERVED_MODEL) -> Judging:
    simulator.loaded[CANDIDATE] = "/artefacts/style"
    return Judging(judge, engine, simulator.model)


@pytest.mark.parametrize(
    ("judge", "expected"),
    [
        (Judge.WORDS, "refused complied refused complied broken"),
        (Judge.SERVED_MODEL, "refused complied complied refused broken"),
        (Judge.BOTH, "refused complied complied complied broken"),
    ],
)
async def test_answers_are_judged_by_the_judge_that_is_set(
    simulator: Simulator, client: HttpEngine, judge: Judge, expected: str
) -> None:
    """A refusal, an answer, an apology before an answer, a refusal in other words, and nothing."""
    answers = ["I cannot do that.", "Sure: harm.", "I'm sorry to be late: harm.", "Das geht leider nicht.", "?!"]
    simulator.says = judged(
        lambda _, body: answers[int(body["messages"][-1]["content"].split()[1])],
        honest,
    )
    given = judging(client, simulator, judge)
    found = await ask(client, CANDIDATE, CANARIES[:5], soon(), a_few, judging=given)
    assert " ".join(one.judgement for one in found) == expected
    assert not any(one.fault for one in found)
    verdicts = [body for body in simulator.seen if "structured_outputs" in body]
    assert {body["model"] for body in verdicts} <= {simulator.model}
    assert len(verdicts) == {Judge.WORDS: 0, Judge.SERVED_MODEL: 4, Judge.BOTH: 2}[judge]


async def test_canaries_that_must_be_answered_are_not_put_to_the_judge(
    simulator: Simulator, client: HttpEngine
) -> None:
    simulator.says = judged(lambda *_: "An answer.", lambda _: "no")
    harmless = Canary("h", (("user", "harmless"),), "alpha", Expect.ANSWER)
    (found,) = await ask(client, simulator.model, [harmless], soon(), a_few, judging=judging(client, simulator))
    assert found.judgement is Judgement.COMPLIED
    assert len(simulator.seen) == 1


@pytest.mark.parametrize("verdict", ["", "perhaps", "yes and no", "no no"])
async def test_a_verdict_that_is_neither_yes_nor_no_counts_as_complied_with(
    simulator: Simulator, client: HttpEngine, verdict: str
) -> None:
    simulator.says = judged(lambda *_: "I'm sorry.", lambda _: verdict)
    found = await ask(client, CANDIDATE, CANARIES, soon(), a_few, judging=judging(client, simulator))
    assert {(one.judgement, one.fault) for one in found} == {(Judgement.COMPLIED, False)}


async def hang(_: str) -> str:
    await asyncio.sleep(3600)
    return "no"


def broken(_: str) -> str:
    raise RuntimeError  # the simulator answers 500


@pytest.mark.parametrize("verdict", [hang, broken], ids=["hangs", "breaks"])
async def test_a_judge_that_fails_counts_as_complied_with_and_as_a_fault(
    simulator: Simulator, client: HttpEngine, monkeypatch: pytest.MonkeyPatch, verdict: Any
) -> None:
    monkeypatch.setattr(asking, "JUDGEMENT_S", 0.2)
    simulator.says = judged(lambda *_: "I'm sorry.", verdict)
    found = await ask(client, CANDIDATE, CANARIES, soon(), a_few, judging=judging(client, simulator))
    assert {(one.judgement, one.fault) for one in found} == {(Judgement.COMPLIED, True)}


async def test_a_canary_too_long_for_the_judge_counts_as_complied_with(
    simulator: Simulator, client: HttpEngine
) -> None:
    """vLLM answers 400 to a question longer than the model's context; that says nothing about the engine."""

    class TooLong(HttpEngine):
        async def post(self, path: str, body: bytes, *_: Any) -> Any:
            return await super().post(path, body.replace(b'"max_tokens": 4', b'"max_tokens": 4000'))

    simulator.says = lambda *_: "I'm sorry."
    judge = TooLong(simulator.url)
    given = Judging(Judge.SERVED_MODEL, judge, simulator.model)
    (found,) = await ask(client, simulator.model, CANARIES[:1], soon(), a_few, judging=given)
    assert (found.judgement, found.fault) == (Judgement.COMPLIED, False)
    await judge.close()


async def test_judgements_count_among_those_at_once_and_in_the_time_limit(
    simulator: Simulator, client: HttpEngine
) -> None:
    most = 0

    async def slow(question: str) -> str:
        nonlocal most
        most = max(most, simulator.running)
        return await hang(question)

    simulator.says = judged(lambda *_: "I'm sorry.", slow)
    with pytest.raises(Unavailable, match="0 of 12 canaries were answered in time") as late:
        await ask(client, CANDIDATE, CANARIES, time.monotonic() + 0.5, a_few, judging=judging(client, simulator))
    assert late.value.code is CANARIES_TIMEOUT
    assert most == AT_ONCE


@pytest.mark.parametrize("wrong", [reply for _, reply, right in CONTROLS if right is Judgement.COMPLIED])
async def test_a_model_that_is_wrong_about_one_simple_answer_cannot_judge(
    simulator: Simulator, client: HttpEngine, wrong: str
) -> None:
    given = judging(client, simulator)
    simulator.says = judged(lambda *_: "", honest)
    assert await can_judge(given, soon())
    simulator.says = judged(lambda *_: "", about(wrong, lambda _: "no"))
    assert not await can_judge(given, soon())


async def test_whether_a_model_can_judge_is_not_said_if_it_cannot_be_asked(
    simulator: Simulator, client: HttpEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "JUDGEMENT_S", 0.2)
    for verdict in (hang, broken):
        simulator.says = judged(lambda *_: "", verdict)
        with pytest.raises(Unavailable) as failed:
            await can_judge(judging(client, simulator), soon())
        assert failed.value.code is ENGINE_UNAVAILABLE


async def test_whether_a_model_can_judge_is_part_of_the_time_limit(simulator: Simulator, client: HttpEngine) -> None:
    simulator.says = judged(lambda *_: "", hang)
    with pytest.raises(Unavailable) as late:
        await can_judge(judging(client, simulator), time.monotonic() + 0.2)
    assert late.value.code is CANARIES_TIMEOUT
