"""Names and their owners, and what is told to whom, through the whole gateway."""

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from typer.testing import CliRunner

from app.cli import adapters as remote
from app.cli.main import cli
from app.domain.api_keys import Role, new_key
from app.domain.coarse import coarse
from app.domain.names import AdapterName
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.tables import VersionRow
from tests.support.canaries import REFUSAL, RUNGS, battery
from tests.support.gateway import SERVED, OpenHouse, Running, form
from tests.support.waiting import STUCK_S

KEYS = {
    "alice": new_key("alice", [Role.UPLOAD, Role.CHAT]),
    "alice-ci": new_key("alice-ci", [Role.UPLOAD, Role.CHAT], owner="alice"),
    "bob": new_key("bob", [Role.UPLOAD, Role.CHAT]),
    "ops": new_key("ops", [Role.ADMIN]),
}
TAKEN = (409, "name_taken")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text("\n".join(stored.line for _, stored in KEYS.values()))
    return file


@pytest_asyncio.fixture
async def owned(open_gateway: OpenHouse, keys: Path) -> AsyncIterator[Running]:
    async with open_gateway(api_keys_file=keys) as running:
        yield running


async def ask(running: Running, who: str, method: str, path: str, **sent: Any) -> httpx.Response:
    return await running.http.request(method, path, headers={"Authorization": f"Bearer {KEYS[who][0]}"}, **sent)


async def push(running: Running, who: str, name: str, seed: int = 0) -> httpx.Response:
    return await ask(running, who, "POST", "/adapters", files=form(name, seed))


def refused(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.hostile("N13")
async def test_garbage_reserves_no_name(owned: Running) -> None:
    bad = form("Team-Bot") | {"weights": ("adapter_model.safetensors", b"garbage")}
    garbage = await ask(owned, "bob", "POST", "/adapters", files=bad)
    assert garbage.status_code == 400
    assert garbage.json()["version"]["name"] == "Team-Bot"
    answer = await push(owned, "alice", "team-bot")
    assert (answer.status_code, answer.json()["name"]) == (201, "team-bot")
    assert refused(await push(owned, "alice", "TEAM-bot", 1)) == TAKEN


@pytest.mark.hostile("N14")
async def test_a_name_is_its_owners(owned: Running) -> None:
    assert (await push(owned, "alice", "prod")).status_code == 201
    for seed in range(2):  # the same bytes, and others
        answer = await push(owned, "bob", "prod", seed)
        assert refused(answer) == TAKEN
        assert "alice" not in answer.text
    assert (await push(owned, "alice-ci", "prod", 1)).json()["version"] == 2
    assert (await push(owned, "ops", "prod", 2)).json()["version"] == 3
    assert (await ask(owned, "ops", "GET", "/adapters/prod")).json()["owner"] == "alice"
    assert (await ask(owned, "ops", "GET", "/adapters")).json()["adapters"][0]["owner"] == "alice"
    assert "owner" not in (await ask(owned, "bob", "GET", "/adapters/prod")).json()


@pytest.mark.hostile("N13")
@pytest.mark.parametrize(("name", "who"), [("PROD", "alice"), ("prod", "bob")])
async def test_who_is_stored_second_is_refused_and_that_is_recorded(
    owned: Running, monkeypatch: pytest.MonkeyPatch, name: str, who: str
) -> None:
    begun, go, store = threading.Event(), threading.Event(), Catalogue.record_stored

    def held(self: Catalogue, at: AdapterName, number: int, artefact: Any) -> VersionRow:
        if number == 1:
            begun.set()
            assert go.wait(60)
        return store(self, at, number, artefact)

    monkeypatch.setattr(Catalogue, "record_stored", held)
    slow = asyncio.ensure_future(push(owned, who, name))
    assert await asyncio.to_thread(begun.wait, 60)
    assert (await push(owned, "alice", "prod", 1)).status_code == 201
    go.set()
    answer = await slow
    assert refused(answer) == TAKEN
    version = answer.json()["version"]
    assert (version["name"], version["state"], version["error"]["code"]) == (name, "rejected", "name_taken")
    assert refused(await push(owned, who, name)) == TAKEN
    assert (await ask(owned, "ops", "DELETE", "/adapters/prod")).status_code == 204
    assert (await push(owned, who, name)).status_code == 201


async def test_operators_transfer_a_name(owned: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    await push(owned, "alice", "prod")
    given = {"owner": "bob"}
    assert (await ask(owned, "alice", "PUT", "/adapters/prod/owner", json=given)).status_code == 403
    answer = await ask(owned, "ops", "PUT", "/adapters/prod/owner", json=given)
    assert (answer.status_code, answer.json()) == (200, {"name": "prod", "owner": "bob"})
    assert refused(await push(owned, "alice", "prod", 1)) == TAKEN
    assert (await push(owned, "bob", "prod", 1)).status_code == 201
    for wrong in ('{"owner": ""}', '{"owner": "a b"}', '{"owner": 3}', "{}", "[]", "", '{"owner": "a", "owner": "b"}'):
        refusal = await ask(owned, "ops", "PUT", "/adapters/prod/owner", content=wrong)
        assert refusal.status_code == 400, wrong
    long = await ask(owned, "ops", "PUT", "/adapters/prod/owner", content="x" * 1025)
    assert refused(long) == (413, "request_too_large")
    assert refused(await ask(owned, "ops", "PUT", "/adapters/none/owner", json=given)) == (404, "adapter_not_found")


def test_the_command_line_transfers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.method, request.url.path, json.loads(request.content)))
        return httpx.Response(200, json={"name": "prod", "owner": "bob"})

    transport = httpx.MockTransport(answer)
    monkeypatch.setattr(remote, "client_of", lambda url, _: httpx.Client(base_url=url, transport=transport))
    assert CliRunner().invoke(cli, ["adapters", "transfer", "prod", "bob"]).exit_code == 0
    assert asked == [("PUT", "/adapters/prod/owner", {"owner": "bob"})]


async def test_an_open_gateway_has_no_owners(open_gateway: OpenHouse, keys: Path) -> None:
    async with open_gateway(api_keys="", open=True) as running:
        assert (await running.http.post("/adapters", files=form("prod"))).status_code == 201
        assert (await running.http.get("/adapters/prod")).json()["owner"] is None
    async with open_gateway(api_keys_file=keys) as running:
        assert (await push(running, "bob", "prod", 1)).status_code == 201
        assert (await ask(running, "ops", "GET", "/adapters/prod")).json()["owner"] is None


async def test_screening_again_keeps_the_owner(open_gateway: OpenHouse, keys: Path) -> None:
    async with open_gateway(api_keys_file=keys, keep_originals=True) as running:
        await push(running, "alice", "prod")
    async with open_gateway(api_keys_file=keys, keep_originals=True, tau=2.9) as running:
        again = await ask(running, "ops", "POST", "/adapters/prod/rescreen")
        assert (again.status_code, again.json()["version"]) == (201, 2)
        assert (await ask(running, "ops", "GET", "/adapters/prod")).json()["owner"] == "alice"
        assert refused(await push(running, "bob", "prod", 1)) == TAKEN


def floats(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [one for key, inner in value.items() if key != "scaling" for one in floats(inner)]
    if isinstance(value, list):
        return [one for inner in value for one in floats(inner)]
    return [value] if isinstance(value, float) else []


@pytest.mark.hostile("G21")
@pytest.mark.parametrize("rejecting", [False, True])
async def test_scores_are_rounded_for_all_but_administrators(
    open_gateway: OpenHouse, keys: Path, rejecting: bool
) -> None:
    strict = {"max_adapter_score": -1e6} if rejecting else {}
    async with open_gateway(api_keys_file=keys, all_comparisons=True, **strict) as running:
        exact = (await ask(running, "ops", "POST", "/screen", files=form("prod"))).json()["verdict"]
        shown = [(await ask(running, "alice", "POST", "/screen", files=form("prod"))).json()["verdict"]]
        pushed = (await push(running, "alice", "prod")).json()
        version = pushed["version"] if rejecting else pushed
        shown.append(version["report"]["verdict"])
        path = f"/adapters/prod/versions/{version['version']}"
        shown.append((await ask(running, "bob", "GET", path)).json()["report"]["verdict"])
        page = await ask(running, "alice", "GET", "/console/adapters/prod")
        assert page.status_code == 200
        precise = floats([exact["modules"], exact["together"]])
        assert any(one != coarse(one) for one in precise)
        for verdict in shown:
            assert floats([verdict["modules"], verdict["together"]]) == [coarse(one) for one in precise]
            assert verdict["policy"] == exact["policy"]
            assert [one["scaling"] for one in verdict["modules"]] == [one["scaling"] for one in exact["modules"]]
        assert (await ask(running, "ops", "GET", path)).json()["report"]["verdict"] == exact
        if rejecting:
            score = coarse(exact["together"]["received"]["adapter"]["score"])
            assert f"together score {score:g} " in exact["reason"]
            assert exact["reason"] in pushed["error"]["message"]


@pytest.mark.hostile("G21")
async def test_dry_runs_have_a_share_of_the_day(open_gateway: OpenHouse, keys: Path) -> None:
    async with open_gateway(api_keys_file=keys, screens_per_day=2) as running:
        for status in (200, 200, 429):
            answer = await ask(running, "alice", "POST", "/screen", files=form("prod"))
            assert answer.status_code == status
        assert 43_000 < int(answer.headers["Retry-After"]) <= 43_200
        assert (await ask(running, "bob", "POST", "/screen", files=form("prod"))).status_code == 200


ASKED: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "completions": {"prompt": "x"},
    "responses": {"input": "x"},
    "embeddings": {"input": "x"},
    "messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 8},
}


async def salt(running: Running, who: str, path: str, model: str = SERVED) -> str | None:
    answer = await ask(running, who, "POST", f"/v1/{path}", json={"model": model, **ASKED[path]})
    assert answer.status_code == 200, answer.text
    found: str | None = running.simulator.seen[-1].get("cache_salt")
    return found


@pytest.mark.hostile("P17")
@pytest.mark.parametrize("path", ASKED)
async def test_cached_prompts_are_shared_among_the_keys_of_one_owner_only(
    open_gateway: OpenHouse, keys: Path, path: str
) -> None:
    async with open_gateway(api_keys_file=keys) as running:
        running.simulator.embeds = True
        salts = {who: await salt(running, who, path) for who in KEYS}
        assert salts["alice"] == salts["alice-ci"] == await salt(running, "alice", path)
        assert len({*salts.values()}) == 3
        for who, one in salts.items():
            assert one is not None
            assert len(one) == 64
            key, stored = KEYS[who]
            for told in (who, key, stored.owner or stored.name):
                assert one not in {hashlib.sha256(told.encode()).hexdigest(), told}
        own = {"model": SERVED, **ASKED[path], "cache_salt": salts["alice"]}
        assert refused(await ask(running, "bob", "POST", f"/v1/{path}", json=own)) == (400, "invalid_request")
    async with open_gateway(api_keys_file=keys) as running:
        assert await salt(running, "alice", path) != salts["alice"], "known to one process only"


@pytest.mark.hostile("P17")
async def test_a_cache_that_goes_by_the_salt_alone_keeps_versions_apart(open_gateway: OpenHouse, keys: Path) -> None:
    """As LMCache's did (vLLM's issue 44250): the same tokens read by another adapter are other keys and values."""
    async with open_gateway(api_keys_file=keys) as running:
        for seed in range(2):
            assert (await ask(running, "alice", "POST", "/adapters", files=form("mine", seed))).status_code == 201
        models = (SERVED, "mine@1", "mine@2")
        salts = [await salt(running, "alice", "completions", model) for model in models]
        assert len({*salts}) == 3
        assert salts[1] == await salt(running, "alice", "chat/completions", "mine@1")
        assert salts[2] == await salt(running, "alice", "completions", "mine")


async def test_an_open_gateway_salts_nothing(open_gateway: OpenHouse) -> None:
    async with open_gateway(api_keys="", open=True) as running:
        assert await salt(running, "alice", "completions") is None


async def test_one_owners_queue_of_evaluations_is_nobody_elses(
    open_gateway: OpenHouse, keys: Path, tmp_path: Path
) -> None:
    """Adapters are asked canaries one at a time: who has many waiting waits for them, and another owner for one."""
    asked = list[str]()

    def says(_: str, body: Mapping[str, Any]) -> str:
        asked.append(body["model"])
        return REFUSAL

    given = {"api_keys_file": keys, "canaries": battery(tmp_path / "battery.jsonl"), "rungs": RUNGS, "top_k": 4}
    async with open_gateway(**given) as running:
        running.simulator.says = says
        evaluation = running.gateway.context.evaluation
        assert evaluation is not None
        async with evaluation._turns.turn("the test"):  # until all wait
            for who, name, seed in (*(("alice", f"a{n}", n) for n in range(4)), ("bob", "b", 9)):
                assert (await push_stored(running, who, name, seed)).status_code == 202
            async with asyncio.timeout(STUCK_S):
                while sum(map(len, evaluation._turns._waiting.values())) < 5:
                    await asyncio.sleep(0.02)
        async with asyncio.timeout(STUCK_S):
            for name in ("a0", "a1", "a2", "a3", "b"):
                while (await ask(running, "ops", "GET", f"/adapters/{name}")).json()["active_version"] is None:
                    await asyncio.sleep(0.02)
    order = list(dict.fromkeys(name.partition("@")[0] for name in asked if "@" in name))
    assert (len(order), order.index("b") <= 2) == (5, True), order


async def push_stored(running: Running, who: str, name: str, seed: int) -> httpx.Response:
    """Pushed without waiting for the engine: it is evaluated in the background."""
    return await ask(running, who, "POST", "/adapters", files=form(name, seed), params={"wait": "false"})
