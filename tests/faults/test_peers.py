"""Gateways that share a store: one's change is the others' a moment later, and killing some of them breaks nothing."""

import asyncio
import random
import threading
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from app.domain.errors import GatewayError
from app.domain.version_state import State
from app.gateway.recovery import take_over
from app.store.audit.audit import audit
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.queries import Name
from app.store.catalogue.tables import VersionRow
from app.store.cluster.leases import LEASE_S, MISSED_BEATS
from tests.faults.killing import promises, simulated, victims
from tests.faults.peers_killing import PLACES, Victims, numbered_once
from tests.support.audited import rested
from tests.support.gateway import KEY, SERVED, Running, form, gateway
from tests.support.joining import Join, options
from tests.support.postgres import Server
from tests.support.waiting import STUCK_S

KILLS = 9


@pytest_asyncio.fixture
async def three(join: Join) -> list[Running]:
    """Three gateways."""
    return [await join() for _ in range(3)]


async def push(running: Running, name: str, seed: int = 0) -> Any:
    return await running.http.post("/adapters", files=form(name, seed))


async def answers(running: Running, model: str) -> int:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    return (await running.http.post("/v1/chat/completions", json=body)).status_code


async def agree(gateways: list[Running], model: str, status: int) -> None:
    async with asyncio.timeout(STUCK_S):
        while {await answers(running, model) for running in gateways} != {status}:
            await asyncio.sleep(0.05)


async def mean(gateways: list[Running], version: int) -> None:
    async with asyncio.timeout(STUCK_S):
        while {targets(running)["style"].version for running in gateways} != {version}:
            await asyncio.sleep(0.05)


def targets(running: Running) -> Any:
    return running.gateway.context.routing_table.snapshot.targets


async def test_what_one_takes_in_all_serve_and_what_one_takes_back_none(three: list[Running]) -> None:
    first, second, third = three
    assert (await push(first, "style", 1)).json()["version"] == 1
    assert (await push(second, "style", 2)).json()["version"] == 2
    await agree(three, "style@2", 200)
    assert (await third.http.post("/adapters/style/rollback")).json()["version"] == 1
    await mean(three, 1)
    await agree(three, "style", 200)
    assert (await first.http.delete("/adapters/style")).status_code in (200, 204)
    await agree(three, "style", 404)
    async with asyncio.timeout(STUCK_S):
        while any(path.name[0] != "." for path in (first.data.parent / "artefacts").iterdir()):
            await asyncio.sleep(0.1)
    assert not any("style@" in name for running in three for name in running.simulator.loaded)


async def test_the_same_bytes_at_three_doors_at_once_make_one_version(three: list[Running]) -> None:
    got = await asyncio.gather(*(push(running, "style", 1) for running in three))
    assert sorted(one.status_code for one in got) == [200, 200, 201]
    assert {one.json()["version"] for one in got} == {1}


async def test_what_the_engines_refuse_is_one_version_at_whichever_door_it_comes_again(three: list[Running]) -> None:
    for running in three:
        running.simulator.faults["load"] = "500"
    for _ in range(2):
        for running in three:
            got = await push(running, "style", 1)
            assert (got.status_code, got.json()["error"]["code"]) == (502, "load_failed"), got.text
            assert got.json()["version"]["version"] == 1
    for running in three:
        running.simulator.faults.clear()
    got = await asyncio.gather(*(push(running, "style", 1) for running in three))
    assert sorted(one.status_code for one in got) == [200, 200, 201]
    assert {one.json()["version"] for one in got} == {1}
    await agree(three, "style@1", 200)


async def test_of_a_refusal_that_two_gateways_record_at_one_moment_both_uploads_are_told(
    three: list[Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order is forced: whoever is about to record the refusal finds that another gateway has just recorded it."""
    first, second, _ = three
    for running in three:
        running.simulator.faults["load"] = "500"
    mine, theirs = (running.gateway.context.uploads.components.catalogue for running in (first, second))
    recorded: list[VersionRow] = []
    record = mine.record_try_failed

    def late(tried: VersionRow, error: GatewayError) -> VersionRow:
        recorded.append(theirs.record_try_failed(tried, error))
        return record(tried, error)

    monkeypatch.setattr(mine, "record_try_failed", late)
    got = await push(first, "style", 1)
    assert (got.status_code, got.json()["error"]["code"]) == (502, "load_failed"), got.text
    assert recorded[0].state is State.FAILED


async def taken_for_dead(running: Running, by: Running, postgres: Server) -> None:
    """`by` has heard nothing of `running` for a lease's time and gives up what it works on."""
    peers, judge = running.gateway.context.uploads.components.peers, by.gateway.context.uploads.components.peers
    assert peers is not None
    assert judge is not None
    silent = f"UPDATE gateways SET seen_at = seen_at - interval '{LEASE_S + 1} s' WHERE id = '{peers.id}'"
    postgres.psql(silent, peers._database._engine.url.database or "")
    for _ in range(MISSED_BEATS):
        await asyncio.to_thread(judge.beat)
    uploads = by.gateway.context.uploads
    await take_over(uploads.components, uploads.publishing._garbage)


@pytest.mark.parametrize("begun_again", [False, True], ids=["given up", "given up and begun again elsewhere"])
async def test_an_upload_at_a_gateway_that_was_taken_for_dead_ends_well(
    three: list[Running], postgres: Server, monkeypatch: pytest.MonkeyPatch, begun_again: bool
) -> None:
    """It was only slow: another gateway gives its version up while it is measured, or has it sent once more meanwhile."""
    slow, judge, _ = three
    components = slow.gateway.context.uploads.components
    measuring, go_on, loop = asyncio.Event(), threading.Event(), asyncio.get_running_loop()
    validated = components.catalogue.record_validated

    def slowly(name: Name, number: int) -> VersionRow:
        loop.call_soon_threadsafe(measuring.set)
        assert go_on.wait(60)
        return validated(name, number)

    monkeypatch.setattr(components.catalogue, "record_validated", slowly)
    pushed = asyncio.create_task(push(slow, "style", 1))
    try:
        await measuring.wait()
        await taken_for_dead(slow, judge, postgres)
        again = await push(judge, "style", 1) if begun_again else None
    finally:
        go_on.set()
    got = await pushed
    assert (got.status_code, got.json()["version"], got.json()["state"]) == (200 if begun_again else 201, 1, "ready")
    assert again is None or (again.status_code, again.json()["version"]) == (201, 1)
    await agree(three, "style@1", 200)


async def test_other_bytes_at_three_doors_at_once_make_three_versions(three: list[Running]) -> None:
    got = await asyncio.gather(*(push(running, "style", seed) for seed, running in enumerate(three)))
    assert sorted(one.json()["version"] for one in got) == [1, 2, 3]
    await mean(three, 3)
    await agree(three, "style", 200)


async def test_an_artefact_stays_while_another_gateways_engine_may_read_it(three: list[Running]) -> None:
    first, _, third = three
    version = (await push(first, "style", 1)).json()
    await agree(three, "style", 200)
    third.simulator.faults["models"] = "500"  # silent: it may read anything
    await first.http.delete("/adapters/style")
    await asyncio.sleep(6)  # longer than a beat
    assert (first.data.parent / "artefacts" / version["digest"]).is_dir()
    del third.simulator.faults["models"]
    async with asyncio.timeout(STUCK_S):
        while (first.data.parent / "artefacts" / version["digest"]).exists():
            await asyncio.sleep(0.1)


async def test_who_cannot_read_the_catalogue_for_too_long_serves_no_adapter_until_it_can(
    three: list[Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    await push(three[0], "style", 1)
    await agree(three, "style", 200)
    monkeypatch.setattr("app.store.cluster.peers.STALE_S", 0.0)
    assert {await answers(running, "style") for running in three} == {503}
    assert {await answers(running, SERVED) for running in three} == {200}
    ready = await three[0].http.get("/ready")
    assert (ready.status_code, ready.json()["parts"]["catalogue"]) == (503, "not read for too long")
    monkeypatch.undo()
    await agree(three, "style", 200)


async def test_a_gateway_with_another_policy_measures_again_what_the_others_took_in(
    join: Join,
) -> None:
    lenient, strict = await join(), await join(tau=-1e9)
    row = (await push(lenient, "style", 1)).json()
    assert await answers(lenient, "style") == 200
    uploads = strict.gateway.context.uploads
    version = await asyncio.to_thread(uploads.components.catalogue.version, "style", row["version"])
    async with asyncio.timeout(STUCK_S):
        while version.key not in uploads.components.desired.state.withheld:
            assert await answers(strict, "style") == 404, "not served before it was measured"
            await asyncio.sleep(0.02)
    assert await answers(strict, "style") == 404
    assert not any("style@" in name for name in strict.simulator.loaded)


@pytest.mark.slow
async def test_three_gateways_under_upload_rollback_and_kill(
    tiny_reference_dir: Path, tmp_path: Path, postgres: Server
) -> None:
    url, told = postgres.fresh(), tmp_path / "told"
    choose = random.Random(8)
    with ExitStack() as closers:
        simulators = [closers.enter_context(simulated(tmp_path / f"e{number}.sock")) for number in range(3)]
        peers = Victims(victims(), tmp_path, tiny_reference_dir, [one.url for one in simulators], url)
        closers.callback(peers.kill_all)

        def campaign() -> None:
            for number in range(3):
                peers.start(number, number)
            for seed in range(KILLS):
                number = choose.randrange(3)
                peers.check()
                peers.kill(number)
                peers.start(number, 100 + seed, f"{choose.choice(PLACES)}:{choose.randint(1, 8)}" if seed % 2 else None)
            peers.kill_all()

        await asyncio.to_thread(campaign)
        assert numbered_once(told) > KILLS
        kept = promises(told)
        found = audit(tmp_path / "data-0", url, promised=kept, secrets=[KEY], artefacts=tmp_path / "artefacts")
        assert found.findings == ()
        # their leases have run out
        postgres.psql("UPDATE gateways SET seen_at = seen_at - interval '1 hour'", url.rpartition("/")[2])
        async with AsyncExitStack() as last:
            three = [
                await last.enter_async_context(
                    gateway(
                        tmp_path / f"data-{number}", tiny_reference_dir, simulators[number], **options(tmp_path, url)
                    )
                )
                for number in range(3)
            ]
            for running in three:
                await rested(running, kept, url, tmp_path / "artefacts")
            async with asyncio.timeout(STUCK_S):
                while not targets(three[0]) == targets(three[1]) == targets(three[2]):
                    await asyncio.sleep(0.1)
        catalogue = Catalogue(url)
        assert catalogue.unfinished() == ()
        catalogue.close()
