"""GET /adapters page by page, and where each version is in the engine."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import event

from app.domain.names import AdapterName
from app.store.catalogue.catalogue import Catalogue
from tests.store.making import begun, received, stored
from tests.support.gateway import OpenHouse, Running, form
from tests.support.waiting import STUCK_S

LENIENT = {"tau": 1e9, "max_pruned_share": 1.0}


def fill(catalogue: Catalogue, count: int) -> list[str]:
    """Adapters that wait for an engine, two versions of every third; their names in order."""
    for number in range(count):
        name = AdapterName(f"{'Aa'[number % 2]}-{number:03}")
        for seed in range(1 + (number % 3 == 0)):
            stored(catalogue, f"{number}.{seed}", name)
    return sorted((f"{'Aa'[number % 2]}-{number:03}" for number in range(count)), key=str.casefold)


async def page(running: Running, **params: Any) -> dict[str, Any]:
    answer = await running.http.get("/adapters", params=params)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@contextmanager
def statements(running: Running) -> Iterator[list[str]]:
    """What is asked of the database meanwhile."""
    engine, told = running.gateway.context.uploads.components.catalogue._database._engine, list[str]()

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        told.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield told
    finally:
        event.remove(engine, "before_cursor_execute", note)


@pytest.mark.parametrize("limit", [1, 7, 20, 1000])
async def test_the_pages_together_are_the_whole_in_order(running: Running, limit: int) -> None:
    await running.gateway.reconciler.stop()  # it would follow what is stored here, and withhold it between two pages
    names = fill(running.gateway.context.uploads.components.catalogue, 20)
    found: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        got = await page(running, limit=limit, after=after)
        assert len(got["adapters"]) <= limit
        found += got["adapters"]
        after = got["next"]
    assert [adapter["name"] for adapter in found] == names
    for adapter in found:
        numbers = [version["version"] for version in adapter["versions"]]
        assert numbers == ([2, 1] if int(adapter["name"][2:]) % 3 == 0 else [1])
    assert found == (await page(running))["adapters"]


async def test_a_page_is_one_query_however_long(running: Running) -> None:
    fill(running.gateway.context.uploads.components.catalogue, 30)
    for limit in (1, 30):
        with statements(running) as told:
            await page(running, limit=limit)
        asked = [statement for statement in told if statement.lstrip().startswith("SELECT")]
        mine = [statement for statement in asked if "adapters.name_key >" in statement]
        assert len(mine) == 1, told
        assert not [statement for statement in asked if "adapter_id =" in statement and statement not in mine], asked


async def test_one_that_was_deleted_meanwhile_is_no_hole(running: Running) -> None:
    catalogue = running.gateway.context.uploads.components.catalogue
    names = fill(catalogue, 6)
    first = await page(running, limit=3)
    for gone in (names[2], names[3]):
        catalogue.delete(gone)
    second = await page(running, limit=3, after=first["next"])
    assert [adapter["name"] for adapter in second["adapters"]] == names[4:]
    assert second["next"] is None


async def test_one_whose_first_upload_is_just_beginning_is_listed_too(running: Running) -> None:
    begun(running.gateway.context.uploads.components.catalogue, AdapterName("early"), received())
    (adapter,) = (await page(running))["adapters"]
    assert (adapter["name"], adapter["versions"][0]["state"]) == ("early", "received")


@pytest.mark.parametrize("params", [{"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"after": "x" * 64}])
async def test_what_is_no_page_is_refused(running: Running, params: dict[str, Any]) -> None:
    answer = await running.http.get("/adapters", params=params)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")


async def test_it_is_told_whether_the_engine_holds_a_version_and_when_it_was_used(running: Running) -> None:
    version = (await running.http.post("/adapters", files=form("style"))).json()
    assert version["engine"] == {"loaded": True, "loaded_in": [1], "in_flight": 0, "last_used": None}
    body = {"model": "style", "messages": [{"role": "user", "content": "hello"}]}
    before = datetime.now(UTC)
    assert (await running.http.post("/v1/chat/completions", json=body)).status_code == 200
    (adapter,) = (await page(running))["adapters"]
    told = adapter["versions"][0]["engine"]
    assert before <= datetime.fromisoformat(told["last_used"]) <= datetime.now(UTC)
    await running.simulator.stop()
    async with asyncio.timeout(STUCK_S):
        while (await page(running))["adapters"][0]["versions"][0]["engine"]["loaded"]:
            await asyncio.sleep(0.02)


async def test_what_no_engine_is_to_hold_says_nothing_of_one(open_gateway: OpenHouse) -> None:
    async with open_gateway(tau=-1e9, max_pruned_share=1.0, unscorable="prune") as running:
        assert (await running.http.post("/adapters", files=form("nothing"))).json()["engine"] is None
        bad = form("bad") | {"config": ("c", b"{}")}
        assert (await running.http.post("/adapters", files=bad)).json()["version"]["engine"] is None


async def test_what_was_used_is_forgotten_with_its_adapter(running: Running) -> None:
    await running.http.post("/adapters", files=form("style"))
    body = {"model": "style", "messages": [{"role": "user", "content": "hello"}]}
    await running.http.post("/v1/chat/completions", json=body)
    assert len(running.gateway.context.routing_table.in_flight._used) == 1
    await running.http.delete("/adapters/style")
    assert running.gateway.context.routing_table.in_flight._used == {}


async def test_a_version_without_its_artefact_is_not_answered_by_the_served_model(open_gateway: OpenHouse) -> None:
    async with open_gateway(**LENIENT) as running:
        await running.http.post("/adapters", files=form("style"))
    with sqlite3.connect(running.data / "catalogue.sqlite") as connection:
        connection.execute("UPDATE versions SET engine_name = NULL, artefact = NULL")
    connection.close()
    async with open_gateway(**LENIENT) as running:
        body = {"model": "style", "messages": [{"role": "user", "content": "hello"}]}
        answer = await running.http.post("/v1/chat/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


async def test_one_model_is_told_as_in_the_list_of_all(running: Running) -> None:
    for seed in (1, 2):
        await running.http.post("/adapters", files=form("style", seed))
    every = (await running.http.get("/v1/models")).json()["data"]
    assert {card["id"] for card in every} == {"served", "style", "style@1", "style@2"}
    for card in every:
        assert (await running.http.get(f"/v1/models/{card['id']}")).json() == card
    assert (await running.http.get("/v1/models/style@3")).status_code == 404
