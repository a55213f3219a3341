"""Audit log: every change and every refusal by role, chained, shown to whom it concerns."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from app.api.access import audited
from app.api.access.rules import ROUTES
from app.domain.api_keys import Role, new_key
from app.domain.audit_entry import BEGINNING, Act, AuditEntry, chained, first_broken
from app.domain.errors import STORE_AWAY, STORE_FAILED, Unavailable
from app.store.catalogue.audit_log import AuditLog
from app.store.catalogue.catalogue import Catalogue
from tests.cli.test_adapters import Shell, shell  # noqa: F401 - `shell` is a fixture
from tests.support.gateway import KEY, OpenHouse, Running, form
from tests.support.waiting import until

KEYS: Final = {
    "acme": new_key("app", [Role.UPLOAD, Role.CHAT], tenant="acme"),
    "acme-admin": new_key("admin", [Role.ADMIN], tenant="acme"),
    "operator": (KEY, None),
}
ACT: Final = Act(datetime.now(UTC), "k", "default", "POST /adapters", "sql", 201, "", "127.0.0.1", "r")


@pytest_asyncio.fixture
async def running(open_gateway: OpenHouse, tmp_path: Path) -> AsyncIterator[Running]:
    file = tmp_path / "keys"
    file.write_text("".join(f"{stored.line}\n" for _, stored in KEYS.values() if stored))
    async with open_gateway(api_keys_file=file) as made:
        yield made


async def ask(running: Running, who: str, method: str, path: str, **sent: Any) -> httpx.Response:
    return await running.http.request(method, path, headers={"Authorization": f"Bearer {KEYS[who][0]}"}, **sent)


async def entries(running: Running, who: str = "operator", **query: Any) -> list[dict[str, Any]]:
    answer = await ask(running, who, "GET", "/audit", params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["entries"]
    return found


async def test_every_change_is_recorded_with_who_what_and_how_it_ended(running: Running) -> None:
    await ask(running, "acme", "POST", "/adapters", files=form("sql"))
    await ask(running, "acme", "POST", "/adapters", files=form("sql") | {"weights": ("w", b"garbage")})
    await ask(running, "acme-admin", "PUT", "/adapters/sql/owner", content=b'{"owner": "team"}')
    await ask(running, "acme-admin", "POST", "/adapters/sql/rollback")
    await ask(running, "acme-admin", "POST", "/adapters/sql/rescreen")
    await ask(running, "operator", "DELETE", "/adapters/sql?tenant=acme")
    await ask(running, "acme-admin", "POST", "/tenants/acme/keys", json={"name": "ci", "roles": ["chat"]})
    await ask(running, "acme-admin", "POST", "/tenants/acme/keys/ci/rotate")
    await ask(running, "acme-admin", "DELETE", "/tenants/acme/keys/ci")
    found = [(e["key"], e["action"], e["target"], e["status"], e["code"]) for e in await entries(running)]
    assert found == [
        ("acme/app", "POST /adapters", "acme/sql", 201, ""),
        ("acme/app", "POST /adapters", "acme/sql", 400, "bad_safetensors"),
        ("acme/admin", "PUT /adapters/{name}/owner", "acme/sql", 200, ""),
        ("acme/admin", "POST /adapters/{name}/rollback", "acme/sql", 409, "version_not_ready"),
        ("acme/admin", "POST /adapters/{name}/rescreen", "acme/sql", 409, "original_not_kept"),
        ("environment-1", "DELETE /adapters/{name}", "acme/sql", 204, ""),
        ("acme/admin", "POST /tenants/{tenant}/keys", "acme/ci", 201, ""),
        ("acme/admin", "POST /tenants/{tenant}/keys/{key}/rotate", "acme/ci", 200, ""),
        ("acme/admin", "DELETE /tenants/{tenant}/keys/{key}", "acme/ci", 204, ""),
    ]


async def test_reading_and_chatting_are_not_recorded_and_refusals_are(running: Running) -> None:
    body = {"model": "served", "messages": [{"role": "user", "content": "hello"}]}
    await ask(running, "acme", "POST", "/v1/chat/completions", json=body)
    await ask(running, "acme", "GET", "/adapters")
    await running.http.get("/adapters", headers={"Authorization": "Bearer nobody"})
    assert await entries(running) == []
    await ask(running, "acme", "DELETE", "/adapters/sql")
    await ask(running, "acme", "GET", "/metrics")
    await ask(running, "acme-admin", "GET", "/adapters/sql?tenant=globex")
    found = [(e["key"], e["tenant"], e["action"], e["status"], e["code"]) for e in await entries(running)]
    assert found == [
        ("acme/app", "acme", "DELETE /adapters/{name}", 403, "forbidden"),
        ("acme/app", "acme", "GET /metrics", 403, "forbidden"),
        ("acme/admin", "acme", "GET /adapters/{name}", 403, "forbidden"),
    ]


async def test_every_route_that_changes_something_is_recorded() -> None:
    silent = {"/screen", "/adapters/{name}/warm", "/console/session", "/tokenize", "/detokenize"}
    for (method, path), rule in ROUTES.items():
        changes = method != "GET" and path not in silent and not path.startswith("/v1/")
        assert rule.changes is changes, f"{method} {path}"


async def test_a_key_without_rights_cannot_fill_it(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audited, "REFUSALS_A_MINUTE", 3)
    for _ in range(10):
        assert (await ask(running, "acme", "GET", "/metrics")).status_code == 403
    assert len(await entries(running)) in (3, 4, 5, 6)  # the minute may have changed


@pytest.mark.hostile("T01")
async def test_a_tenant_sees_its_own_entries(running: Running) -> None:
    await ask(running, "acme", "POST", "/adapters", files=form("sql"))
    await ask(running, "operator", "POST", "/adapters", files=form("other"))
    await ask(running, "operator", "POST", "/adapters?tenant=acme", files=form("more"))
    assert [(e["target"], e["key"]) for e in await entries(running, "acme-admin")] == [
        ("acme/sql", "acme/app"),
        ("acme/more", "operator"),
    ]
    assert [e["target"] for e in await entries(running, tenant="acme")] == ["acme/sql", "acme/more"]
    assert len(await entries(running)) == 3
    assert [e["number"] for e in await entries(running, after=1, limit=1)] == [2]
    assert (await ask(running, "acme", "GET", "/audit")).status_code == 403


async def test_what_cannot_be_written_now_is_written_later(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    append = AuditLog.append

    def away(*_: Any) -> None:
        raise Unavailable(STORE_AWAY, "nobody answers")

    monkeypatch.setattr(AuditLog, "append", away)
    for seed, name in enumerate(("one", "two")):
        assert (await ask(running, "operator", "POST", "/adapters", files=form(name, seed))).status_code == 201
    assert await entries(running) == []
    monkeypatch.setattr(AuditLog, "append", append)
    trail = running.gateway.context.trail
    await until(lambda: not trail._waiting)
    assert [e["target"] for e in await entries(running)] == ["one", "two"]


async def test_an_act_that_the_catalogue_does_not_take_holds_up_no_other(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = AuditLog.append

    def picky(self: AuditLog, acts: Any) -> None:
        if any(act.target == "bad" for act in acts):
            raise Unavailable(STORE_FAILED, "value too long")
        append(self, acts)

    monkeypatch.setattr(AuditLog, "append", picky)
    trail = running.gateway.context.trail
    await asyncio.gather(*(trail.record(replace(ACT, target=target)) for target in ("one", "bad", "two")))
    await until(lambda: not trail._waiting)
    assert [e["target"] for e in await entries(running)] == ["one", "two"]


async def test_what_a_client_or_a_proxy_sends_fits(open_gateway: OpenHouse, catalogue_url: str) -> None:
    long = "9" * 5000
    async with open_gateway() as running:
        transport = httpx.ASGITransport(running.app, client=(long, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            own = {"Authorization": f"Bearer {KEY}", "X-Request-Id": long}
            assert (await http.delete(f"/adapters/{long}", headers=own)).status_code == 404
        (entry,) = await entries(running)
    catalogue = Catalogue(catalogue_url)
    rest = {name: entry[name] for name in ("key", "tenant", "action", "target", "status", "code", "address", "request")}
    catalogue.audit_log.append([Act(at=datetime.now(UTC), **rest)])
    catalogue.close()


async def test_what_is_refused_for_its_rate_is_not_recorded(open_gateway: OpenHouse) -> None:
    async with open_gateway(uploads_per_minute=1) as running:
        statuses = [(await running.http.post("/adapters", content=b"")).status_code for _ in range(3)]
        assert statuses[1:] == [429, 429]
        assert [e["status"] for e in await entries(running)] == statuses[:1]


async def test_what_breaks_is_recorded_as_broken(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ValueError

    monkeypatch.setattr(Catalogue, "transfer", broken)
    answer = await ask(running, "operator", "PUT", "/adapters/sql/owner", content=b'{"owner": "me"}')
    assert answer.status_code == 500
    assert [e["status"] for e in await entries(running)] == [500]


async def test_it_is_verified_by_the_command(shell: Shell) -> None:  # noqa: F811
    for seed, name in enumerate(("one", "two")):
        assert (await shell("adapters", "push", name, shell.adapter(name, seed))).status in (0, 3)
    whole = await shell("audit", "verify")
    assert (whole.status, whole.out.splitlines()[0]) == (0, "2 entries follow from each other; the last is")
    kept = whole.out.splitlines()[1]
    assert "POST /adapters" in (await shell("audit", "list")).out
    await shell("adapters", "rm", "one", "--yes")
    assert "1 entries" in (await shell("audit", "verify", "--after", kept)).out
    listed = json.loads((await shell("audit", "list", "--json")).out)
    assert [one["action"] for one in listed][-1] == "DELETE /adapters/{name}"
    catalogue = shell.running.gateway.context.uploads.components.catalogue
    with catalogue._database.writing() as connection:
        connection.exec_driver_sql("UPDATE audit_log SET target = 'three' WHERE number = 2")
    broken = await shell("audit", "verify")
    assert (broken.status, "entry 2 is missing, was changed" in broken.err) == (1, True)
    assert (await shell("audit", "verify", "--after", "x")).status == 2
    with catalogue._database.writing() as connection:
        connection.exec_driver_sql("DELETE FROM audit_log WHERE number >= 2")
    gone = await shell("audit", "verify", "--after", kept)
    assert (gone.status, "entry 2 is missing" in gone.err) == (1, True)


def test_gateways_write_one_chain(catalogue_url: str) -> None:
    catalogues = [Catalogue(catalogue_url) for _ in range(2)]
    for number in range(6):
        catalogues[number % 2].audit_log.append([replace(ACT, target=f"{number}-{n}") for n in range(number % 3)])
    found = catalogues[0].audit_log.after(0, 100)
    assert len(found) == 6
    assert first_broken(found) is None
    for catalogue in catalogues:
        catalogue.close()


async def test_acts_at_the_same_moment_are_one_chain(running: Running) -> None:
    trail = running.gateway.context.trail
    await asyncio.gather(*(trail.record(replace(ACT, target=str(number))) for number in range(50)))
    found = running.gateway.context.uploads.components.catalogue.audit_log.after(0, 100)
    assert sorted(int(one.act.target) for one in found) == [*range(50)]
    assert first_broken(found) is None


@given(st.lists(st.text(), min_size=1, max_size=6), st.data())
def test_any_change_breaks_the_chain(targets: list[str], data: st.DataObject) -> None:
    chain: list[AuditEntry] = []
    for number, target in enumerate(targets, 1):
        chain.append(chained(replace(ACT, target=target), number, chain[-1].hash if chain else BEGINNING))
    assert first_broken(chain) is None
    at = data.draw(st.integers(0, len(chain) - 1))
    entry = chain[at]
    later = replace(entry, act=replace(entry.act, at=entry.act.at + timedelta(microseconds=1)))
    forged = chained(replace(entry.act, status=500), entry.number, entry.previous)
    for spoiled in (later, forged):
        changed = [*chain[:at], spoiled, *chain[at + 1 :]]
        if spoiled is forged and at == len(chain) - 1:
            continue  # the end can be rewritten: that is why its hash is kept elsewhere
        assert first_broken(changed) in (at + 1, at + 2)
    if at < len(chain) - 1:
        assert first_broken([*chain[:at], *chain[at + 1 :]]) == at + 1


async def test_entries_are_appended_to_a_file_that_may_be_rotated(open_gateway: OpenHouse, tmp_path: Path) -> None:
    file, rotated = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    async with open_gateway(audit_file=file) as running:
        await ask(running, "operator", "POST", "/tenants/acme/keys", json={"name": "one", "roles": ["chat"]})
        file.rename(rotated)
        await ask(running, "operator", "POST", "/tenants/acme/keys", json={"name": "two", "roles": ["chat"]})
        kept = (await ask(running, "operator", "GET", "/audit")).json()["entries"]
    lines = [json.loads(one.read_text()) for one in (rotated, file)]
    assert [line["target"] for line in lines] == ["acme/one", "acme/two"]
    assert [(line["number"], line["hash"]) for line in lines] == [(entry["number"], entry["hash"]) for entry in kept]
    assert lines[1]["previous"] == lines[0]["hash"]


async def test_a_file_that_cannot_be_opened_is_said_at_the_start(open_gateway: OpenHouse, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="GATEWAY_AUDIT_FILE"):
        async with open_gateway(audit_file=tmp_path / "missing" / "audit.jsonl"):
            pass


async def test_a_file_that_cannot_be_written_any_more_loses_nothing_in_the_catalogue(
    open_gateway: OpenHouse, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    async with open_gateway(audit_file=folder / "audit.jsonl") as running:
        for name in ("one", "two"):
            made = await ask(running, "operator", "POST", "/tenants/acme/keys", json={"name": name, "roles": ["chat"]})
            assert made.status_code == 201
            shutil.rmtree(folder, ignore_errors=True)
        await running.gateway.context.trail.stop()
        assert [one["target"] for one in await entries(running)] == ["acme/one", "acme/two"]
    assert "audit_file_failed" in caplog.text
