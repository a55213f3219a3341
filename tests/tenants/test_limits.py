"""Limits of tenants: stock, flows and concurrency, for one gateway and for several that share a catalogue."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import httpx
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from app.domain.api_keys import Role, new_key
from app.domain.errors import STORE_AWAY, Unavailable
from app.domain.tenant_limits import MOST, Bucket, Flow, TenantLimits, limits_from
from app.gateway import tenant_account
from app.store.catalogue import limits as limit_store
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.limits import Draw, LimitStore
from tests.support.gateway import KEY, SERVED, OpenHouse, Running, form
from tests.support.joining import Join
from tests.support.waiting import STUCK_S, until

KEYS: Final = {
    tenant: new_key(f"{tenant}-app", [Role.UPLOAD, Role.CHAT, Role.ADMIN], tenant=tenant)
    for tenant in ("acme", "globex")
}
EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text("".join(f"{key.line}\n" for _, key in KEYS.values()))
    return file


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a draw may take longer than requests wait for one, and buckets refill while a test goes on."""
    monkeypatch.setattr(tenant_account, "DRAW_S", STUCK_S)
    monkeypatch.setattr(tenant_account, "time", SimpleNamespace(monotonic=lambda: 0.0))


@pytest_asyncio.fixture
async def running(open_gateway: OpenHouse, keys_file: Path) -> AsyncIterator[Running]:
    async with open_gateway(api_keys_file=keys_file) as made:
        yield made


async def ask(running: Running, who: str, method: str, path: str, **sent: Any) -> httpx.Response:
    key = KEY if who == "operator" else KEYS[who][0]
    return await running.http.request(method, path, headers={"Authorization": f"Bearer {key}"}, **sent)


async def limit(running: Running, tenant: str = "acme", **limits: int | None) -> None:
    answer = await ask(running, "operator", "PUT", f"/tenants/{tenant}/limits", json=limits)
    assert answer.status_code == 200, answer.text


async def chat(running: Running, who: str = "acme", **more: Any) -> httpx.Response:
    body = {"model": SERVED, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, **more}
    return await ask(running, who, "POST", "/v1/chat/completions", json=body)


async def push(running: Running, name: str, seed: int = 0, who: str = "acme") -> httpx.Response:
    return await ask(running, who, "POST", "/adapters", files=form(name, seed))


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def remaining(answer: httpx.Response, flow: str) -> int:
    return int(answer.headers[f"x-ratelimit-remaining-{flow}"])


# which limits there are, and who sets them


async def test_the_operator_sets_limits_and_the_tenant_sees_its_own(running: Running) -> None:
    await limit(running, adapters=2, tokens_per_minute=1000)
    shown = (await ask(running, "acme", "GET", "/tenants/acme/limits")).json()
    assert {name: value for name, value in shown["limits"].items() if value is not None} == {
        "adapters": 2,
        "tokens_per_minute": 1000,
    }
    assert shown["stored"] == {"adapters": 0, "versions": 0, "bytes": 0}
    assert code(await ask(running, "acme", "PUT", "/tenants/acme/limits", json={})) == (403, "forbidden")
    assert code(await ask(running, "globex", "GET", "/tenants/acme/limits")) == (403, "forbidden")
    assert (await ask(running, "operator", "GET", "/tenants/globex/limits")).json()["limits"]["adapters"] is None
    await limit(running)
    assert (await ask(running, "acme", "GET", "/tenants/acme/limits")).json()["limits"]["adapters"] is None


@pytest.mark.parametrize(
    "body",
    [{"adapters": -1}, {"adapters": MOST + 1}, {"adapters": True}, {"adapters": "2"}, {"chats": 1}, [], "x"],
)
async def test_other_limits_are_refused(running: Running, body: Any) -> None:
    answer = await ask(running, "operator", "PUT", "/tenants/acme/limits", json=body)
    assert answer.status_code == 400, answer.text


async def test_a_body_that_was_forgotten_does_not_lift_the_limits(running: Running) -> None:
    assert (await ask(running, "operator", "PUT", "/tenants/acme/limits")).status_code == 400


async def test_limits_outlive_a_restart(open_gateway: OpenHouse, keys_file: Path) -> None:
    async with open_gateway(api_keys_file=keys_file) as running:
        await limit(running, requests_per_minute=1)
    async with open_gateway(api_keys_file=keys_file) as running:
        assert [(await chat(running)).status_code for _ in range(2)] == [200, 429]


# stock


async def test_adapters_and_versions_are_limited_and_deleting_makes_room(running: Running) -> None:
    await limit(running, adapters=1, versions=2)
    assert (await push(running, "one")).status_code == 201
    refused = await push(running, "two", 1)
    assert code(refused) == (403, "quota_exceeded")
    assert "1 adapters" in refused.json()["error"]["message"]
    assert (await push(running, "one", 1)).status_code == 201
    assert code(await push(running, "one", 2)) == (403, "quota_exceeded")
    assert (await push(running, "one", 1)).status_code == 200, "the same bytes again need no room"
    assert (await push(running, "two", who="globex")).status_code == 201, "another tenant's limits are its own"
    shown = (await ask(running, "acme", "GET", "/tenants/acme/limits")).json()["stored"]
    assert (shown["adapters"], shown["versions"]) == (1, 2)
    assert (await ask(running, "acme", "DELETE", "/adapters/one")).status_code == 204
    assert (await push(running, "two", 1)).status_code == 201


async def test_a_tenant_without_limits_of_its_own_has_the_default(open_gateway: OpenHouse, keys_file: Path) -> None:
    default = "adapters=1, requests_per_minute=2, uploads_per_day=3"
    async with open_gateway(api_keys_file=keys_file, tenant_limits=default) as running:
        shown = (await ask(running, "acme", "GET", "/tenants/acme/limits")).json()["limits"]
        assert {name: most for name, most in shown.items() if most is not None} == {
            "adapters": 1,
            "requests_per_minute": 2,
            "uploads_per_day": 3,
        }
        assert (await push(running, "a")).status_code == 201
        assert code(await push(running, "b", 1)) == (403, "quota_exceeded")
        assert [(await chat(running)).status_code for _ in range(3)] == [200, 200, 429]
        assert (await chat(running, "globex")).headers["x-ratelimit-remaining-requests"] == "1", "each has its own"
        for _ in range(4):
            assert (await chat(running, "operator")).status_code == 200, "the operator's own tenant has none"
        await limit(running, adapters=5)
        assert (await chat(running)).status_code == 200, "what was set, nothing else, is in force"
        assert (await push(running, "b", 1)).status_code == 201
        await limit(running, "globex")
        assert [(await chat(running, "globex")).status_code for _ in range(3)] == [200] * 3
    async with open_gateway(api_keys_file=keys_file, tenant_limits=default) as running:
        assert [(await chat(running, "globex")).status_code for _ in range(3)] == [200] * 3, "no limit, also later"


@pytest.mark.parametrize("text", ["adapters", "adapters=-1", "adapters=x", "chats=1", "adapters=1,adapters=2"])
def test_default_limits_are_read_strictly(text: str) -> None:
    with pytest.raises(ValueError, match="adapters=50"):
        limits_from(text)


async def test_bytes_are_limited(running: Running) -> None:
    assert (await push(running, "one")).status_code == 201
    held = (await ask(running, "acme", "GET", "/tenants/acme/limits")).json()["stored"]["bytes"]
    sent = form("one")
    assert held == len(sent["config"][1]) + len(sent["weights"][1])
    await limit(running, bytes=2 * held - 1)
    assert code(await push(running, "two", 1)) == (403, "quota_exceeded")
    await limit(running, bytes=3 * held)
    assert (await push(running, "two", 1)).status_code == 201


async def test_rejected_versions_take_no_room(open_gateway: OpenHouse, keys_file: Path) -> None:
    async with open_gateway(api_keys_file=keys_file, max_pruned_share=0.0, tau=-1e9) as running:
        await limit(running, versions=1)
        for seed in range(3):
            assert code(await push(running, "one", seed)) == (422, "rejected")


async def test_a_days_uploads_outlive_a_restart(open_gateway: OpenHouse, keys_file: Path) -> None:
    async with open_gateway(api_keys_file=keys_file) as running:
        await limit(running, uploads_per_day=1)
        assert (await push(running, "one")).status_code == 201
    async with open_gateway(api_keys_file=keys_file) as running:
        refused = await push(running, "one", 1)
        assert code(refused) == (429, "rate_limited")
        assert 80_000 < int(refused.headers["retry-after"]) <= 86_400
        assert (await push(running, "one", who="globex")).status_code == 201


async def test_screenings_are_limited(running: Running) -> None:
    await limit(running, screenings_per_day=1)
    answers = [await ask(running, "acme", "POST", "/screen", files=form("one")) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]


# flows


async def test_requests_are_limited_with_openais_headers(running: Running) -> None:
    await limit(running, requests_per_minute=3)
    answers = [await chat(running) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert [remaining(answer, "requests") for answer in answers] == [2, 1, 0]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "3"
    assert answers[0].headers["x-ratelimit-reset-requests"].endswith("s")
    assert "x-ratelimit-limit-tokens" not in answers[0].headers
    refused = await chat(running)
    assert code(refused) == (429, "rate_limited")
    assert "3 requests a minute" in refused.json()["error"]["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert remaining(refused, "requests") == 0
    other = await chat(running, "globex")
    assert other.status_code == 200
    assert not [name for name in other.headers if name.startswith("x-ratelimit")]


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_count_as_the_engine_told_them(running: Running, stream: bool) -> None:
    await limit(running, tokens_per_minute=600)
    assert (await chat(running, max_tokens=400, stream=stream)).status_code == 200
    shown = (await ask(running, "acme", "GET", "/usage")).json()["usage"]
    counted = sum(line["prompt_tokens"] + line["completion_tokens"] for line in shown)
    assert counted > 0
    meter = running.gateway.context.meter
    left = int(meter.headers("acme")["x-ratelimit-remaining-tokens"])
    assert left == 600 - counted


async def test_what_was_used_beyond_the_limit_is_waited_for(running: Running) -> None:
    await limit(running, tokens_per_minute=4)
    assert (await chat(running)).status_code == 200, "a request for more than a minute's tokens takes a minute's"
    refused = await chat(running)
    assert code(refused) == (429, "rate_limited")
    assert int(refused.headers["retry-after"]) > 60, "it used more than that"
    assert remaining(refused, "tokens") == 0


async def test_a_request_that_no_engine_took_uses_no_tokens(running: Running) -> None:
    await limit(running, tokens_per_minute=100, concurrent_requests=1)
    running.simulator.faults["chat"] = "503"
    await running.simulator.stop()
    for _ in range(5):
        assert (await chat(running, max_tokens=90)).status_code in (502, 503)
    assert int(running.gateway.context.meter.headers("acme")["x-ratelimit-remaining-tokens"]) == 100


async def test_a_request_that_the_engine_refuses_uses_no_tokens(running: Running) -> None:
    await limit(running, tokens_per_minute=100)
    running.simulator.faults["chat"] = "400"
    long = [{"role": "user", "content": "x" * 4000}]
    for _ in range(3):
        assert (await chat(running, messages=long)).status_code == 400
    assert int(running.gateway.context.meter.headers("acme")["x-ratelimit-remaining-tokens"]) == 100


async def test_a_whole_answer_whose_client_left_counts_as_asked_for(running: Running) -> None:
    await limit(running, tokens_per_minute=1000)
    running.simulator.faults["core"] = "busy"
    leaving = asyncio.create_task(chat(running, max_tokens=500))
    await until(lambda: running.simulator.running == 1)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    running.simulator.faults.clear()
    await until(lambda: running.simulator.running == 0)
    assert int(running.gateway.context.meter.headers("acme")["x-ratelimit-remaining-tokens"]) < 600


async def test_a_tenant_at_its_quota_can_be_rescreened(open_gateway: OpenHouse, keys_file: Path) -> None:
    async with open_gateway(api_keys_file=keys_file, keep_originals=True) as running:
        assert (await push(running, "one")).status_code == 201
        await limit(running, versions=1)
    async with open_gateway(api_keys_file=keys_file, keep_originals=True, tau=1e9) as running:
        again = await ask(running, "acme", "POST", "/adapters/one/rescreen")
        assert again.status_code in (200, 201), again.text
        assert (await ask(running, "acme", "GET", "/tenants/acme/limits")).json()["stored"]["versions"] == 2
        assert code(await push(running, "one", 1)) == (403, "quota_exceeded")


async def test_a_client_that_leaves_has_used_what_was_sent(running: Running) -> None:
    await limit(running, tokens_per_minute=1000, concurrent_requests=1)
    running.simulator.faults["chat"] = "slow"
    leaving = asyncio.create_task(chat(running, stream=True, max_tokens=500))
    await until(lambda: running.simulator.chunks > 5)
    meter = running.gateway.context.meter
    assert int(meter.headers("acme")["x-ratelimit-remaining-tokens"]) < 700, "taken as asked for"
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await until(lambda: int(meter.headers("acme")["x-ratelimit-remaining-tokens"]) > 900)
    running.simulator.faults.clear()
    assert (await chat(running)).status_code == 200, "its slot is free"


async def test_concurrent_requests_are_limited(running: Running) -> None:
    await limit(running, concurrent_requests=2)
    running.simulator.faults["core"] = "busy"
    two = [asyncio.create_task(chat(running)) for _ in range(2)]
    await until(lambda: running.simulator.running == 2)
    refused = await chat(running)
    assert code(refused) == (429, "rate_limited")
    assert "2 requests at a time" in refused.json()["error"]["message"]
    others = asyncio.create_task(chat(running, "globex"))
    await until(lambda: running.simulator.running == 3)
    running.simulator.faults.clear()
    assert {answer.status_code for answer in await asyncio.gather(*two, others)} == {200}
    assert (await chat(running)).status_code == 200
    await limit(running, concurrent_requests=0)
    assert (await chat(running)).status_code == 429
    await limit(running)
    assert (await chat(running)).status_code == 200


# several gateways


@asynccontextmanager
async def three(
    join: Join, keys_file: Path, *, default: bool = False, **limits: int | None
) -> AsyncIterator[list[Running]]:
    """Three gateways of one catalogue, on each of which these limits are in force. default: as those of every tenant."""
    every = ",".join(f"{name}={most}" for name, most in limits.items()) if default else ""
    gateways = [await join(api_keys_file=keys_file, tenant_limits=every) for _ in range(3)]
    if not default:
        await limit(gateways[0], "acme", **limits)
    for one in gateways:
        await one.gateway.context.meter.follow()
    yield gateways


@pytest.mark.parametrize("default", [False, True], ids=["set", "by default"])
async def test_a_minutes_requests_hold_over_three_gateways(join: Join, keys_file: Path, default: bool) -> None:
    async with three(join, keys_file, default=default, requests_per_minute=100) as gateways:
        began = asyncio.get_running_loop().time()
        answers = [await asyncio.gather(*(chat(one) for one in gateways)) for _ in range(50)]
        seconds = asyncio.get_running_loop().time() - began
        admitted = sum(answer.status_code == 200 for each in answers for answer in each)
        refilled = seconds * 100 / 60
        print(f"{admitted} of 150 requests at three gateways, in {seconds:.1f} s; the limit is 100 + {refilled:.1f}")
        assert 90 <= admitted <= 100 + refilled + 1


async def test_a_minutes_tokens_hold_over_three_gateways(join: Join, keys_file: Path) -> None:
    async with three(join, keys_file, tokens_per_minute=2000) as gateways:
        began = asyncio.get_running_loop().time()
        used = 0
        for _ in range(100):
            for answer in await asyncio.gather(*(chat(one, max_tokens=30) for one in gateways)):
                used += answer.json()["usage"]["total_tokens"] if answer.status_code == 200 else 0
        refilled = (asyncio.get_running_loop().time() - began) * 2000 / 60
        print(f"{used} tokens at three gateways; the limit is 2,000 + {refilled:.0f}")
        assert used <= 1.1 * (2000 + refilled)


async def test_concurrency_holds_over_three_gateways_and_moves_to_where_it_is_needed(
    join: Join, keys_file: Path
) -> None:
    async with three(join, keys_file, concurrent_requests=4) as gateways:
        for one in gateways:
            one.simulator.faults["core"] = "busy"
        tasks = [asyncio.create_task(chat(one)) for one in gateways for _ in range(3)]
        await until(lambda: sum(task.done() for task in tasks) == 5)
        assert sum(one.simulator.running for one in gateways) == 4
        for one in gateways:
            one.simulator.faults.clear()
        assert sorted(answer.status_code for answer in await asyncio.gather(*tasks)) == [200] * 4 + [429] * 5
        async with asyncio.timeout(STUCK_S):  # all four at one gateway, once the others have given theirs back
            while True:
                gateways[2].simulator.faults["core"] = "busy"
                four = [asyncio.create_task(chat(gateways[2])) for _ in range(4)]
                await until(
                    lambda four=four: sum(task.done() for task in four) + gateways[2].simulator.running == 4  # type: ignore[misc]
                )
                gateways[2].simulator.faults.clear()
                if all(answer.status_code == 200 for answer in await asyncio.gather(*four)):
                    break


async def test_a_gateway_whose_catalogue_is_away_counts_alone(
    join: Join, keys_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with three(join, keys_file, requests_per_minute=10, concurrent_requests=3) as gateways:

        def away(*_: Any) -> Any:
            raise Unavailable(STORE_AWAY, "gone")

        monkeypatch.setattr(LimitStore, "draw", away)
        statuses = [(await chat(gateways[0])).status_code for _ in range(12)]
        assert statuses[:10] == [200] * 10
        assert statuses[11] == 429
        monkeypatch.undo()
        assert (await chat(gateways[1])).status_code == 200


async def test_a_catalogue_that_hangs_holds_no_request(
    join: Join, keys_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenant_account, "DRAW_S", 0.05)
    async with three(join, keys_file, requests_per_minute=10) as gateways:
        released = threading.Event()

        def hang(*_: Any) -> Any:
            released.wait(STUCK_S)
            raise Unavailable(STORE_AWAY, "gone")

        monkeypatch.setattr(LimitStore, "draw", hang)
        try:
            statuses = [(await chat(gateways[0])).status_code for _ in range(12)]
        finally:
            released.set()
        assert statuses[:10] == [200] * 10
        assert statuses[11] == 429


# the parts


@pytest.fixture
def store(catalogue_url: str) -> Any:
    made = Catalogue(catalogue_url)
    yield made.limits
    made.close()


def test_draws_never_exceed_a_limit(store: LimitStore) -> None:
    store.set("acme", TenantLimits(requests_per_minute=100, concurrent_requests=7))
    got = store.draw("a", [Draw("acme", Flow.REQUESTS, 70), Draw("acme", Flow.CONCURRENT, 5)])
    assert [round(one.got) for one in got] == [70, 5]
    more = store.draw("b", [Draw("acme", Flow.REQUESTS, 70), Draw("acme", Flow.CONCURRENT, 5)])
    assert 30 <= more[0].got < 31
    assert more[1].got == 2
    back = store.draw("a", [Draw("acme", Flow.REQUESTS, 0, back=50), Draw("acme", Flow.CONCURRENT, keep=1)])
    assert back[0].left >= 50
    assert store.draw("b", [Draw("acme", Flow.CONCURRENT, 9, keep=2)])[0].got == 4
    store.leave("b")
    assert store.draw("a", [Draw("acme", Flow.CONCURRENT, 9, keep=1)])[0].got == 6


def test_draws_of_several_gateways_exclude_each_other_also_under_the_default(catalogue_url: str) -> None:
    """Nothing is stored about such a tenant at first: no row to lock."""
    catalogues = [Catalogue(catalogue_url, default_limits=TenantLimits(uploads_per_day=100)) for _ in range(4)]

    def drawn(number: int) -> float:
        flows = [Draw("acme", Flow.UPLOADS, 1.0)]
        return sum(catalogues[number].limits.draw(f"gateway-{number}", flows)[0].got for _ in range(40))

    try:
        with ThreadPoolExecutor(4) as threads:
            assert 100 <= sum(threads.map(drawn, range(4))) < 101
    finally:
        for catalogue in catalogues:
            catalogue.close()


def test_slots_of_a_gateway_that_is_gone_lapse(store: LimitStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.set("acme", TenantLimits(concurrent_requests=3))
    monkeypatch.setattr(limit_store, "SLOTS_S", -1.0)
    assert store.draw("a", [Draw("acme", Flow.CONCURRENT, 3)])[0].got == 3
    monkeypatch.undo()
    assert store.draw("b", [Draw("acme", Flow.CONCURRENT, 3)])[0].got == 3


def test_a_debt_is_paid_before_more_is_drawn(store: LimitStore) -> None:
    store.set("acme", TenantLimits(tokens_per_minute=60))
    (owed,) = store.draw("a", [Draw("acme", Flow.TOKENS, back=-100)])
    assert -40 <= owed.left < -35
    assert store.draw("b", [Draw("acme", Flow.TOKENS, 10)])[0].got == 0


@given(
    steps=st.lists(st.tuples(st.floats(-100, 5000), st.floats(0, 500)), max_size=30),
    limit=st.integers(0, 1000),
)
def test_a_bucket_gives_no_more_than_its_limit_and_what_refills(steps: list[tuple[float, float]], limit: int) -> None:
    bucket, given_, now, latest = Bucket(limit, EPOCH), 0.0, EPOCH, EPOCH
    forward = 0.0
    for seconds, wanted in steps:
        now += timedelta(seconds=seconds)
        forward += max(0.0, seconds)
        bucket = bucket.refilled(limit, 60.0, now)
        assert bucket.left <= limit
        got = max(0.0, min(wanted, bucket.left))
        bucket, given_ = bucket.less(got), given_ + got
        latest = max(latest, now)
    assert given_ <= limit + forward * limit / 60.0 + 1e-6 * (1 + given_)
