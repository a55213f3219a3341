"""Tenants on two gateways that share PostgreSQL: one's names and keys are the other's a moment later."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.domain.api_keys import Role, new_key
from app.gateway import key_ring
from tests.support.gateway import KEY, Running, form
from tests.support.joining import Join
from tests.support.waiting import STUCK_S


async def ask(running: Running, method: str, path: str, key: str = KEY, **sent: Any) -> httpx.Response:
    return await running.http.request(method, path, headers={"Authorization": f"Bearer {key}"}, **sent)


async def becomes(running: Running, path: str, key: str, status: int) -> float:
    """Wait until a GET answers so, and return the seconds that it took."""
    began = time.monotonic()
    async with asyncio.timeout(STUCK_S):
        while (await ask(running, "GET", path, key)).status_code != status:
            await asyncio.sleep(0.02)
    return time.monotonic() - began


async def test_a_key_is_in_force_and_revoked_on_both(join: Join) -> None:
    one, other = await join(), await join()
    answer = await ask(one, "POST", "/tenants/acme/keys", json={"name": "app", "roles": ["upload", "chat"]})
    key = answer.json()["key"]
    assert (await ask(one, "GET", "/v1/models", key)).status_code == 200, "at once where it was made"
    await becomes(other, "/v1/models", key, 200)
    new = (await ask(other, "POST", "/tenants/acme/keys/app/rotate", json={"overlap_seconds": 60})).json()["key"]
    await becomes(one, "/v1/models", new, 200)
    assert (await ask(one, "GET", "/v1/models", key)).status_code == 200
    assert (await ask(one, "DELETE", "/tenants/acme/keys/app")).status_code == 204
    assert (await ask(one, "GET", "/v1/models", new)).status_code == 401
    seconds = [await becomes(other, "/v1/models", each, 401) for each in (key, new)]
    print(f"revoked on the other gateway after {max(seconds):.2f} s")
    assert key_ring.LOOK_S < 1.0


async def test_a_gateway_that_was_away_for_long_reads_every_key(join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = await join(), await join()
    key = (await ask(one, "POST", "/tenants/acme/keys", json={"name": "app", "roles": ["chat"]})).json()["key"]
    await becomes(other, "/v1/models", key, 200)
    await other.gateway.context.ring.stop()
    await ask(one, "DELETE", "/tenants/acme/keys/app")
    monkeypatch.setattr("app.store.catalogue.keys.FORGET_S", -1.0)
    await ask(one, "POST", "/tenants/acme/keys", json={"name": "next", "roles": ["chat"]})  # forgets the revoked one
    assert (await ask(other, "GET", "/v1/models", key)).status_code == 200, "it has not looked"
    monkeypatch.setattr(key_ring, "REREAD_S", -1.0)
    await other.gateway.context.ring.follow()
    assert (await ask(other, "GET", "/v1/models", key)).status_code == 401


async def test_a_tenants_adapters_are_served_by_both_and_shown_to_no_other(join: Join, tmp_path: Path) -> None:
    keys = {tenant: new_key("app", [Role.UPLOAD, Role.CHAT], tenant=tenant) for tenant in ("acme", "globex")}
    file = tmp_path / "keys"
    file.write_text("".join(f"{stored.line}\n" for _, stored in keys.values()).replace("app", "app-2", 1))
    one, other = [await join(api_keys_file=file) for _ in range(2)]
    acme, globex = [key for key, _ in keys.values()]
    pushed = await ask(one, "POST", "/adapters", acme, files=form("Sql.v2_x", 1))
    theirs = await ask(other, "POST", "/adapters", globex, files=form("sql.V2_x", 2))
    assert [pushed.status_code, theirs.status_code] == [201, 201], "names differ in case, and so do tenants"
    await becomes(other, "/v1/models/Sql.v2_x", acme, 200)
    await becomes(one, "/v1/models/sql.V2_x", globex, 200)
    for running in (one, other):
        listed = (await ask(running, "GET", "/adapters", acme)).json()["adapters"]
        assert [adapter["name"] for adapter in listed] == ["Sql.v2_x"]
        body = {"model": "Sql.v2_x", "messages": [{"role": "user", "content": "hello"}]}
        answer = await ask(running, "POST", "/v1/chat/completions", acme, json=body)
        assert answer.headers["x-adapter-digest"] == pushed.json()["digest"]
        assert (await ask(running, "GET", "/v1/models/sql.V2_x", acme)).status_code == 404


async def test_the_longest_names_are_stored(join: Join) -> None:
    running, tenant, name = await join(), "t" * 63, "N" * 63
    pushed = await ask(running, "POST", f"/adapters?tenant={tenant}", files=form(name, 1))
    assert pushed.status_code == 201
    assert (await ask(running, "GET", f"/adapters/{name}?tenant={tenant}")).json()["name"] == name
    body = {"model": f"{tenant}/{name}@1", "messages": [{"role": "user", "content": "hello"}]}
    assert (await ask(running, "POST", "/v1/chat/completions", json=body)).status_code == 200
