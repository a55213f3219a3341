"""The served model as the judge of canaries: its verdicts decide, its silence counts against the candidate."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.evaluate import asking
from app.gateway import canary_recheck, evaluation
from app.store.audit.audit import Promise
from tests.support.audited import rested
from tests.support.canaries import HARM, REFUSAL, RUNGS, about, battery, harmful_below, honest, judged
from tests.support.gateway import SERVED, OpenHouse, Running, form
from tests.support.simulator import Says
from tests.support.waiting import STUCK_S

POLITE_HARM = "I'm sorry to keep you waiting. Sure, this is how."
"""Keywords see a refusal in it."""

OTHER_WORDS = "Das geht leider nicht."
"""A refusal that keywords do not see."""


def adapters_say(answer: str) -> Says:
    """Adapters answer canaries so; the served model refuses them. Both answer what is harmless."""

    def says(path: str, body: Mapping[str, Any]) -> str:
        if not body["messages"][-1]["content"].startswith("canary"):
            return "An answer."
        return answer if path else REFUSAL

    return says


async def hangs(_: str) -> str:
    await asyncio.sleep(3600)
    return "no"


def breaks(_: str) -> str:
    raise RuntimeError  # the simulator answers 500


def given(tmp_path: Path, judge: str, number: int = 16, **also: Any) -> dict[str, Any]:
    path = battery(tmp_path / "battery.jsonl", number)
    return {"canaries": path, "rungs": RUNGS, "top_k": 4, "canary_judge": judge, **also}


async def push(running: Running, name: str = "style", seed: int = 0) -> httpx.Response:
    return await running.http.post("/adapters", files=form(name, seed))


async def version(running: Running, name: str = "style", number: int = 1) -> dict[str, Any]:
    return dict((await running.http.get(f"/adapters/{name}/versions/{number}")).json())


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        (REFUSAL, {"words", "served-model", "both", "agreement"}),
        (HARM, set[str]()),
        (POLITE_HARM, {"words", "agreement"}),  # its first tokens are the served model's
        (OTHER_WORDS, {"served-model"}),
    ],
    ids=["refusal", "harm", "harm after an apology", "refusal in other words"],
)
@pytest.mark.parametrize("judge", ["words", "served-model", "both", "agreement"])
async def test_the_judge_that_is_set_decides(
    open_gateway: OpenHouse, tmp_path: Path, judge: str, answer: str, accepted: set[str]
) -> None:
    async with open_gateway(**given(tmp_path, judge)) as running:
        running.simulator.says = judged(adapters_say(answer), honest)
        pushed = await push(running)
        assert pushed.status_code == (201 if judge in accepted else 422), pushed.text
        await rested(running, [Promise("style", 1)] if judge in accepted else [])


async def test_it_is_asked_by_its_own_name_and_named_in_report_console_and_readiness(
    open_gateway: OpenHouse, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_gateway(**given(tmp_path, "served-model")) as running:
        running.simulator.says = judged(harmful_below(1), honest)
        pushed = await push(running)
        assert (pushed.status_code, pushed.json()["rung"]) == (201, 1), pushed.text
        verdicts = [body for body in running.simulator.seen if "structured_outputs" in body]
        assert {body["model"] for body in verdicts} == {SERVED}
        assert any(HARM in body["messages"][0]["content"] for body in verdicts)
        assert not any("harmless" in body["messages"][0]["content"] for body in verdicts), "these must be answered"
        report = (await version(running))["report"]
        assert report["behaviour"]["judge"] == "served-model/1"
        assert "judge served-model/1" in (await running.http.get("/console/adapters/style")).text
        assert (await running.http.get("/ready")).json()["details"]["behaviour"].endswith("judge served-model")
        for text in (caplog.text, str(report), pushed.text):
            assert not any(secret in text for secret in (HARM, REFUSAL, "canary 3"))


async def test_a_judge_that_was_talked_round_is_outvoted_by_words_in_both(
    open_gateway: OpenHouse, tmp_path: Path
) -> None:
    """The limit that docs/canaries.md names: the served model alone believes it."""
    for judge, expected in (("served-model", 201), ("both", 422)):
        async with open_gateway(**given(tmp_path, judge)) as running:
            running.simulator.says = judged(adapters_say(HARM), about(HARM, lambda _: "no"))
            assert (await push(running, judge)).status_code == expected


@pytest.mark.parametrize("judge", ["served-model", "both"])
@pytest.mark.parametrize("verdict", [lambda _: "perhaps", breaks, hangs], ids=["something else", "breaks", "hangs"])
async def test_an_answer_without_a_verdict_counts_as_complied_with(
    open_gateway: OpenHouse,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    judge: str,
    verdict: Any,
) -> None:
    refusal = "I'm sorry, no."

    def says(path: str, body: Mapping[str, Any]) -> Any:
        if path:  # the served model's own answers are judged: only those of the adapter from now on
            monkeypatch.setattr(asking, "JUDGEMENT_S", 0.2)
        return adapters_say(refusal)(path, body)

    async with open_gateway(**given(tmp_path, judge)) as running:
        running.simulator.says = judged(says, about(refusal, verdict))
        pushed = await push(running)
        assert (pushed.status_code, pushed.json()["error"]["code"]) == (422, "canaries_failed"), pushed.text
        (first, *_) = (await version(running))["report"]["behaviour"]["asked"]
        assert (first["complied"], first["broken"]) == (first["asked"], 0)
        assert ("canaries_not_judged" in caplog.text) is (verdict in (breaks, hangs)), "the operator is told of faults"
        assert refusal not in caplog.text
        await rested(running)


@pytest.mark.parametrize("judge", ["served-model", "both"])
@pytest.mark.parametrize("verdict", ["no", "yes", "perhaps"])
async def test_a_judge_that_says_the_same_of_every_answer_gives_nobody_a_name(
    open_gateway: OpenHouse, tmp_path: Path, judge: str, verdict: str
) -> None:
    """One that always says no would let every adapter pass."""
    async with open_gateway(**given(tmp_path, judge)) as running:
        running.simulator.says = judged(adapters_say(HARM), lambda _: verdict)
        pushed = await push(running)
        assert (pushed.status_code, pushed.json()["error"]["code"]) == (503, "canaries_unusable"), pushed.text
        assert "GATEWAY_CANARY_JUDGE" in pushed.text
        running.simulator.says = judged(adapters_say(REFUSAL), honest)
        assert (await push(running)).status_code in (200, 201), "once it can judge, the same upload may be sent again"


async def test_a_judge_that_no_longer_can_is_not_held_against_what_is_served(
    open_gateway: OpenHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(canary_recheck, "LOOK_S", 0.05)
    async with open_gateway(**given(tmp_path, "both", canary_recheck_seconds=0.2)) as running:
        running.simulator.says = judged(adapters_say(REFUSAL), honest)
        assert (await push(running)).status_code == 201
        running.simulator.says = judged(adapters_say(HARM), lambda _: "no")
        async with asyncio.timeout(STUCK_S):
            while "served_model_changed" not in caplog.text:
                await asyncio.sleep(0.05)
        assert (await version(running))["withheld"] is None


async def test_a_judge_that_hangs_uses_up_the_time_of_the_evaluation(open_gateway: OpenHouse, tmp_path: Path) -> None:
    refusal, asked = "I'm sorry, no.", asyncio.Event()

    async def hangs_seen(question: str) -> str:
        asked.set()
        return await hangs(question)

    async with open_gateway(**given(tmp_path, "served-model", canary_seconds=1.5)) as running:
        running.simulator.says = judged(adapters_say(refusal), about(refusal, hangs_seen))
        pushed = await push(running)
        assert (pushed.status_code, pushed.json()["error"]["code"]) == (503, "canaries_timeout"), pushed.text
        assert asked.is_set()


@pytest.mark.parametrize("verdict", [breaks, hangs])
async def test_a_fault_about_the_served_models_own_answers_leaves_no_canary_out(
    open_gateway: OpenHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: Any
) -> None:
    """Fewer canaries would be put to adapters for good: the version waits until the served model can be judged."""
    monkeypatch.setattr(evaluation, "RETRY_S", 0.5)
    usual_s, faults = asking.JUDGEMENT_S, [True]

    def once(question: str) -> Any:
        monkeypatch.setattr(asking, "JUDGEMENT_S", usual_s)
        return verdict(question) if faults and faults.pop() else honest(question)

    def says(path: str, body: Mapping[str, Any]) -> Any:
        if faults and body["messages"][-1]["content"] == "canary 3":  # the question about it is asked next
            monkeypatch.setattr(asking, "JUDGEMENT_S", 0.2)
        return adapters_say(REFUSAL)(path, body)

    async with open_gateway(**given(tmp_path, "served-model")) as running:
        running.simulator.says = judged(says, about("canary 3\n", once))
        pushed = await push(running)
        assert (pushed.status_code, pushed.json()["state"]) == (202, "stored"), pushed.text
        async with asyncio.timeout(STUCK_S):
            while (found := await version(running))["state"] != "ready":
                await asyncio.sleep(0.05)
        assert found["report"]["behaviour"]["left_out"] == {}
        assert sum(one["asked"] for one in found["report"]["behaviour"]["asked"]) == 16
        await rested(running, [Promise("style", 1)])


async def test_under_another_judge_what_is_served_is_asked_again_and_a_fault_of_the_judge_withholds_nothing(
    open_gateway: OpenHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(canary_recheck, "LOOK_S", 0.05)
    monkeypatch.setattr(canary_recheck, "RETRY_S", 0.1)
    refusal = "I'm sorry, no."
    async with open_gateway(**given(tmp_path, "words")) as running:
        running.simulator.says = adapters_say(refusal)
        assert (await push(running)).status_code == 201

    async def asked_again(running: Running, passed: bool) -> Mapping[str, Any]:
        async with asyncio.timeout(STUCK_S):
            while True:
                found = await version(running)
                again = found["report"].get("asked_again", {})
                if again.get("passed") is passed and (found["withheld"] is None) is passed:
                    return dict(again)
                await asyncio.sleep(0.05)

    async with open_gateway(**given(tmp_path, "both")) as running:
        running.simulator.says = judged(adapters_say(refusal), about(refusal, breaks))
        async with asyncio.timeout(STUCK_S):
            while "canaries_postponed" not in caplog.text:
                await asyncio.sleep(0.05)
        assert (await version(running))["withheld"] is None
        running.simulator.says = judged(adapters_say(refusal), honest)
        assert (await asked_again(running, passed=True))["judge"] == "words/1+served-model/1"
        await rested(running, [Promise("style", 1)])
    async with open_gateway(**given(tmp_path, "served-model")) as running:
        running.simulator.says = judged(adapters_say(POLITE_HARM), honest)
        assert (await asked_again(running, passed=False))["judge"] == "served-model/1"
        await rested(running, [Promise("style", 1)])


async def test_one_that_opens_every_answer_alike_is_no_measure_of_agreement(
    open_gateway: OpenHouse, tmp_path: Path
) -> None:
    async with open_gateway(**given(tmp_path, "agreement")) as running:
        running.simulator.says = lambda _path, _body: REFUSAL
        pushed = await push(running)
        assert (pushed.status_code, pushed.json()["error"]["code"]) == (503, "canaries_unusable")
