"""POST /adapters/{name}/warm: a request of one token to every engine that holds a cold adapter."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from typer.testing import CliRunner

from app.cli import adapters as remote
from app.cli.client import out
from app.domain.api_keys import Role, new_key
from app.gateway import warm_up as warming
from tests.support.gateway import SERVED, OpenHouse, Running, form, gateway
from tests.support.simulator import Simulator


async def push(running: Running, name: str, seed: int = 0) -> str:
    answer = await running.http.post("/adapters", files=form(name, seed))
    assert answer.status_code == 201, answer.text
    return f"{name}@{answer.json()['digest'][:12]}"


async def warm(running: Running, name: str, **params: int) -> tuple[int, dict]:  # type: ignore[type-arg]
    answer = await running.http.post(f"/adapters/{name}/warm", params=params)
    return answer.status_code, answer.json()


async def test_the_engine_is_asked_for_one_token_by_the_active_version(running: Running) -> None:
    first, second = await push(running, "bard", 1), await push(running, "bard", 2)
    for version, engine_name in ((None, second), (1, first), (2, second)):
        before = len(running.simulator.seen)
        status, told = await warm(running, "bard", **({} if version is None else {"version": version}))
        assert status == 200, told
        assert told["model"] == f"bard@{version or 2}"
        assert engine_name.endswith(told["digest"][:12])
        (engine,) = told["engines"]
        assert (engine["engine"], engine["warm"], engine["error"]) == (1, True, None)
        assert 0 < engine["seconds"] < 5
        (asked,) = running.simulator.seen[before:]
        assert (asked["model"], asked["max_tokens"]) == (engine_name, 1)


async def test_what_is_not_there_or_not_served_is_said(open_gateway: OpenHouse) -> None:
    async with open_gateway(tau=-1e6) as running:  # rejects everything
        status, told = await warm(running, "nobody")
        assert (status, told["error"]["code"]) == (404, "adapter_not_found")
        assert (await running.http.post("/adapters", files=form("bad"))).status_code == 422
        for params in ({}, {"version": 1}):
            status, told = await warm(running, "bad", **params)
            assert (status, told["error"]["code"]) == (409, "version_not_ready")
        status, told = await warm(running, "bad", version=2)
        assert (status, told["error"]["code"]) == (404, "version_not_found")


async def test_an_emptied_version_has_nothing_to_warm(open_gateway: OpenHouse) -> None:
    async with open_gateway(tau=-1e6, max_pruned_share=1.0) as running:
        assert (await running.http.post("/adapters", files=form("hollow"))).json()["outcome"] == "emptied"
        status, told = await warm(running, "hollow")
        assert (status, told) == (200, {"model": "hollow@1", "digest": None, "engines": []})
        assert running.simulator.seen == []


async def test_an_engine_that_breaks_or_is_away_is_an_error_of_the_table(running: Running) -> None:
    await push(running, "bard")
    running.simulator.faults["completions"] = "400"
    status, told = await warm(running, "bard")
    assert (status, told["error"]["code"]) == (502, "load_failed")
    await running.simulator.stop()
    status, told = await warm(running, "bard")
    assert (status, told["error"]["code"]) == (503, "engine_unavailable")


async def test_an_engine_that_hangs_is_given_up(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warming, "WARM_S", 0.2)
    name = await push(running, "bard")
    running.simulator.faults["completions"] = "hang"
    asked = asyncio.create_task(warm(running, "bard"))
    await asyncio.sleep(0.1)
    assert not running.gateway.context.routing_table.in_flight.idle(name)  # so it is not unloaded meanwhile
    status, told = await asked
    assert (status, told["error"]["code"]) == (503, "engine_unavailable")
    assert running.gateway.context.routing_table.in_flight.idle(name)


@pytest_asyncio.fixture
async def two(tiny_reference_dir: Path, tmp_path: Path) -> AsyncIterator[tuple[Running, list[Simulator]]]:
    engines = [Simulator(tmp_path / f"{n}.sock", SERVED) for n in (1, 2)]
    for engine in engines:
        await engine.start()
    urls = ",".join(engine.url for engine in engines)
    async with gateway(tmp_path / "data", tiny_reference_dir, engines[0], engine_url=urls) as running:
        yield running, engines
    for engine in engines:
        await engine.stop()


async def test_every_engine_is_warmed_and_the_one_that_is_not_is_named(two: tuple[Running, list[Simulator]]) -> None:
    running, engines = two
    name = await push(running, "bard")
    while len(running.gateway.reconciler.each[1].loaded) < 1 or len(running.gateway.reconciler.each[0].loaded) < 1:
        await asyncio.sleep(0.01)
    before = [len(engine.seen) for engine in engines]
    _, told = await warm(running, "bard")
    assert [(one["engine"], one["warm"]) for one in told["engines"]] == [(1, True), (2, True)]
    assert [[body["model"] for body in engine.seen[n:]] for engine, n in zip(engines, before, strict=True)] == [
        [name]
    ] * 2
    engines[1].faults["completions"] = "500"
    status, told = await warm(running, "bard")
    assert status == 200
    assert [(one["engine"], one["warm"]) for one in told["engines"]] == [(1, True), (2, False)]
    assert told["engines"][1]["error"]["code"] == "load_failed"


async def test_who_uploads_may_warm_and_who_chats_may_not(open_gateway: OpenHouse, tmp_path: Path) -> None:
    keys = {role: new_key(role.value, [role]) for role in (Role.UPLOAD, Role.CHAT)}
    (tmp_path / "keys").write_text("\n".join(stored.line for _, stored in keys.values()))
    async with open_gateway(api_keys_file=tmp_path / "keys", chats_per_minute=1) as running:
        await push(running, "bard")

        async def status(role: Role) -> int:
            theirs = {"Authorization": f"Bearer {keys[role][0]}"}
            answer = await running.http.post("/adapters/bard/warm", headers=theirs)
            return int(answer.status_code)

        assert [await status(Role.CHAT), await status(Role.UPLOAD), await status(Role.UPLOAD)] == [403, 200, 429]


@pytest.mark.parametrize(("error", "exit_code"), [(None, 0), ({"message": "it broke"}, 1)])
def test_the_command_says_how_long_each_engine_took(
    monkeypatch: pytest.MonkeyPatch, error: dict[str, str] | None, exit_code: int
) -> None:
    import httpx

    def answer(request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.path, request.url.query) == ("POST", "/adapters/bard/warm", b"version=3")
        engine = {"engine": 1, "warm": error is None, "seconds": 0.25, "error": error}
        return httpx.Response(200, json={"model": "bard@3", "digest": "d", "engines": [engine]})

    made = httpx.Client(base_url="http://gateway", transport=httpx.MockTransport(answer))
    monkeypatch.setattr(remote, "client_of", lambda *_: made)
    printed: list[str] = []
    monkeypatch.setattr(out, "print", lambda line, **_: printed.append(line))
    result = CliRunner().invoke(remote.adapters, ["warm", "bard", "--version", "3"])
    assert result.exit_code == exit_code
    assert printed == [f"bard@3  engine 1  {'warm after 250 ms' if error is None else 'it broke'}"]
