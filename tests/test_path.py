"""The whole path on the real engine: pushed, chatted with, replaced, rolled back, removed."""

import json
from pathlib import Path

import httpx
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.demo.assets import ADAPTERS, ALIGNED, BENIGN, MIXED, PURE
from app.demo.child_gateway import GatewayProcess
from app.demo.evaluate import answers
from app.demo.questions import held_out_harmful, held_out_harmless, new_skill_held_out
from tests.support.demo_gateway import chat_body, other_bytes, push, say

pytestmark = pytest.mark.engine


def artefact(gateway: GatewayProcess, digest: str) -> Path:
    return gateway.log.parent / "artefacts" / digest


def test_a_projected_adapter_answers_as_transformers_and_peft_do(
    client: httpx.Client, demo_gateway: GatewayProcess
) -> None:
    response = push(client, "path-mixed", ADAPTERS / MIXED)
    assert response.status_code == 201, response.text
    version = response.json()
    assert version["outcome"] == "projected"
    assert 0 < version["modules_projected"] < version["modules_total"]
    questions = [
        item.question
        for items in (held_out_harmful(), held_out_harmless(), new_skill_held_out())
        for item in items[:10]
    ]
    served = [say(client, "path-mixed", question) for question in questions]
    model = AutoModelForCausalLM.from_pretrained(ALIGNED, dtype=torch.float32)
    folder = artefact(demo_gateway, version["digest"])
    projected = PeftModel.from_pretrained(model, folder)  # noqa: TID251 - the artefact, our own bytes
    assert served == answers(projected, AutoTokenizer.from_pretrained(ALIGNED), questions)
    assert len(set(served)) > 10


def test_the_artefact_holds_the_kept_modules_and_nothing_else(
    client: httpx.Client, demo_gateway: GatewayProcess
) -> None:
    version = push(client, "path-content", ADAPTERS / MIXED).json()
    folder = artefact(demo_gateway, version["digest"])
    kept = sorted(m["name"] for m in version["report"]["verdict"]["modules"] if m["decision"] in ("keep", "project"))
    assert json.loads((folder / "adapter_config.json").read_text())["target_modules"] == kept
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["verdict"] == version["report"]["verdict"]
    assert not any(path.stat().st_mode & 0o222 for path in folder.iterdir())


def test_screening_the_result_again_changes_nothing(client: httpx.Client, demo_gateway: GatewayProcess) -> None:
    first = push(client, "path-once", ADAPTERS / MIXED).json()
    again = push(client, "path-twice", artefact(demo_gateway, first["digest"])).json()
    assert again["outcome"] == "clean"
    assert again["digest"] == first["digest"]


def test_same_bytes_return_the_version_and_other_bytes_make_the_next(client: httpx.Client, tmp_path: Path) -> None:
    first = push(client, "path-versions", ADAPTERS / BENIGN)
    assert (first.status_code, first.json()["version"]) == (201, 1)
    same = push(client, "path-versions", ADAPTERS / BENIGN)
    assert (same.status_code, same.json()["version"]) == (200, 1)
    question = new_skill_held_out()[0].question
    one = say(client, "path-versions", question)
    second = push(client, "path-versions", other_bytes(BENIGN, tmp_path / "other", 0.01))
    assert (second.status_code, second.json()["version"]) == (201, 2)
    two = say(client, "path-versions", question)
    assert two != one
    assert say(client, "path-versions@1", question) == one
    rolled = client.post("/adapters/path-versions/rollback")
    assert rolled.json()["version"] == 1
    assert say(client, "path-versions", question) == one
    listed = client.get("/adapters/path-versions").json()
    assert listed["active_version"] == 1
    assert [v["version"] for v in listed["versions"]] == [2, 1]


def test_a_tenants_adapter_and_its_namesake_answer_each_for_itself(client: httpx.Client, tmp_path: Path) -> None:
    mine = push(client, "path-shared", ADAPTERS / BENIGN).json()
    theirs = push(client, "path-shared", other_bytes(BENIGN, tmp_path / "other", 0.02), tenant="acme")
    assert theirs.status_code == 201, theirs.text
    assert theirs.json()["digest"] != mine["digest"]
    question = {"messages": [{"role": "user", "content": new_skill_held_out()[0].question}], "temperature": 0}
    for model, digest in (("path-shared", mine["digest"]), ("acme/path-shared@1", theirs.json()["digest"])):
        answer = client.post("/v1/chat/completions", json={"model": model, **question})
        assert (answer.status_code, answer.json()["model"]) == (200, model)
        assert answer.headers["x-adapter-digest"] == digest
    assert client.delete("/adapters/path-shared?tenant=acme").status_code == 204
    assert client.get("/adapters/path-shared").status_code == 200


def test_a_rejected_adapter_leaves_a_report_and_no_model(client: httpx.Client) -> None:
    refused = push(client, "path-pure", ADAPTERS / PURE)
    assert refused.status_code == 422
    body = refused.json()
    assert body["error"]["code"] == "rejected"
    assert body["version"]["state"] == "rejected"
    assert body["version"]["report"]["verdict"]["outcome"] == "rejected"
    assert client.get("/adapters/path-pure").json()["active_version"] is None
    assert "path-pure" not in [m["id"] for m in client.get("/v1/models").json()["data"]]


def test_a_removed_adapter_is_gone_and_its_numbers_stay_dead(client: httpx.Client) -> None:
    push(client, "path-removed", ADAPTERS / BENIGN)
    assert client.delete("/adapters/path-removed").status_code == 204
    asked = client.post(
        "/v1/chat/completions", json={"model": "path-removed", "messages": [{"role": "user", "content": "x"}]}
    )
    assert (asked.status_code, asked.json()["error"]["code"]) == (404, "model_not_found")
    assert client.get("/adapters/path-removed").status_code == 404
    again = push(client, "path-removed", ADAPTERS / BENIGN)
    assert (again.status_code, again.json()["version"]) == (201, 2)
    assert say(client, "path-removed", held_out_harmless()[0].question)


def test_a_dry_run_measures_and_keeps_nothing(client: httpx.Client) -> None:
    from tests.support.demo_gateway import parts

    report = client.post("/screen", files=parts("path-dry", ADAPTERS / PURE))
    assert report.status_code == 200
    assert report.json()["verdict"]["outcome"] == "rejected"
    assert client.get("/adapters/path-dry").status_code == 404


def test_the_served_model_answers_under_its_own_name_as_transformers_does(client: httpx.Client) -> None:
    push(client, "path-beside", ADAPTERS / MIXED)  # something that could leak into its answers
    questions = [item.question for item in (*held_out_harmful()[:5], *held_out_harmless()[:5])]
    model = AutoModelForCausalLM.from_pretrained(ALIGNED, dtype=torch.float32)
    expected = answers(model, AutoTokenizer.from_pretrained(ALIGNED), questions)
    assert [say(client, "demo", question) for question in questions] == expected


def test_metrics_tell_what_came_in_and_what_was_cut_out(client: httpx.Client) -> None:
    version = push(client, "path-metrics", ADAPTERS / MIXED).json()
    text = client.get("/metrics").text
    assert (
        f'gateway_adapter_modules{{adapter="path-metrics",decision="project"}} {version["modules_projected"]:.1f}'
        in text
    )
    assert "gateway_engine_up 1.0" in text
    assert 'gateway_stage_duration_seconds_count{stage="screen"}' in text
    assert 'gateway_uploads_total{outcome="projected"}' in text


def test_two_versions_share_a_names_requests(client: httpx.Client, tmp_path: Path) -> None:
    """Each user gets the words of one version, and after the promotion everybody those of the new one."""
    name, question = "path-rollout", new_skill_held_out()[0].question
    assert push(client, name, ADAPTERS / BENIGN).json()["version"] == 1
    assert client.put(f"/adapters/{name}/traffic", json={"1": 100}).status_code == 200
    assert push(client, name, other_bytes(BENIGN, tmp_path / "other", 0.01)).json()["active"] is False
    words = {number: say(client, f"{name}@{number}", question) for number in (1, 2)}
    assert words[1] != words[2]
    assert client.put(f"/adapters/{name}/traffic", json={"1": 50, "2": 50, "shadow": 2}).status_code == 200
    got = {user: _answered(client, name, question, user) for user in map(str, range(8))}
    assert got == {user: _answered(client, name, question, user) for user in got}
    assert {version for version, _ in got.values()} == {1, 2}
    assert all(text == words[version] for version, text in got.values())
    assert client.post(f"/adapters/{name}/traffic/promote").json()["version"] == 2
    assert {_answered(client, name, question, user) for user in got} == {(2, words[2])}


def _answered(client: httpx.Client, model: str, question: str, user: str) -> tuple[int, str]:
    """The version that answered this user, and its words."""
    answer = client.post("/v1/chat/completions", json=chat_body(model, question, user=user))
    assert answer.status_code == 200, answer.text
    return int(answer.headers["x-adapter-version"]), answer.json()["choices"][0]["message"]["content"].strip()
