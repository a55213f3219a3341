"""POST /adapters and its kin, over everything but the engine."""

import asyncio
import json

import pytest
from safetensors.torch import load, load_file, save

from tests.support.gateway import SERVED, OpenHouse, Running, form


async def chat(running: Running, model: str) -> tuple[int, str]:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    answer = await running.http.post("/v1/chat/completions", json=body)
    return answer.status_code, answer.text


async def test_an_upload_is_screened_stored_loaded_and_served(running: Running) -> None:
    answer = await running.http.post("/adapters", files=form("first"))
    assert answer.status_code == 201, answer.text
    version = answer.json()
    assert (version["state"], version["version"], version["active"]) == ("ready", 1, True)
    assert answer.headers["location"] == "/adapters/first/versions/1"
    assert len(version["report"]["verdict"]["modules"]) == 8
    assert f"first@{version['digest'][:12]}" in running.simulator.loaded
    status, text = await chat(running, "first")
    assert status == 200
    assert '"model":"first"' in text


async def test_an_adapter_without_effect_is_served_with_a_remark(running: Running) -> None:
    """lora_B all zero: training had no effect, and nobody would see it in the answers."""
    parts = form("nothing")
    tensors = {name: value * ("lora_A" in name) for name, value in load(parts["weights"][1]).items()}
    parts["weights"] = ("adapter_model.safetensors", save(tensors))
    answer = await running.http.post("/adapters", files=parts)
    assert answer.status_code == 201, answer.text
    (remark,) = answer.json()["report"]["remarks"]
    assert "zero" in remark
    assert (await running.http.post("/screen", files=parts)).json()["remarks"] == [remark]
    assert "remarks" not in (await running.http.post("/adapters", files=form("first"))).json()["report"]


async def test_a_refusal_lists_every_fault_with_its_remedy(running: Running) -> None:
    parts = form("first")
    config = json.loads(parts["config"][1]) | {"use_dora": True, "bias": "all"}
    parts["config"] = ("adapter_config.json", json.dumps(config).encode())
    parts["weights"] = ("adapter_model.safetensors", b"version https://git-lfs.github.com/spec/v1\n")
    answer = await running.http.post("/adapters", files=parts)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "unsupported_config")
    assert {(fault["where"], fault["code"]) for fault in error["details"]} == {
        ("use_dora", "unsupported_config"),
        ("bias", "unsupported_config"),
        ("weights", "bad_safetensors"),
    }
    assert "git lfs pull" in next(fault["what_to_do"] for fault in error["details"] if fault["where"] == "weights")
    again = (await running.http.post("/adapters", files=parts)).json()["error"]
    assert again == error
    shown = (await running.http.get("/adapters/first/versions/1")).json()["error"]
    assert shown["details"] == error["details"]


async def test_only_the_store_is_ever_named_to_the_engine(running: Running) -> None:
    version = (await running.http.post("/adapters", files=form("first"))).json()
    (path,) = set(running.simulator.loaded.values())
    assert path == str(running.data / "artefacts" / version["digest"])


async def test_without_waiting_the_answer_comes_when_it_is_stored(running: Running) -> None:
    answer = await running.http.post("/adapters", files=form("first"), params={"wait": "false"})
    assert (answer.status_code, answer.json()["state"]) == (202, "stored")
    for _ in range(200):
        if (await running.http.get("/adapters/first")).json()["active_version"] == 1:
            break
        await asyncio.sleep(0.02)
    assert (await chat(running, "first"))[0] == 200


@pytest.mark.ruling("R09")
async def test_while_the_engine_is_away_uploads_are_kept_and_chat_is_told_to_wait(running: Running) -> None:
    await running.http.post("/adapters", files=form("first"))
    await running.simulator.stop()
    answer = await running.http.post("/adapters", files=form("second", seed=1))
    assert (answer.status_code, answer.json()["state"]) == (202, "stored")
    body = {"model": "first", "messages": [{"role": "user", "content": "hello"}]}
    refused = await running.http.post("/v1/chat/completions", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
    assert "retry-after" in refused.headers
    assert (await running.http.get("/ready")).status_code == 503
    await running.simulator.start()
    for _ in range(300):
        if (await chat(running, "second"))[0] == 200:
            break
        await asyncio.sleep(0.02)
    assert (await chat(running, "first"))[0] == 200
    assert (await chat(running, "second"))[0] == 200


async def test_an_adapter_the_engine_refuses_is_failed_with_the_engines_words(running: Running) -> None:
    running.simulator.faults["load"] = "500"
    answer = await running.http.post("/adapters", files=form("first"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "load_failed")
    version = (await running.http.get("/adapters/first/versions/1")).json()
    assert (version["state"], version["error"]["code"]) == ("failed", "load_failed")
    assert (await chat(running, "first"))[0] == 404
    del running.simulator.faults["load"]
    again = await running.http.post("/adapters", files=form("first"))
    assert (again.status_code, again.json()["version"], again.json()["state"]) == (201, 1, "ready")


@pytest.mark.ruling("U17")
async def test_equal_uploads_at_the_same_moment_make_one_version(running: Running) -> None:
    answers = await asyncio.gather(*(running.http.post("/adapters", files=form("first")) for _ in range(4)))
    assert {answer.status_code for answer in answers} <= {200, 201, 202}
    versions = (await running.http.get("/adapters/first")).json()["versions"]
    assert [version["version"] for version in versions] == [1]


@pytest.mark.ruling("R01")
async def test_different_uploads_at_the_same_moment_end_on_the_latest(running: Running) -> None:
    await asyncio.gather(*(running.http.post("/adapters", files=form("first", seed=seed)) for seed in range(4)))
    adapter = (await running.http.get("/adapters/first")).json()
    assert adapter["active_version"] == 4
    assert {version["state"] for version in adapter["versions"]} == {"ready", "retired"}


@pytest.mark.ruling("R02")
async def test_one_blob_under_two_names(running: Running) -> None:
    one = (await running.http.post("/adapters", files=form("first"))).json()
    two = (await running.http.post("/adapters", files=form("second"))).json()
    assert one["digest"] == two["digest"]
    assert len(running.simulator.loaded) == 2


@pytest.mark.parametrize("name", ["FIRST", "First"])
@pytest.mark.hostile("N06")
async def test_a_name_that_differs_only_in_case_is_taken(running: Running, name: str) -> None:
    await running.http.post("/adapters", files=form("first"))
    answer = await running.http.post("/adapters", files=form(name, seed=1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "name_taken")


@pytest.mark.parametrize("name", [SERVED, "models", "base", SERVED.upper()])
@pytest.mark.hostile("N07", "N08")
async def test_names_of_the_gateway_are_reserved(running: Running, name: str) -> None:
    answer = await running.http.post("/adapters", files=form(name))
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "reserved_name")


@pytest.mark.ruling("K22")
async def test_everything_pruned_is_served_by_the_served_model_itself(open_gateway: OpenHouse) -> None:
    async with open_gateway(tau=-1e6, max_pruned_share=1.0) as running:
        answer = await running.http.post("/adapters", files=form("hollow"))
        assert answer.status_code == 201, answer.text
        version = answer.json()
        assert (version["outcome"], version["digest"]) == ("emptied", None)
        assert running.simulator.loaded == {}
        assert (await chat(running, "hollow"))[0] == 200
        assert running.simulator.seen[-1]["model"] == SERVED


async def test_too_large_a_share_condemned_is_rejected_with_its_report(open_gateway: OpenHouse) -> None:
    async with open_gateway(tau=-1e6, max_pruned_share=0.5) as running:
        answer = await running.http.post("/adapters", files=form("bad"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "rejected")
        assert answer.json()["version"]["report"]["verdict"]["outcome"] == "rejected"
        again = await running.http.post("/adapters", files=form("bad"))
        assert again.status_code == 422
        assert running.simulator.loaded == {}


@pytest.mark.ruling("R03")
async def test_delete_unloads_and_forgets(running: Running) -> None:
    await running.http.post("/adapters", files=form("first"))
    assert (await running.http.delete("/adapters/first")).status_code == 204
    assert (await chat(running, "first"))[0] == 404
    for _ in range(200):
        if not running.simulator.loaded:
            break
        await asyncio.sleep(0.02)
    assert running.simulator.loaded == {}
    assert (await running.http.delete("/adapters/first")).status_code == 404


@pytest.mark.ruling("R08")
async def test_a_restart_serves_every_ready_adapter_again(open_gateway: OpenHouse) -> None:
    async with open_gateway() as running:
        await running.http.post("/adapters", files=form("first"))
        await running.http.post("/adapters", files=form("second", seed=1))
        simulator = running.simulator
    simulator.loaded.clear()
    async with open_gateway() as again:
        for _ in range(300):
            if (await chat(again, "second"))[0] == 200 and (await chat(again, "first"))[0] == 200:
                break
            await asyncio.sleep(0.02)
        assert (await chat(again, "first"))[0] == 200
        assert (await again.http.get("/metrics")).text.count("gateway_adapter_modules{") == 6


async def test_a_flipped_bit_in_the_store_is_never_loaded(open_gateway: OpenHouse) -> None:
    async with open_gateway() as running:
        version = (await running.http.post("/adapters", files=form("first"))).json()
        weights = running.data / "artefacts" / version["digest"] / "adapter_model.safetensors"
        simulator = running.simulator
    simulator.loaded.clear()
    weights.chmod(0o644)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    async with open_gateway() as again:
        await asyncio.sleep(0.5)
        assert simulator.loaded == {}
        assert (await chat(again, "first"))[0] == 503


async def test_a_cap_cuts_the_worst_and_serves_the_rest_where_the_operator_says_so(open_gateway: OpenHouse) -> None:
    async with open_gateway(tau=-1e6, max_pruned=3, cap_keeps=True, max_pruned_share=1.0) as running:
        answer = await running.http.post("/adapters", files=form("capped"))
        assert answer.status_code == 201, answer.text
        version = answer.json()
        assert (version["modules_pruned"], version["modules_total"]) == (3, 8)
        scores = {m["name"]: (m["scores"]["input"], m["decision"]) for m in version["report"]["verdict"]["modules"]}
        cut = [score for score, decision in scores.values() if decision == "prune"]
        assert min(cut) >= max(score for score, decision in scores.values() if decision == "keep")
    async with open_gateway(tau=-1e6, max_pruned=3, max_pruned_share=1.0) as running:
        answer = await running.http.post("/adapters", files=form("uncapped"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "rejected")


async def test_what_does_not_pass_the_policy_in_force_is_withheld_and_served_again_when_it_passes(
    open_gateway: OpenHouse,
) -> None:
    async with open_gateway() as running:
        version = (await running.http.post("/adapters", files=form("first"))).json()
        assert version["withheld"] is None
        simulator = running.simulator
    worst = max(m["scores"]["input"] for m in version["report"]["verdict"]["modules"])
    simulator.loaded.clear()
    async with open_gateway(tau=worst - 0.001) as stricter:
        await asyncio.sleep(0.2)
        assert simulator.loaded == {}
        assert (await chat(stricter, "first"))[0] == 404
        shown = (await stricter.http.get("/adapters/first/versions/1")).json()
        assert "policy in force" in shown["withheld"]
        again = await stricter.http.post("/adapters", files=form("first"))  # other policy: measured anew
        assert (again.status_code, again.json()["version"], again.json()["outcome"]) == (201, 2, "pruned")
        assert (await chat(stricter, "first"))[0] == 200
    simulator.loaded.clear()
    async with open_gateway() as running:
        for _ in range(200):
            if (await chat(running, "first@1"))[0] == 200:
                break
            await asyncio.sleep(0.02)
        assert (await chat(running, "first@1"))[0] == 200


async def test_projecting_serves_every_module_without_what_acts_on_alignments_inputs(open_gateway: OpenHouse) -> None:
    async with open_gateway(action="project", tau=0.0, max_removed_share=1.0) as running:
        answer = await running.http.post("/adapters", files=form("mild"))
        version = answer.json()
        assert answer.status_code == 201
        assert (version["state"], version["outcome"]) == ("ready", "projected")
        report = (await running.http.get("/adapters/mild/versions/1")).json()["report"]["verdict"]
        projected = [m["name"] for m in report["modules"] if m["decision"] == "project"]
        assert len(projected) == report["modules_projected"] > 0
        assert (version["modules_pruned"], version["modules_projected"]) == (0, len(projected))
        served = load_file(next((running.data / "artefacts").glob(f"{version['digest']}/adapter_model.safetensors")))
        reference = running.gateway.context.uploads.components.reference
        for name in projected:
            a = served[f"base_model.model.{name}.lora_A.weight"]
            b = served[f"base_model.model.{name}.lora_B.weight"]
            assert (a @ reference.inputs(name, 4)).norm() < 1e-5 * a.norm()
            assert (reference.outputs(name, 1).T @ b).norm() < 1e-5 * b.norm()
        metrics = (await running.http.get("/metrics")).text
        assert f'gateway_modules_total{{decision="project",reason="above_tau"}} {len(projected)}.0' in metrics
        for decision, count in (("project", len(projected)), ("keep", len(report["modules"]) - len(projected))):
            assert f'gateway_adapter_modules{{adapter="mild",decision="{decision}"}} {count}.0' in metrics
