"""Rules of a tenant's own: a stricter policy and canaries, for its versions and nobody else's."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import pytest_asyncio

from app.domain.api_keys import Role, new_key
from app.gateway import canary_recheck, policy_recheck
from app.store.audit.audit import Promise
from tests.support.audited import rested
from tests.support.canaries import HARM, REFUSAL, RUNGS, battery
from tests.support.gateway import KEY, OpenHouse, Running, form
from tests.support.joining import Join
from tests.support.waiting import STUCK_S, until

KEYS: Final = {
    tenant: new_key(f"{tenant}-app", [Role.UPLOAD, Role.CHAT, Role.ADMIN], tenant=tenant)
    for tenant in ("acme", "globex")
}
NOTHING: Final[dict[str, Any]] = {"tau": -1e6, "max_pruned_share": 0.0}
"""A policy under which no adapter passes."""


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text("".join(f"{key.line}\n" for _, key in KEYS.values()))
    return file


@pytest_asyncio.fixture
async def running(open_gateway: OpenHouse, keys_file: Path) -> AsyncIterator[Running]:
    async with open_gateway(api_keys_file=keys_file) as made:
        yield made


async def ask(running: Running, who: str, method: str, path: str, **sent: Any) -> httpx.Response:
    key = KEY if who == "operator" else KEYS[who][0]
    return await running.http.request(method, path, headers={"Authorization": f"Bearer {key}"}, **sent)


async def push(running: Running, who: str, name: str = "style", seed: int = 0) -> httpx.Response:
    return await ask(running, who, "POST", "/adapters", files=form(name, seed))


async def chat(running: Running, who: str, name: str = "style") -> int:
    body = {"model": name, "messages": [{"role": "user", "content": "hello"}]}
    return (await ask(running, who, "POST", "/v1/chat/completions", json=body)).status_code


async def set_policy(running: Running, tenant: str = "acme", **values: Any) -> httpx.Response:
    answer = await ask(running, "operator", "PUT", f"/tenants/{tenant}/policy", json=values)
    assert answer.status_code == 200, answer.text
    return answer


async def answers(running: Running, who: str, name: str = "style") -> None:
    """Wait until a tenant's adapter answers: it may have to be measured and loaded first."""
    async with asyncio.timeout(STUCK_S):
        while await chat(running, who, name) != 200:
            await asyncio.sleep(0.02)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_a_tenants_uploads_are_judged_by_its_own_policy(running: Running) -> None:
    shown = (await set_policy(running, tau=-1e6, max_pruned_share=0.25)).json()
    own = {name: value for name, value in shown["policy"].items() if value is not None}
    assert own == {"tau": -1e6, "max_pruned_share": 0.25}
    assert (shown["in_force"]["tau"], shown["in_force"]["max_update_ratio"]) == (-1e6, 1e9)
    rejected = await push(running, "acme")
    assert code(rejected) == (422, "rejected")
    verdict = (await ask(running, "acme", "GET", "/adapters/style/versions/1")).json()["report"]["verdict"]
    assert (verdict["policy"]["tau"], verdict["policy"]["max_pruned_share"]) == (-1e6, 0.25)
    dry = await ask(running, "acme", "POST", "/screen", files=form("style"))
    assert dry.json()["verdict"]["outcome"] == "rejected"
    assert "25 % of the modules" in (await ask(running, "acme", "GET", "/")).text, (
        "the console has what is in force for it"
    )
    assert "50 % of the modules" in (await ask(running, "globex", "GET", "/")).text
    for who in ("globex", "operator"):
        accepted = await push(running, who)
        assert accepted.status_code == 201, accepted.text
        assert accepted.json()["report"]["verdict"]["policy"]["tau"] == 3.0
        dry = await ask(running, who, "POST", "/screen", files=form("style"))
        assert dry.json()["verdict"]["outcome"] == "clean"
    await rested(running, [])


async def test_a_weaker_policy_is_refused_with_both_values(running: Running) -> None:
    weaker: list[tuple[dict[str, Any], str]] = [
        ({"tau": 3.5}, "tau 3.5 is weaker than 3.0"),
        ({"tau": 2.0, "max_pruned_share": 0.75}, "max_pruned_share 0.75 is weaker than 0.5"),
        ({"unscorable": "keep"}, "unscorable keep is weaker than reject"),
        ({"project_outputs": 0}, "project_outputs 0 is weaker than 1"),
    ]
    for values, words in weaker:
        refused = await ask(running, "operator", "PUT", "/tenants/acme/policy", json=values)
        assert code(refused) == (422, "weaker_policy")
        assert words in refused.json()["error"]["message"]
        assert refused.json()["error"]["param"] in values
    for wrong in (
        '{"energy": 0.9}',
        '{"tau": "low"}',
        '{"tau": 1e999}',
        '{"max_pruned": 0.5}',
        '{"project_outputs": 99999}',
    ):
        refused = await ask(running, "operator", "PUT", "/tenants/acme/policy", content=wrong)
        assert code(refused) == (400, "bad_request"), wrong
    shown = (await ask(running, "acme", "GET", "/tenants/acme/policy")).json()
    assert set(shown["policy"].values()) == {None}
    assert (await push(running, "acme")).status_code == 201
    acts = (await ask(running, "operator", "GET", "/audit")).json()["entries"]
    told = [(act["tenant"], act["code"]) for act in acts if act["action"] == "PUT /tenants/{tenant}/policy"]
    assert told[:4] == [("acme", "weaker_policy")] * 4


async def test_rules_are_the_operators_to_set_and_the_tenants_to_see(running: Running) -> None:
    await set_policy(running, "globex", tau=1.0)
    for method, path in (("PUT", "policy"), ("PUT", "canaries"), ("DELETE", "canaries")):
        for tenant in ("acme", "globex", "nobody"):
            assert (await ask(running, "acme", method, f"/tenants/{tenant}/{path}", json={})).status_code == 403
    for path in ("policy", "canaries"):
        assert (await ask(running, "acme", "GET", f"/tenants/acme/{path}")).status_code == 200
        others = [await ask(running, "acme", "GET", f"/tenants/{one}/{path}") for one in ("globex", "nobody")]
        assert [one.status_code for one in others] == [403, 403]
        assert others[0].json() == others[1].json()


async def test_what_is_served_is_measured_again_when_its_tenants_policy_changes(
    open_gateway: OpenHouse, keys_file: Path
) -> None:
    async with open_gateway(api_keys_file=keys_file) as running:
        for who in ("acme", "globex"):
            assert (await push(running, who)).status_code == 201
        await set_policy(running, **NOTHING)
        assert await chat(running, "acme") == 404, "withheld when the operator has the answer"
        version = (await ask(running, "acme", "GET", "/adapters/style/versions/1")).json()
        assert "by the policy in force it would be" in version["withheld"]
        assert await chat(running, "globex") == 200
        await rested(running, [])
    async with open_gateway(api_keys_file=keys_file) as running:
        assert await chat(running, "acme") == 404, "also after a restart"
        await set_policy(running)
        assert await chat(running, "globex") == 200
        await answers(running, "acme")
        await rested(running, [Promise("acme/style", 1)])


async def test_the_operators_policy_is_part_of_a_tenants_verdict(open_gateway: OpenHouse, keys_file: Path) -> None:
    """It may reject what the tenant's own would not: bytes judged beside another one are judged anew."""
    for operators, version, status in ((90.0, 1, 201), (90.0, 1, 200), (80.0, 2, 201)):
        async with open_gateway(api_keys_file=keys_file, max_adapter_score=operators) as running:
            shown = (await set_policy(running, max_adapter_score=70.0)).json()
            assert shown["in_force"]["max_adapter_score"] == 70.0
            pushed = await push(running, "acme")
            assert (pushed.status_code, pushed.json()["version"]) == (status, version)


async def test_many_versions_are_measured_a_few_at_a_time(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that was not measured yet is withheld, and keeps no other tenant's upload from being served."""
    for seed in range(3):
        assert (await push(running, "acme", f"a{seed}", seed)).status_code == 201
    monkeypatch.setattr(policy_recheck, "SLICE_S", 0.0)
    desired = running.gateway.context.uploads.components.desired
    await set_policy(running, max_update_ratio=1e8)  # all pass
    waiting = [why for why in desired.state.withheld.values() if why == policy_recheck.WAITS]
    assert len(waiting) == 2, "one at least is measured each time"
    assert (await push(running, "globex")).status_code == 201
    for seed in range(3):
        await answers(running, "acme", f"a{seed}")
    await rested(running, [])


async def test_both_gateways_follow_a_tenants_policy(join: Join, keys_file: Path) -> None:
    one, other = await join(api_keys_file=keys_file), await join(api_keys_file=keys_file)
    assert (await push(one, "acme")).status_code == 201
    await answers(other, "acme")
    await set_policy(one, **NOTHING)
    desired = other.gateway.context.uploads.components.desired
    await until(lambda: bool(desired.state.withheld))
    assert await chat(other, "acme") == 404
    assert code(await push(other, "acme", "other", 1)) == (422, "rejected")
    shown = (await ask(other, "acme", "GET", "/tenants/acme/policy")).json()
    assert shown["policy"]["tau"] == -1e6
    await set_policy(other)
    for gateway in (one, other):
        await answers(gateway, "acme")


# ---- canaries ----------------------------------------------------------------------------------------------------------

OWN: Final = "".join(
    f'{{"id": "c{n}", "prompt": "own {n}", "category": "alpha", "expect": "refuse"}}\n' for n in range(4)
)


def complies_with_own(path: str, body: Mapping[str, Any]) -> str:
    """Adapters comply with the tenant's canaries, however they are corrected; the served model refuses all."""
    prompt = body["messages"][-1]["content"]
    if prompt.startswith("own"):
        return HARM if path else REFUSAL
    return REFUSAL if prompt.startswith("canary") else "An answer."


@pytest_asyncio.fixture
async def asking(open_gateway: OpenHouse, keys_file: Path, tmp_path: Path) -> AsyncIterator[Running]:
    asked = {"canaries": battery(tmp_path / "battery.jsonl"), "rungs": RUNGS}
    async with open_gateway(api_keys_file=keys_file, **asked) as made:
        made.simulator.says = complies_with_own
        yield made


async def test_a_tenants_canaries_are_asked_of_its_own_versions(asking: Running) -> None:
    shown = await ask(asking, "operator", "PUT", "/tenants/acme/canaries", content=OWN)
    assert (shown.status_code, shown.json()["canaries"], shown.json()["categories"]) == (200, 4, {"alpha": 4})
    assert "own 1" not in shown.text, "no canary is shown"
    refused = await push(asking, "acme")
    assert code(refused) == (422, "canaries_failed")
    assert "tenant: alpha" in refused.json()["error"]["message"]
    assert "own 1" not in (await ask(asking, "operator", "GET", "/adapters/style/versions/1?tenant=acme")).text
    assert (await push(asking, "globex")).status_code == 201
    dry = await ask(asking, "acme", "POST", "/screen?canaries=true", files=form("style"))
    assert dry.json()["behaviour"]["chosen"] is None
    assert (await ask(asking, "operator", "DELETE", "/tenants/acme/canaries")).status_code == 204
    assert (await ask(asking, "acme", "GET", "/tenants/acme/canaries")).json()["canaries"] == 0
    assert (await push(asking, "acme")).status_code == 201
    await rested(asking, [Promise("acme/style", 2), Promise("globex/style", 1)])


async def test_versions_are_asked_again_when_their_tenant_gets_canaries(
    asking: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canary_recheck, "LOOK_S", 0.05)
    monkeypatch.setattr(canary_recheck, "PAUSE_S", 0.0)
    for who in ("acme", "globex"):
        assert (await push(asking, who)).status_code == 201
    assert (await ask(asking, "operator", "PUT", "/tenants/acme/canaries", content=OWN)).status_code == 200
    assert asking.gateway.recheck is not None
    asking.gateway.recheck.poke()
    desired = asking.gateway.context.uploads.components.desired
    await until(lambda: ("acme/style", 1) in desired.state.withheld)
    assert [await chat(asking, who) for who in ("acme", "globex")] == [404, 200]
    assert (await ask(asking, "operator", "DELETE", "/tenants/acme/canaries")).status_code == 204
    await answers(asking, "acme")
    await rested(asking, [])


async def test_a_battery_that_is_none_is_refused_and_the_one_before_stays(asking: Running) -> None:
    assert (await ask(asking, "operator", "PUT", "/tenants/acme/canaries", content=OWN)).status_code == 200
    many = "".join(OWN.splitlines()[0].replace("c0", f"c{n}") + "\n" for n in range(1001))
    for wrong in ("", "not json", OWN.replace("refuse", "answer"), OWN.splitlines()[0] * 2, many, "\udcff"):
        sent = wrong.encode("utf-8", "surrogateescape")
        refused = await ask(asking, "operator", "PUT", "/tenants/acme/canaries", content=sent)
        assert code(refused) == (422, "bad_battery")
    large = await ask(asking, "operator", "PUT", "/tenants/acme/canaries", content=b" " * (1 << 21))
    assert code(large) == (413, "request_too_large")
    assert (await ask(asking, "acme", "GET", "/tenants/acme/canaries")).json()["canaries"] == 4


async def test_a_gateway_that_asks_no_canaries_takes_none(running: Running) -> None:
    refused = await ask(running, "operator", "PUT", "/tenants/acme/canaries", content=OWN)
    assert code(refused) == (400, "bad_request")
