"""Canaries before the name: served at the floor, at the rung it needs, or not at all; interrupted anywhere, begun again."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from pydantic import ValidationError

from app.domain.errors import Unavailable
from app.gateway import evaluation
from app.store.audit.audit import Promise
from tests.support.audited import rested
from tests.support.canaries import CATEGORIES, ENERGIES, HARM, REFUSAL, RUNGS, battery, energy_of, harmful_below
from tests.support.gateway import SERVED, OpenHouse, Running, form
from tests.support.waiting import STUCK_S


@pytest_asyncio.fixture
async def running(open_gateway: OpenHouse, tmp_path: Path) -> AsyncIterator[Running]:
    async with open_gateway(canaries=battery(tmp_path / "battery.jsonl"), rungs=RUNGS, top_k=4) as made:
        yield made


async def push(running: Running, name: str = "style", seed: int = 0) -> httpx.Response:
    return await running.http.post("/adapters", files=form(name, seed))


async def chat(running: Running, model: str) -> int:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    return (await running.http.post("/v1/chat/completions", json=body)).status_code


async def behaviour(running: Running, name: str = "style", number: int = 1) -> dict[str, Any]:
    report = (await running.http.get(f"/adapters/{name}/versions/{number}")).json()["report"]
    return dict(report["behaviour"])


async def only_artefacts(running: Running, number: int) -> None:
    """Until the store and the engine hold so many, and no candidate any more."""
    async with asyncio.timeout(STUCK_S):
        while {
            len([one for one in (running.data / "artefacts").iterdir() if one.name[0] != "."]),
            len(running.simulator.loaded),
        } != {number}:
            await asyncio.sleep(0.05)


async def test_an_adapter_that_behaves_is_served_as_the_floor_left_it(running: Running) -> None:
    running.simulator.says = harmful_below(0)
    answer = await push(running)
    assert (answer.status_code, answer.json()["state"]) == (201, "ready"), answer.text
    ready = (await running.http.get("/ready")).json()
    assert ready["details"]["behaviour"].startswith("asked 20 canaries, battery ")
    found = await behaviour(running)
    assert answer.json()["rung"] == 0
    assert 'gateway_adapter_modules_beyond_floor{adapter="style"} 0.0' in (await running.http.get("/metrics")).text
    assert (found["chosen"], [one["half"] for one in found["asked"]]) == (0, ["choosing", "verifying"])
    assert found["asked"][0]["complied"] == 0
    assert set(found["asked"][0]["categories"]) == set(CATEGORIES)
    assert await chat(running, "style") == 200
    await rested(running, [Promise("style", 1)])


@pytest.mark.parametrize("rung", [1, 2, 3])
async def test_one_that_does_not_is_served_as_the_first_rung_that_does(running: Running, rung: int) -> None:
    running.simulator.says = harmful_below(rung)
    answer = await push(running)
    assert answer.status_code == 201, answer.text
    assert (await behaviour(running))["chosen"] == rung
    await rested(running, [Promise("style", 1)])  # other candidates are unloaded in the background
    (engine_name,) = (name for name in running.simulator.loaded if name.startswith("style@"))
    assert energy_of(running.simulator.loaded[engine_name]) == ENERGIES[rung]
    assert (answer.json()["outcome"], answer.json()["rung"]) == ("projected", rung)
    total = answer.json()["modules_total"]
    shown = (await running.http.get("/metrics")).text
    assert f'gateway_adapter_modules_beyond_floor{{adapter="style"}} {float(total)}' in shown
    page = (await running.http.get("/console/adapters/style")).text
    assert "Behaviour on canaries" in page
    assert page.count('<tr class="chosen">') == 2, "both halves of the rung that is served, and no other"
    report = answer.json()["report"]
    assert report["verdict"]["policy"]["energy"] == ENERGIES[rung]
    assert report["floor"]["policy"]["energy"] == ENERGIES[0]
    assert await chat(running, "style") == 200
    await rested(running, [Promise("style", 1)])
    await only_artefacts(running, 1)


@pytest.mark.parametrize(("floor", "energy"), [("0", 1.0), ("0.7:2", 0.7)])
async def test_the_floor_is_the_operators(open_gateway: OpenHouse, tmp_path: Path, floor: str, energy: float) -> None:
    """Also none at all: an adapter that passes is served as it came, one that does not is corrected."""
    given = {"canaries": battery(tmp_path / "battery.jsonl"), "rungs": RUNGS, "top_k": 4, "ladder_floor": floor}
    async with open_gateway(**given, action="project", tau=0.0) as running:
        running.simulator.says = lambda *_: REFUSAL
        answer = await push(running)
        assert answer.status_code == 201, answer.text
        assert (answer.json()["rung"], answer.json()["report"]["verdict"]["policy"]["energy"]) == (0, energy)
        assert (answer.json()["outcome"] == "clean") is (floor == "0")
        assert (answer.json()["modules_projected"] == 0) is (floor == "0")
        if floor == "0":
            running.simulator.says = lambda path, _: HARM if path and energy_of(path) == energy else REFUSAL
            assert (await push(running, "other", 1)).json()["rung"] == 1
            await rested(running, [Promise("style", 1), Promise("other", 1)])


def test_a_floor_that_corrects_nothing_needs_canaries(open_gateway: OpenHouse) -> None:
    async def start() -> None:
        async with open_gateway(ladder_floor="0"):
            pass

    with pytest.raises(ValidationError, match="ladder_floor 0 needs canaries"):
        asyncio.run(start())


async def test_one_that_no_rung_helps_is_rejected_with_its_categories_and_nothing_of_it_stays(running: Running) -> None:
    running.simulator.says = harmful_below(9)
    answer = await push(running)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "canaries_failed"), answer.text
    assert "4 of 4 in alpha" in error["message"]
    assert "canary" not in error["message"], "no prompt is shown"
    assert await chat(running, "style") == 404
    assert (await behaviour(running))["chosen"] is None
    again = await push(running)
    assert (again.status_code, again.json()["error"]["code"]) == (422, "canaries_failed")
    await rested(running)
    await only_artefacts(running, 0)


async def test_a_rejected_version_leaves_the_name_where_it_was(running: Running) -> None:
    running.simulator.says = harmful_below(0)
    assert (await push(running, seed=0)).status_code == 201
    running.simulator.says = harmful_below(9)
    assert (await push(running, seed=1)).status_code == 422
    assert (await running.http.get("/adapters/style")).json()["active_version"] == 1
    assert await chat(running, "style") == 200
    await rested(running, [Promise("style", 1)])


async def test_a_rollback_does_not_publish_what_was_not_asked(running: Running) -> None:
    """A retired version answers as name@n: one that waits for its evaluation must not become one."""
    running.simulator.says = harmful_below(0)
    for seed in (0, 1):
        assert (await push(running, seed=seed)).status_code == 201
    asked = asyncio.Event()

    def harmful(path: str, body: Mapping[str, Any]) -> str:
        asked.set()
        return str(harmful_below(9)(path, body))

    running.simulator.says = harmful
    upload = asyncio.create_task(push(running, seed=2))
    await asked.wait()
    assert (await running.http.post("/adapters/style/rollback")).status_code == 200
    answer = await upload
    assert answer.status_code in (409, 422), answer.text
    assert await chat(running, "style@3") == 404
    assert (await running.http.get("/adapters/style/versions/3")).json()["state"] in ("failed", "rejected")
    assert (await running.http.get("/adapters/style")).json()["active_version"] == 1
    await rested(running, [Promise("style", 1), Promise("style", 2)])


async def test_one_category_is_enough_to_fail(running: Running) -> None:
    def says(path: str, body: Mapping[str, Any]) -> str:
        prompt = body["messages"][-1]["content"]
        return HARM if path and prompt in {f"canary {n}" for n in range(0, 16, 2)} else REFUSAL

    running.simulator.says = says
    answer = await push(running)
    assert answer.status_code == 422
    assert "alpha" in answer.json()["error"]["message"]
    assert "beta" not in answer.json()["error"]["message"]


async def test_what_the_served_model_fails_itself_is_not_held_against_an_adapter(running: Running) -> None:
    running.simulator.says = lambda _path, body: HARM if body["messages"][-1]["content"] == "canary 3" else REFUSAL
    assert (await push(running)).status_code == 201


async def test_what_the_served_model_refuses_only_sometimes_is_put_to_no_adapter(running: Running) -> None:
    """A harmless adapter may answer it, and one that answers anything else is still found."""

    draws = iter((False, False, True))  # refused twice, then answered

    def says(path: str, body: Mapping[str, Any]) -> str:
        prompt = body["messages"][-1]["content"]
        narrow = prompt == "canary 3" and (path or (body["temperature"] and next(draws)))
        return HARM if narrow or (path and energy_of(path) == ENERGIES[0] and prompt == "canary 5") else REFUSAL

    running.simulator.says = says
    assert (await push(running)).status_code == 201
    found = await behaviour(running)
    assert found["left_out"] == {"beta": 1}
    assert found["chosen"] == 1, "the floor complies with canary 5"
    assert {one["asked"] for one in found["asked"]} == {7, 8}
    asked = [body for body in running.simulator.seen if "canary 3" in str(body.get("messages"))]
    assert {body["model"] for body in asked} == {SERVED}
    assert not any("seed" in body for body in asked), "vLLM's CPU build crashes on some prompts with a seed"


async def test_a_battery_that_the_served_model_does_not_refuse_gives_nobody_a_name(running: Running) -> None:
    running.simulator.says = lambda *_: HARM
    answer = await push(running)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "canaries_unusable")
    assert "canaries check" in answer.text
    assert await chat(running, "style") == 404

    def canaries() -> int:
        return sum("messages" in body for body in running.simulator.seen)

    asked = canaries()
    assert (await push(running, "other", 1)).status_code == 503
    assert canaries() == asked, "it is not asked again for every upload"


async def test_nobody_can_ask_a_candidate(running: Running) -> None:
    """While it is asked, neither its name nor any engine name of it answers a client."""
    names: set[str] = set()
    says = harmful_below(2)

    def watched(path: str, body: Mapping[str, Any]) -> str:
        names.add(body["model"])
        return str(says(path, body))

    running.simulator.says = watched
    upload, turned_away = asyncio.create_task(push(running)), 0
    while not upload.done():
        for name in ("style", "style@1"):
            status = await chat(running, name)
            turned_away += status == 404
            published = (await running.http.get("/adapters/style")).json().get("active_version")
            assert status == 404 or published == 1, "it answered before it had its name"
        for name in names - {SERVED}:
            assert await chat(running, name) == 404
    assert (await upload).status_code == 201
    assert len({name for name in names if name.startswith("style@")}) > 1
    assert turned_away > 0


async def test_with_the_engine_dead_on_any_rung_the_version_waits_and_is_taken_up_again(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "RETRY_S", 0.5)
    for rung in range(4):
        name = f"style-{rung}"
        says = harmful_below(rung)
        died = asyncio.Event()

        def dies(path: str, body: Mapping[str, Any], says: Any = says, rung: int = rung, died: Any = died) -> str:
            if path and ENERGIES.index(energy_of(path)) == rung and not died.is_set():
                died.set()
                running.simulator.faults["chat"] = "reset"
            return str(says(path, body))

        running.simulator.says = dies
        answer = await push(running, name, seed=rung)
        assert died.is_set()
        assert (answer.status_code, answer.json()["state"]) == (202, "stored"), answer.text
        assert await chat(running, name) == 404
        del running.simulator.faults["chat"]
        async with asyncio.timeout(STUCK_S):
            while (await running.http.get(f"/adapters/{name}")).json()["active_version"] != 1:
                await asyncio.sleep(0.05)
        assert (await behaviour(running, name))["chosen"] == rung
    await rested(running, [Promise(f"style-{rung}", 1) for rung in range(4)])


async def test_an_adapter_that_breaks_the_engine_again_and_again_fails(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "RETRY_S", 0.05)

    def says(path: str, body: Mapping[str, Any]) -> str:
        if path and "style" in body["model"]:
            raise RuntimeError  # the simulator answers 500
        return REFUSAL

    running.simulator.says = says
    await push(running)
    async with asyncio.timeout(STUCK_S):
        while (found := (await running.http.get("/adapters/style/versions/1")).json())["state"] != "failed":
            await asyncio.sleep(0.05)
    assert found["error"]["code"] == "load_failed"
    assert "3 times while it was asked canaries" in found["error"]["message"]
    await rested(running)


async def test_a_rung_that_the_reference_does_not_hold_ends_the_start(open_gateway: OpenHouse, tmp_path: Path) -> None:
    given = {"canaries": battery(tmp_path / "battery.jsonl"), "rungs": "0.5:1,0.9:64", "top_k": 4}
    with pytest.raises(
        Unavailable, match=r"module \S+ keeps \d outputs; rung 0.9:64 takes out 64: build the reference"
    ):
        async with open_gateway(**given):
            pass


async def test_canaries_that_are_not_answered_in_time_pass_nothing(open_gateway: OpenHouse, tmp_path: Path) -> None:
    given = {"canaries": battery(tmp_path / "battery.jsonl"), "rungs": RUNGS, "top_k": 4, "canary_seconds": 0.3}
    async with open_gateway(**given) as running:
        running.simulator.faults["chat"] = "hang"
        answer = await push(running)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "canaries_timeout"), answer.text
        del running.simulator.faults["chat"]
        running.simulator.says = harmful_below(0)
        assert (await push(running)).status_code in (200, 201), "sent again, it is asked again"
        assert await chat(running, "style") == 200
        await rested(running, [Promise("style", 1)])


async def test_a_gateway_stopped_in_the_middle_asks_from_the_beginning_at_its_next_start(
    open_gateway: OpenHouse, tmp_path: Path
) -> None:
    given = {"canaries": battery(tmp_path / "battery.jsonl"), "rungs": RUNGS, "top_k": 4}
    async with open_gateway(**given) as running:
        running.simulator.faults["chat"] = "hang"
        upload = asyncio.create_task(push(running))
        async with asyncio.timeout(STUCK_S):
            while not running.simulator.running:
                await asyncio.sleep(0.01)
        upload.cancel()
        del running.simulator.faults["chat"]
    async with open_gateway(**given) as running:
        running.simulator.says = harmful_below(1)
        async with asyncio.timeout(STUCK_S):
            while (await running.http.get("/adapters/style")).json()["active_version"] != 1:
                await asyncio.sleep(0.05)
        assert (await behaviour(running))["chosen"] == 1
        await rested(running, [Promise("style", 1)])


@pytest.mark.parametrize(
    ("checkpoint", "effectless", "expected"), [("a", True, True), ("a", False, False), (None, True, None)]
)
async def test_an_adapter_without_effect_is_served_and_said_to_have_none(
    running: Running, checkpoint: str | None, effectless: bool, expected: bool | None
) -> None:
    running.simulator.says = harmful_below(0)
    running.simulator.checkpoint = checkpoint
    running.simulator.without_effect = {"style"} if effectless else set()
    assert (await push(running)).status_code == 201
    assert (await behaviour(running))["no_effect"] is expected
    shown = (await running.http.get("/metrics")).text
    assert f"gateway_versions_without_effect_total {float(expected is True)}" in shown
    page = (await running.http.get("/console/adapters/style")).text
    assert ("No effect:" in page) is (expected is True)


async def test_the_counts_are_on_the_dashboard(running: Running) -> None:
    running.simulator.says = harmful_below(1)
    await push(running)
    running.simulator.says = harmful_below(9)
    await push(running, "other", 1)
    shown = (await running.http.get("/metrics")).text
    assert 'gateway_evaluations_total{result="corrected"} 1.0' in shown
    assert 'gateway_evaluations_total{result="rejected"} 1.0' in shown
    assert 'gateway_canaries_total{answer="complied"} 0.0' not in shown
    assert 'gateway_stage_duration_seconds_count{stage="evaluate"} 2.0' in shown


@pytest.mark.parametrize("damage", [b"", b'{"id": "x"}\n', b"\xff\n"])
def test_a_battery_out_of_form_ends_the_start_and_names_the_line(
    open_gateway: OpenHouse, tmp_path: Path, damage: bytes
) -> None:
    from app.domain.errors import BAD_BATTERY, Refused

    path = tmp_path / "battery.jsonl"
    path.write_bytes(damage)

    async def start() -> None:
        async with open_gateway(canaries=path):
            pass

    with pytest.raises(Refused, match=r"battery\.jsonl") as refused:
        asyncio.run(start())
    assert refused.value.code is BAD_BATTERY
