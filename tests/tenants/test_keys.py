"""Keys made at run time: made, listed, rotated, revoked, and in force on every gateway."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import pytest_asyncio

from app.api.routes.tenants import MAX_LIFE_S, MAX_OVERLAP_S
from app.domain.api_keys import Role, new_key
from app.domain.errors import STORE_AWAY, Unavailable
from app.gateway import key_ring
from app.store.catalogue import keys as key_store
from app.store.catalogue.keys import KeyStore
from tests.support.gateway import KEY, OpenHouse, Running, form
from tests.support.waiting import STUCK_S, until

ADMIN: Final = new_key("admin", [Role.ADMIN], tenant="acme")
ACME: Final = "/tenants/acme/keys"


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(ADMIN[1].line)
    return file


@pytest_asyncio.fixture
async def running(open_gateway: OpenHouse, keys_file: Path) -> AsyncIterator[Running]:
    async with open_gateway(api_keys_file=keys_file) as made:
        yield made


async def ask(running: Running, method: str, path: str, key: str = ADMIN[0], **sent: Any) -> httpx.Response:
    return await running.http.request(method, path, headers={"Authorization": f"Bearer {key}"}, **sent)


async def made(running: Running, name: str = "app", roles: tuple[str, ...] = ("chat",), **more: Any) -> dict[str, Any]:
    answer = await ask(running, "POST", ACME, json={"name": name, "roles": roles, **more})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def admitted(running: Running, key: str) -> bool:
    status = (await ask(running, "GET", "/v1/models", key)).status_code
    assert status in (200, 401)
    return status == 200


def code(answer: httpx.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


async def test_a_key_is_made_used_listed_and_revoked(running: Running) -> None:
    key = await made(running, roles=("chat", "upload"), owner="team")
    assert key["key"].startswith("lg_")
    assert (key["tenant"], key["name"], key["roles"], key["owner"]) == ("acme", "app", ["chat", "upload"], "team")
    assert await admitted(running, key["key"])
    pushed = await ask(running, "POST", "/adapters", key["key"], files=form("sql"))
    assert pushed.status_code == 201
    shown = await ask(running, "GET", "/adapters/sql")
    assert shown.json()["owner"] == "team"
    await running.gateway.context.ring.stop()  # records the last uses
    listed = (await ask(running, "GET", ACME)).json()["keys"]
    assert [one["name"] for one in listed] == ["app"]
    assert "key" not in listed[0]
    assert listed[0]["last_used_at"] is not None
    assert (await ask(running, "DELETE", f"{ACME}/app")).status_code == 204
    assert not await admitted(running, key["key"])
    assert (await ask(running, "GET", ACME)).json()["keys"] == []
    assert code(await ask(running, "DELETE", f"{ACME}/app")) == (404, "key_not_found", "name")
    again = await made(running)
    assert again["key"] != key["key"]
    assert not await admitted(running, key["key"]), "its name lives again, the key does not"


async def test_no_key_is_stored_or_cached(running: Running) -> None:
    answer = await ask(running, "POST", ACME, json={"name": "app", "roles": ["chat"]})
    assert answer.headers["cache-control"] == "no-store"
    text = answer.json()["key"].encode()
    assert not [file for file in running.data.rglob("*") if file.is_file() and text in file.read_bytes()]


async def test_keys_outlive_a_restart(open_gateway: OpenHouse, keys_file: Path) -> None:
    async with open_gateway(api_keys_file=keys_file) as running:
        kept, gone = await made(running, "kept"), await made(running, "gone")
        await ask(running, "DELETE", f"{ACME}/gone")
    async with open_gateway(api_keys_file=keys_file) as running:
        assert await admitted(running, kept["key"])
        assert not await admitted(running, gone["key"])


async def test_a_rotated_key_overlaps_with_the_one_before(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    old = await made(running)
    answer = await ask(running, "POST", f"{ACME}/app/rotate", json={"overlap_seconds": 3600})
    new = answer.json()
    assert answer.headers["cache-control"] == "no-store"
    assert (new["name"], new["roles"]) == ("app", ["chat"])
    assert await admitted(running, old["key"])
    assert await admitted(running, new["key"])
    later_by(monkeypatch, 3601)
    assert not await admitted(running, old["key"])
    assert await admitted(running, new["key"])
    newest = (await ask(running, "POST", f"{ACME}/app/rotate")).json()
    assert not await admitted(running, new["key"]), "without an overlap at once"
    assert await admitted(running, newest["key"])
    await ask(running, "DELETE", f"{ACME}/app")
    assert not await admitted(running, newest["key"])
    assert code(await ask(running, "POST", f"{ACME}/app/rotate")) == (404, "key_not_found", "name")


async def test_a_key_expires_and_so_does_the_one_before(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    old = await made(running, expires_in_seconds=60)
    assert datetime.fromisoformat(old["expires_at"]) - datetime.now(UTC) < timedelta(seconds=60)
    new = (await ask(running, "POST", f"{ACME}/app/rotate", json={"overlap_seconds": 3600})).json()
    assert new["expires_at"] == old["expires_at"]
    assert await admitted(running, old["key"])
    later_by(monkeypatch, 61)
    assert not await admitted(running, old["key"])
    assert not await admitted(running, new["key"])
    store = running.gateway.context.uploads.components.catalogue.keys
    monkeypatch.setattr(store, "_now", lambda: datetime.now(UTC) + timedelta(seconds=61))
    assert code(await ask(running, "POST", f"{ACME}/app/rotate")) == (404, "key_not_found", "name")


def later_by(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """From now on, the ring's clock is ahead by so many seconds."""

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Later":
            return super().now(tz) + timedelta(seconds=seconds)

    monkeypatch.setattr(key_ring, "datetime", Later)


WRONG: Final[list[tuple[Any, str | None]]] = [
    ({"name": "app"}, "roles"),
    ({"name": "app", "roles": []}, "roles"),
    ({"name": "app", "roles": ["chat", "root"]}, "roles"),
    ({"name": "app", "roles": ["metrics"]}, None),
    ({"name": "app", "roles": ["engine"]}, None),
    ({"name": "a/b", "roles": ["chat"]}, None),
    ({"name": "", "roles": ["chat"]}, None),
    ({"name": 7, "roles": ["chat"]}, "name"),
    ({"name": "app", "roles": ["chat"], "owner": "a b"}, None),
    ({"name": "app", "roles": ["chat"], "tenant": "globex"}, "tenant"),
    ({"name": "app", "roles": ["chat"], "expires_in_seconds": 0}, "expires_in_seconds"),
    ({"name": "app", "roles": ["chat"], "expires_in_seconds": MAX_LIFE_S + 1}, "expires_in_seconds"),
    ({"name": "app", "roles": ["chat"], "expires_in_seconds": 1.5}, "expires_in_seconds"),
]


async def test_a_wrong_body_is_refused_by_the_field(running: Running) -> None:
    for body, param in WRONG:
        assert code(await ask(running, "POST", ACME, json=body)) == (400, "bad_request", param), body
    assert (await ask(running, "GET", ACME)).json()["keys"] == []


async def test_the_longest_life_and_overlap_are_stored(running: Running) -> None:
    await made(running, expires_in_seconds=MAX_LIFE_S)
    answer = await ask(running, "POST", f"{ACME}/app/rotate", json={"overlap_seconds": MAX_OVERLAP_S})
    assert answer.status_code == 200
    wrong = await ask(running, "POST", f"{ACME}/app/rotate", json={"overlap_seconds": MAX_OVERLAP_S + 1})
    assert code(wrong) == (400, "bad_request", "overlap_seconds")


async def test_a_name_is_taken_once(running: Running) -> None:
    await made(running)
    again = await ask(running, "POST", ACME, json={"name": "app", "roles": ["chat"]})
    assert code(again) == (409, "key_exists", "name")
    files = await ask(running, "POST", ACME, json={"name": "admin", "roles": ["chat"]})
    assert code(files) == (409, "key_exists", "name")
    elsewhere = await ask(running, "POST", "/tenants/globex/keys", KEY, json={"name": "app", "roles": ["chat"]})
    assert elsewhere.status_code == 201, "another tenant's names are its own"


async def test_a_tenants_keys_are_bounded(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_store, "MAX_KEYS", 2)
    await made(running, "one")
    await made(running, "two")
    await ask(running, "DELETE", f"{ACME}/two")
    full = await ask(running, "POST", ACME, json={"name": "three", "roles": ["chat"]})
    assert code(full) == (409, "too_many_keys", None), "a revoked one's row is still there"
    await made(running, "two")
    monkeypatch.setattr(key_store, "FORGET_S", -1.0)
    await ask(running, "DELETE", f"{ACME}/two")
    key = await made(running, "three")
    assert await admitted(running, key["key"])


@pytest.mark.hostile("T01")
@pytest.mark.parametrize("tenant", ["globex", "nobody", "default"])
async def test_a_tenant_manages_its_own_keys_only(running: Running, tenant: str) -> None:
    await ask(running, "POST", "/tenants/globex/keys", KEY, json={"name": "app", "roles": ["chat"]})
    path = f"/tenants/{tenant}/keys"
    for method, at, body in (
        ("GET", path, None),
        ("POST", path, {"name": "mine", "roles": ["admin"]}),
        ("POST", f"{path}/app/rotate", {}),
        ("DELETE", f"{path}/app", None),
    ):
        answer = await ask(running, method, at, json=body)
        assert code(answer) == (403, "forbidden", "tenant")
        assert "globex" not in answer.text
    chat = await made(running)
    assert (await ask(running, "GET", ACME, chat["key"])).status_code == 403, "its role is another"


async def test_the_operator_sees_every_tenant(running: Running) -> None:
    await made(running)
    await ask(running, "POST", "/tenants/default/keys", KEY, json={"name": "ops", "roles": ["admin"]})
    await ask(running, "POST", "/adapters", KEY, files=form("plain"))
    await ask(running, "POST", "/adapters?tenant=globex", KEY, files=form("theirs"))
    found = (await ask(running, "GET", "/tenants", KEY)).json()["tenants"]
    assert [(one["tenant"], one["adapters"], one["keys"]) for one in found] == [
        ("acme", 0, 1),
        ("default", 1, 1),
        ("globex", 1, 0),
    ]
    assert (await ask(running, "GET", "/tenants")).status_code == 403
    assert code(await ask(running, "GET", "/tenants/No_Body/keys", KEY)) == (400, "bad_request", "tenant")


@pytest.mark.parametrize("name", ["-x", "a%20b", "x" * 64])
async def test_a_name_that_no_key_can_have_is_not_found(running: Running, name: str) -> None:
    for method, path in (("POST", f"{ACME}/{name}/rotate"), ("DELETE", f"{ACME}/{name}")):
        assert code(await ask(running, method, path)) == (404, "key_not_found", "name")


async def test_a_key_whose_revoking_broke_halfway_is_refused_at_the_next_try(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await made(running)

    def away(*_: Any) -> None:
        raise Unavailable(STORE_AWAY, "nobody answers")

    with monkeypatch.context() as patch:
        patch.setattr(KeyStore, "changed_since", away)
        assert (await ask(running, "DELETE", f"{ACME}/app")).status_code == 503
    assert (await ask(running, "DELETE", f"{ACME}/app")).status_code == 404, "it was revoked"
    assert not await admitted(running, key["key"])


async def test_a_revoked_key_ends_no_request(running: Running) -> None:
    key = await made(running)
    go_on = asyncio.Event()

    async def says(*_: Any) -> str:
        await go_on.wait()
        return "hello"

    running.simulator.says = says
    body = {"model": "served", "messages": [{"role": "user", "content": "hello"}]}
    chat = asyncio.create_task(ask(running, "POST", "/v1/chat/completions", key["key"], json=body))
    in_flight = running.gateway.context.routing_table.in_flight
    await until(lambda: in_flight.total() == 1)
    await ask(running, "DELETE", f"{ACME}/app")
    go_on.set()
    async with asyncio.timeout(STUCK_S):
        assert (await chat).status_code == 200
    assert not await admitted(running, key["key"])
