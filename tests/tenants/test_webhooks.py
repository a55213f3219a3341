"""Webhooks: messages to a tenant's receivers, signed, tried again, and sent to nobody else."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import pytest_asyncio
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError

from app.domain.api_keys import Role, new_key
from app.domain.errors import CANARIES_FAILED, LOAD_FAILED, REJECTED, Refused, Unavailable
from app.domain.names import AdapterName
from app.domain.webhook import Delivery, Notice, Topic
from app.gateway import webhook_delivery
from app.store.catalogue import outbox
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.database import sqlite_url
from tests.store.making import begun, published, received, stored
from tests.support.gateway import KEY, SERVED, OpenHouse, Running, form
from tests.support.joining import Join
from tests.support.receiver import Receiver, receiving
from tests.support.waiting import STUCK_S, until

SECRET: Final = "0123456789abcdef" * 2
KEYS: Final = {
    tenant: new_key(f"{tenant}-app", [Role.UPLOAD, Role.CHAT, Role.ADMIN], tenant=tenant)
    for tenant in ("acme", "globex")
}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture
def settings(tmp_path: Path, receiver: Receiver) -> dict[str, Any]:
    file = tmp_path / "keys"
    file.write_text("".join(f"{key.line}\n" for _, key in KEYS.values()))
    return {"api_keys_file": file, "webhook_targets": receiver.origin, "webhook_secret": SECRET}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_delivery, "LOOK_S", 0.01)
    monkeypatch.setattr(webhook_delivery, "PAUSES_S", (0.01,) * 8)


@pytest_asyncio.fixture
async def running(open_gateway: OpenHouse, settings: dict[str, Any]) -> AsyncIterator[Running]:
    async with open_gateway(**settings) as made:
        yield made


async def ask(running: Running, who: str, method: str, path: str, **sent: Any) -> httpx.Response:
    key = KEY if who == "operator" else KEYS[who][0]
    return await running.http.request(method, path, headers={"Authorization": f"Bearer {key}"}, **sent)


async def hook(running: Running, receiver: Receiver, who: str = "acme", **more: Any) -> dict[str, Any]:
    answer = await ask(
        running, who, "POST", f"/tenants/{who}/webhooks", json={"url": f"{receiver.origin}/in?a=b", **more}
    )
    assert answer.status_code == 201, answer.text
    found = answer.json()
    assert isinstance(found, dict)
    return found


async def messages(running: Running, made: dict[str, Any], who: str = "acme") -> list[dict[str, Any]]:
    answer = await ask(running, who, "GET", f"/tenants/{who}/webhooks/{made['id']}/messages")
    assert answer.status_code == 200, answer.text
    found = answer.json()["messages"]
    assert isinstance(found, list)
    return found


async def settled(running: Running, made: dict[str, Any], delivery: str, count: int = 1) -> list[dict[str, Any]]:
    """Wait until so many messages of a webhook have this state, and return all of them."""
    async with asyncio.timeout(STUCK_S):
        while True:
            found = await messages(running, made)
            if sum(one["delivery"] == delivery for one in found) >= count:
                return found
            await asyncio.sleep(0.01)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_a_version_that_is_ready_is_told_signed(running: Running, receiver: Receiver) -> None:
    made = await hook(running, receiver)
    assert (await ask(running, "acme", "POST", "/adapters", files=form("sql"))).status_code == 201
    await until(lambda: bool(receiver.got))
    got = receiver.got[0]
    assert got.path == "/in?a=b"
    message = got.verified(made["secret"])
    assert message["type"] == "version.ready"
    assert message["data"].items() >= {"tenant": "acme", "adapter": "sql", "version": 1, "state": "ready"}.items()
    with pytest.raises(WebhookVerificationError):
        Verifier(made["secret"]).verify(got.body.replace(b"sql", b"sqm"), got.headers)
    (shown,) = await settled(running, made, "delivered")
    assert shown["id"] == got.headers["webhook-id"]
    assert (shown["topic"], shown["attempts"], shown["status"], shown["next_at"]) == ("version.ready", 1, 200, None)


async def test_the_consoles_page_shows_a_tenants_own_messages_only(running: Running, receiver: Receiver) -> None:
    made = await hook(running, receiver)
    await ask(running, "acme", "POST", f"/tenants/acme/webhooks/{made['id']}/ping")
    await settled(running, made, "delivered")
    page = f"/console/webhooks?webhook={made['id']}"
    own = await ask(running, "acme", "GET", page)
    assert (own.status_code, "a=b" in own.text, "delivered" in own.text) == (200, True, True)
    assert made["secret"] not in own.text
    theirs = await ask(running, "globex", "GET", page)
    assert theirs.status_code == 404
    assert "a=b" not in theirs.text
    assert (await ask(running, "globex", "GET", f"{page}&tenant=acme")).status_code == 403
    assert (await ask(running, "operator", "GET", f"{page}&tenant=acme")).status_code == 200


async def test_a_rejected_version_a_rollback_and_a_ping_are_told(running: Running, receiver: Receiver) -> None:
    made = await hook(running, receiver)
    assert (await ask(running, "acme", "POST", "/adapters", files=form("bad") | {"config": b"{}"})).status_code == 400
    await until(lambda: len(receiver.got) == 1)
    told = receiver.got[0].verified(made["secret"])
    assert (told["type"], told["data"]["code"], told["data"]["state"]) == ("version.rejected", "bad_config", "rejected")
    for seed in (0, 1):
        assert (await ask(running, "acme", "POST", "/adapters", files=form("sql", seed))).status_code == 201
    assert (await ask(running, "acme", "POST", "/adapters/sql/rollback?to=1")).status_code == 200
    answer = await ask(running, "acme", "POST", f"/tenants/acme/webhooks/{made['id']}/ping")
    assert answer.status_code == 202
    await until(lambda: len(receiver.got) == 5)
    assert sorted(receiver.types) == ["ping", "version.ready", "version.ready", "version.ready", "version.rejected"]
    ready = [one.verified(made["secret"])["data"]["version"] for one in receiver.got if b"version.ready" in one.body]
    assert sorted(ready) == [1, 1, 2]
    assert answer.json()["message"] in {one.headers["webhook-id"] for one in receiver.got}


async def test_only_chosen_topics_come_and_none_of_another_tenant(running: Running, receiver: Receiver) -> None:
    await hook(running, receiver, topics=["version.rejected"])
    await hook(running, receiver, "globex")
    assert (await ask(running, "acme", "POST", "/adapters", files=form("sql"))).status_code == 201
    assert (await ask(running, "acme", "POST", "/adapters", files=form("bad") | {"config": b"{}"})).status_code == 400
    await until(lambda: bool(receiver.got))
    last = await hook(running, receiver)
    await ask(running, "acme", "POST", f"/tenants/acme/webhooks/{last['id']}/ping")
    await until(lambda: "ping" in receiver.types)
    assert receiver.types == ["version.rejected", "ping"]


async def test_a_message_that_is_not_taken_comes_again_unchanged(running: Running, receiver: Receiver) -> None:
    receiver.statuses = [500, 302, 404]
    receiver.location = f"{receiver.origin}/elsewhere"
    made = await hook(running, receiver)
    assert (await ask(running, "acme", "POST", "/adapters", files=form("sql"))).status_code == 201
    (shown,) = await settled(running, made, "delivered")
    assert shown["attempts"] == 4
    assert {one.path for one in receiver.got} == {"/in?a=b"}, "no redirect was followed"
    assert len({one.headers["webhook-id"] for one in receiver.got}) == 1
    assert len({one.body for one in receiver.got}) == 1


@pytest.mark.parametrize(("status", "attempts"), [(500, 9), (410, 1)])
async def test_a_message_is_given_up(running: Running, receiver: Receiver, status: int, attempts: int) -> None:
    receiver.statuses = [status] * 20
    made = await hook(running, receiver)
    assert (await ask(running, "acme", "POST", "/adapters", files=form("sql"))).status_code == 201
    (shown,) = await settled(running, made, "given_up")
    assert (shown["attempts"], shown["status"], shown["next_at"]) == (attempts, status, None)
    assert "gateway_webhook_messages_total" in (await ask(running, "operator", "GET", "/metrics")).text


async def test_a_limit_is_told_once_an_hour(running: Running, receiver: Receiver) -> None:
    made = await hook(running, receiver)
    limits = {"requests_per_minute": 0, "adapters": 0}
    assert (await ask(running, "operator", "PUT", "/tenants/acme/limits", json=limits)).status_code == 200
    for _ in range(5):
        body = {"model": SERVED, "messages": [{"role": "user", "content": "hello"}]}
        assert code(await ask(running, "acme", "POST", "/v1/chat/completions", json=body)) == (429, "rate_limited")
        assert code(await ask(running, "acme", "POST", "/adapters", files=form("sql"))) == (403, "quota_exceeded")
    await until(lambda: len(receiver.got) >= 2)
    await ask(running, "acme", "POST", f"/tenants/acme/webhooks/{made['id']}/ping")
    await until(lambda: "ping" in receiver.types)
    told = [one.verified(made["secret"]) for one in receiver.got if b'"ping"' not in one.body]
    hours = 2 if datetime.now(UTC).minute == 0 else 1  # the test may begin in one hour and end in the next
    assert {one["data"]["limit"] for one in told} == {"requests_per_minute", "adapters"}
    assert {one["type"] for one in told} == {"quota.reached"}
    assert len(told) <= 2 * hours


async def test_messages_wait_while_the_gateway_is_away(
    open_gateway: OpenHouse, settings: dict[str, Any], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_delivery, "LOOK_S", 3600.0)
    async with open_gateway(**settings) as running:
        made = await hook(running, receiver)
        assert (await ask(running, "acme", "POST", "/adapters", files=form("sql"))).status_code == 201
        assert not receiver.got
    monkeypatch.setattr(webhook_delivery, "LOOK_S", 0.01)
    async with open_gateway(**settings) as running:
        await until(lambda: bool(receiver.got))
        assert receiver.got[0].verified(made["secret"])["data"]["adapter"] == "sql"


async def test_no_message_tells_what_was_not_committed(
    running: Running, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await hook(running, receiver)
    catalogue = running.gateway.context.uploads.components.catalogue
    told: Callable[..., None] = outbox.tell_version

    def then_fail(*args: Any, **more: Any) -> None:
        told(*args, **more)
        raise RuntimeError("after the message was written")

    monkeypatch.setattr(outbox, "tell_version", then_fail)
    assert (await ask(running, "acme", "POST", "/adapters", files=form("bad") | {"config": b"{}"})).status_code == 500
    monkeypatch.undo()
    assert catalogue.webhooks.messages("acme", made["id"]) == ()


async def test_a_deleted_webhook_gets_nothing_more(running: Running, receiver: Receiver) -> None:
    made, path = await hook(running, receiver), "/tenants/acme/webhooks"
    assert [one["id"] for one in (await ask(running, "acme", "GET", path)).json()["webhooks"]] == [made["id"]]
    assert (await ask(running, "acme", "DELETE", f"{path}/{made['id']}")).status_code == 204
    for method, of in (("DELETE", ""), ("POST", "/ping"), ("GET", "/messages")):
        answer = await ask(running, "acme", method, f"{path}/{made['id']}{of}")
        assert code(answer) == (404, "webhook_not_found")
    assert (await ask(running, "acme", "POST", "/adapters", files=form("sql"))).status_code == 201
    other = await hook(running, receiver)
    await ask(running, "acme", "POST", f"{path}/{other['id']}/ping")
    await until(lambda: bool(receiver.got))
    assert receiver.types == ["ping"]


async def test_another_tenants_webhooks_do_not_exist(running: Running, receiver: Receiver) -> None:
    made = await hook(running, receiver)
    assert (await ask(running, "globex", "GET", "/tenants/acme/webhooks")).status_code == 403
    for method, of in (("DELETE", ""), ("POST", "/ping"), ("GET", "/messages")):
        answer = await ask(running, "globex", method, f"/tenants/globex/webhooks/{made['id']}{of}")
        assert code(answer) == (404, "webhook_not_found")
    assert "secret" not in (await ask(running, "acme", "GET", "/tenants/acme/webhooks")).text


@pytest.mark.hostile("U27")
@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/",
        "https://example.com/",
        "http://127.0.0.1.example.com/",
        "ftp://127.0.0.1/",
        "http://user@127.0.0.1/",
        "http://127.0.0.1\\@example.com/",
        "HTTP://127.0.0.1/",
        "http://127.0.0.1/#there",
        "http://127.0.0.1/\r\nx: y",
        "http://[::ffff:127.0.0.1]/",
        "",
        "http://169.254.169.254/latest/meta-data/",
    ],
)
async def test_a_target_that_the_operator_did_not_name_is_refused(running: Running, url: str) -> None:
    answer = await ask(running, "acme", "POST", "/tenants/acme/webhooks", json={"url": url})
    assert code(answer) == (422, "target_not_allowed")
    assert answer.json()["error"]["param"] == "url"


@pytest.mark.parametrize("topics", [["version.gone"], ["ping"], ["version.ready", "x"]])
async def test_an_unknown_topic_is_refused_with_those_that_exist(
    running: Running, receiver: Receiver, topics: list[str]
) -> None:
    answer = await ask(
        running, "acme", "POST", "/tenants/acme/webhooks", json={"url": receiver.origin, "topics": topics}
    )
    assert code(answer) == (400, "bad_request")
    assert "version.ready" in answer.json()["error"]["message"]


async def test_a_tenant_has_a_bounded_number_of_webhooks(
    running: Running, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.store.catalogue.webhooks.MAX_WEBHOOKS", 2)
    for _ in range(2):
        await hook(running, receiver)
    answer = await ask(running, "acme", "POST", "/tenants/acme/webhooks", json={"url": receiver.origin})
    assert code(answer) == (409, "too_many_webhooks")
    await hook(running, receiver, "globex")


async def test_messages_that_wait_for_one_webhook_are_bounded(
    running: Running, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MAX_WAITING", 3)
    monkeypatch.setattr(webhook_delivery, "PAUSES_S", (3600.0,))
    receiver.statuses = [500] * 20
    made = await hook(running, receiver)
    for seed in range(6):
        assert (await ask(running, "acme", "POST", "/adapters", files=form("sql", seed))).status_code == 201
    assert len(await messages(running, made)) == 3
    answer = await ask(running, "acme", "POST", f"/tenants/acme/webhooks/{made['id']}/ping")
    assert code(answer) == (429, "rate_limited")


async def test_a_ping_waits_for_the_one_before(
    running: Running, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_delivery, "PAUSES_S", (3600.0,))
    receiver.statuses = [500]
    made = await hook(running, receiver)
    answers = [await ask(running, "acme", "POST", f"/tenants/acme/webhooks/{made['id']}/ping") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 429]


async def test_without_targets_there_are_no_webhooks(open_gateway: OpenHouse) -> None:
    async with open_gateway() as running:
        answer = await ask(
            running, "operator", "POST", "/tenants/default/webhooks", json={"url": "https://example.com/"}
        )
        assert code(answer) == (422, "target_not_allowed")


async def test_receivers_that_never_answer_hold_up_their_own_messages_only(
    open_gateway: OpenHouse, settings: dict[str, Any], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.notify.post.ANSWER_S", 2 * STUCK_S)
    monkeypatch.setattr("app.notify.post.WHOLE_S", 2 * STUCK_S)
    with receiving() as quick:
        async with open_gateway(**settings | {"webhook_targets": f"{receiver.origin},{quick.origin}"}) as running:
            await _hold_up(running, receiver, quick)


async def _hold_up(running: Running, receiver: Receiver, quick: Receiver) -> None:
    receiver.hold.clear()
    for one in [await hook(running, receiver) for _ in range(10)]:
        await ask(running, "acme", "POST", f"/tenants/acme/webhooks/{one['id']}/ping")
    await until(lambda: len(receiver.got) == webhook_delivery.OF_ONE_TENANT)
    made = await hook(running, quick, "globex")
    await ask(running, "globex", "POST", f"/tenants/globex/webhooks/{made['id']}/ping")
    await until(lambda: bool(quick.got))
    assert len(receiver.got) == webhook_delivery.OF_ONE_TENANT
    receiver.hold.set()
    await until(lambda: len(receiver.got) == 10)


async def test_two_gateways_send_each_message_once(join: Join, receiver: Receiver) -> None:
    settings = {"webhook_targets": receiver.origin, "webhook_secret": SECRET}
    one, other = await join(**settings), await join(**settings)
    answer = await ask(one, "operator", "POST", "/tenants/default/webhooks", json={"url": receiver.origin})
    made = answer.json()["id"]
    for seed in range(40):
        name, where = f"a{seed % 2}", (one, other)[seed % 2]
        assert (await ask(where, "operator", "POST", "/adapters", files=form(name, seed))).status_code == 201
    await until(lambda: len(receiver.got) >= 40)
    store = other.gateway.context.uploads.components.catalogue.webhooks
    await until(lambda: not any(one.delivery is Delivery.WAITING for one in store.messages("default", made)))
    assert len(receiver.got) == 40
    assert len({got.headers["webhook-id"] for got in receiver.got}) == 40


async def test_a_killed_gateways_message_is_sent_by_another_one(
    join: Join, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"webhook_targets": receiver.origin, "webhook_secret": SECRET}
    one = await join(**settings)
    answer = await ask(one, "operator", "POST", "/tenants/default/webhooks", json={"url": receiver.origin})
    await one.gateway.context.webhooks.stop()
    store = one.gateway.context.uploads.components.catalogue.webhooks
    store.ping("default", answer.json()["id"])
    with monkeypatch.context() as patch:
        patch.setattr("app.store.catalogue.webhooks.LEASE_S", 0.1)
        (claimed,) = store.claim(16, 4, {})  # and then it is killed
    receiver.hold.clear()
    await join(**settings)
    await until(lambda: bool(receiver.got))
    assert receiver.got[0].headers["webhook-id"] == claimed.message
    store.record(claimed, Delivery.GIVEN_UP, status=None, problem="too late")  # while the second try is going on
    (shown,) = store.messages("default", answer.json()["id"])
    assert (shown.attempts, shown.delivery, shown.problem) == (2, Delivery.WAITING, "")
    receiver.hold.set()


def test_old_messages_are_forgotten_and_waiting_ones_kept(tmp_path: Path) -> None:
    catalogue = Catalogue(sqlite_url(tmp_path / "c.db"))
    store = catalogue.webhooks
    made = store.create("acme", "https://example.com/", [Topic.READY])
    store.ping("acme", made.id)
    (sending,) = store.claim(16, 4, {})
    store.record(sending, Delivery.DELIVERED, status=200, problem="")
    waiting = store.ping("acme", made.id)
    with pytest.raises(Refused):
        store.ping("acme", made.id)
    store.forget(timedelta(hours=1).total_seconds())
    assert len(store.messages("acme", made.id)) == 2
    store.forget(-1.0)
    assert [one.id for one in store.messages("acme", made.id)] == [waiting]
    catalogue.close()


def test_a_tenant_without_a_message_on_its_way_comes_before_those_that_have_some(tmp_path: Path) -> None:
    catalogue = Catalogue(sqlite_url(tmp_path / "c.db"))
    store = catalogue.webhooks
    for tenant in ("a", "b", "c", "d", "late"):
        for _ in range(1 if tenant == "late" else 6):
            store.ping(tenant, store.create(tenant, "https://example.com/", [Topic.READY]).id)
    claimed = store.claim(16, 4, {})
    assert {one.tenant for one in claimed} == {"a", "b", "c", "d", "late"}
    assert {one.tenant for one in store.claim(1, 4, {"a": 3, "b": 4, "c": 3, "d": 2})} == {"d"}
    assert store.claim(4, 4, {"a": 4, "b": 4, "c": 4, "d": 4}) == ()
    catalogue.close()


def test_ended_messages_of_a_webhook_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.store.catalogue.webhooks.KEPT", 2)
    catalogue = Catalogue(sqlite_url(tmp_path / "c.db"))
    store = catalogue.webhooks
    made = store.create("acme", "https://example.com/", list(Topic))
    store.notice([Notice("acme", Topic.QUOTA, {"limit": "adapters"}, "once")])
    for _ in range(5):
        store.ping("acme", made.id)
        for sending in store.claim(16, 4, {}):
            store.record(sending, Delivery.DELIVERED, status=200, problem="")
    assert sorted(one.topic for one in store.messages("acme", made.id)) == ["ping", "ping", "quota.reached"]
    store.notice([Notice("acme", Topic.QUOTA, {"limit": "adapters"}, "once")])
    assert len(store.messages("acme", made.id)) == 3
    catalogue.close()


def test_each_end_of_a_version_has_its_topic(tmp_path: Path) -> None:
    catalogue = Catalogue(sqlite_url(tmp_path / "c.db"))
    store, name = catalogue.webhooks, AdapterName("acme/sql")
    store.create("acme", "https://example.com/", list(Topic))
    catalogue.record_failed(name, stored(catalogue, 1, name).number, Unavailable(LOAD_FAILED, "the engine refused it"))
    catalogue.record_not_passed(stored(catalogue, 2, name), Refused(CANARIES_FAILED, "three of 48"), "{}")
    served = published(catalogue, 3, name)
    for _ in range(2):  # told once
        served = catalogue.record_asked_again(served, "e" * 64, "{}", passed=False)
    catalogue.record_rejected(name, begun(catalogue, name, received(4)).number, Refused(REJECTED, "harmful"))
    told = [json.loads(sending.body) for sending in store.claim(16, 16, {})]
    assert sorted((body["type"], body["data"]["version"], body["data"]["code"]) for body in told) == [
        ("version.canaries_failed", 2, "canaries_failed"),
        ("version.failed", 1, "load_failed"),
        ("version.ready", 3, None),
        ("version.rejected", 4, "rejected"),
        ("version.withheld", 3, "canaries_failed"),
    ]
    catalogue.close()
