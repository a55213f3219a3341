"""Usage of tenants: counted by the hour, durable, never twice, and shown to whom it concerns."""

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest

from app.domain.api_keys import Role, new_key
from app.domain.errors import STORE_AWAY, Unavailable
from app.domain.tenant_limits import Flow
from app.domain.usage import Usage, UsedBy, hour_of, one_request
from app.observe.metric_registry import Registry
from app.observe.tenant_metrics import TenantMetrics
from app.serve.routing_table import Target
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.usage import UsageStore
from tests.support.gateway import KEY, SERVED, OpenHouse, Running, form
from tests.support.postgres import Server

KEYS: Final = {
    "acme": new_key("app", [Role.UPLOAD, Role.CHAT], tenant="acme"),
    "acme-admin": new_key("admin", [Role.ADMIN], tenant="acme"),
    "globex": new_key("app", [Role.UPLOAD, Role.CHAT, Role.ADMIN], tenant="globex"),
    "operator": (KEY, None),
}
HOUR: Final = hour_of(datetime.now(UTC))


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    lines = [stored.line for _, stored in KEYS.values() if stored]
    file.write_text("\n".join([lines[0], lines[1], lines[2].replace("app", "globex-app", 1)]))
    return file


@pytest_asyncio.fixture
async def running(open_gateway: OpenHouse, keys_file: Path) -> AsyncIterator[Running]:
    async with open_gateway(api_keys_file=keys_file) as made:
        yield made


async def ask(running: Running, who: str, method: str, path: str, **sent: Any) -> httpx.Response:
    return await running.http.request(method, path, headers={"Authorization": f"Bearer {KEYS[who][0]}"}, **sent)


async def chat(running: Running, who: str, model: str, **more: Any) -> dict[str, int]:
    """Chat, and return the engine's counts."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], **more}
    answer = await ask(running, who, "POST", "/v1/chat/completions", json=body)
    assert answer.status_code == 200
    if not more.get("stream"):
        found: dict[str, int] = answer.json()["usage"]
        return found
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    return next((event["usage"] for event in events if event.get("usage")), {})


async def usage(running: Running, who: str, **query: Any) -> list[dict[str, Any]]:
    answer = await ask(running, who, "GET", "/usage", params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["usage"]
    return found


async def test_requests_and_tokens_are_counted_by_key_adapter_and_version(running: Running) -> None:
    assert (await ask(running, "acme", "POST", "/adapters", files=form("sql"))).status_code == 201
    counts = [await chat(running, "acme", model) for model in ("sql", "sql@1", SERVED)]
    await chat(running, "acme-admin", "sql", stream=True, stream_options={"include_usage": True})
    lines = await usage(running, "acme-admin")
    sums = {(line["key"], line["adapter"], line["version"]): line for line in lines}
    assert sums.keys() == {("app", None, None), ("app", "sql", 1), ("admin", "sql", 1)}
    named = sums["app", "sql", 1]
    assert (named["tenant"], named["requests"]) == ("acme", 2)
    for name in ("prompt_tokens", "completion_tokens"):
        assert named[name] == sum(one[name] for one in counts[:2]) > 0
    assert sums["admin", "sql", 1]["completion_tokens"] > 0
    assert {line["hour"] for line in lines} <= {HOUR.isoformat(), (HOUR + timedelta(hours=1)).isoformat()}


async def test_a_stream_counts_also_if_its_client_did_not_ask_for_counts(running: Running) -> None:
    assert await chat(running, "acme", SERVED, stream=True) == {}
    (line,) = await usage(running, "acme-admin")
    assert line["prompt_tokens"] > 0
    assert line["completion_tokens"] > 0


async def test_what_the_engine_did_not_get_is_not_counted(running: Running) -> None:
    body = {"model": "nobody", "messages": [{"role": "user", "content": "hello"}]}
    assert (await ask(running, "acme", "POST", "/v1/chat/completions", json=body)).status_code == 404
    assert await usage(running, "acme-admin") == []


async def test_what_found_no_engine_is_not_counted(running: Running) -> None:
    await chat(running, "acme", SERVED)
    await running.simulator.stop()
    body = {"model": SERVED, "messages": [{"role": "user", "content": "hello"}]}
    assert (await ask(running, "acme", "POST", "/v1/chat/completions", json=body)).status_code == 503
    (line,) = await usage(running, "acme-admin")
    assert line["requests"] == 1


@pytest.mark.hostile("T01")
async def test_usage_is_shown_to_whom_it_concerns(running: Running) -> None:
    await ask(running, "acme", "POST", "/adapters", files=form("sql"))
    await chat(running, "acme", "sql")
    await chat(running, "globex", SERVED)
    await chat(running, "operator", "acme/sql")
    assert {line["tenant"] for line in await usage(running, "acme-admin")} == {"acme"}
    assert {line["tenant"] for line in await usage(running, "globex")} == {"globex"}
    every = await usage(running, "operator")
    assert {(line["tenant"], line["adapter"]) for line in every} == {
        ("acme", "sql"),
        ("globex", None),
        ("default", "acme/sql"),
    }
    assert await usage(running, "operator", tenant="acme") == await usage(running, "acme-admin")
    assert (await ask(running, "acme", "GET", "/usage")).status_code == 403, "its role is another"
    assert (await ask(running, "acme-admin", "GET", "/usage?tenant=globex")).status_code == 403


async def test_pages_and_csv_hold_the_same_lines(running: Running) -> None:
    for number in range(3):
        await ask(running, "acme", "POST", "/adapters", files=form(f"a{number}", number))
        await chat(running, "acme", f"a{number}")
    every, seen, after = await usage(running, "acme-admin"), [], None
    while True:
        query = {"limit": 2} | ({"after": after} if after else {})
        page = (await ask(running, "acme-admin", "GET", "/usage", params=query)).json()
        seen += page["usage"]
        if (after := page["next"]) is None:
            break
    assert seen == every
    assert len(every) == 3
    answer = await ask(running, "acme-admin", "GET", "/usage?format=csv")
    assert answer.headers["content-type"].startswith("text/csv")
    rows = [*csv.DictReader(io.StringIO(answer.text))]
    assert [{**row, "hour": line["hour"]} for row, line in zip(rows, every, strict=True)] == [
        {name: "" if value is None else str(value) for name, value in line.items()} for line in every
    ]
    later = {"since": (datetime.now(UTC) + timedelta(hours=2)).isoformat()}
    assert await usage(running, "acme-admin", **later) == []
    earlier = {"since": "2000-01-01", "until": HOUR.isoformat()}
    assert await usage(running, "acme-admin", **earlier) == []


async def test_a_wrong_question_is_refused(running: Running) -> None:
    for query in (
        *("after=x", "after=a|b|c|d|e", "after=2026-01-01|a|b|c|-9999999999x", "since=never", "limit=0", "format=xml"),
        *("after=2026-01-01|a|b|c|-99999999999999999999", "after=2026-01-01|a%00|b|c|1"),
        *("after=2026-01-01|a|b|c|99999999999", "until=9999-12-31T23:00:00-23:00"),
    ):
        answer = await ask(running, "acme-admin", "GET", f"/usage?{query}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request"), query


async def test_usage_outlives_a_restart(open_gateway: OpenHouse, keys_file: Path) -> None:
    async with open_gateway(api_keys_file=keys_file) as running:
        await chat(running, "acme", SERVED)
    async with open_gateway(api_keys_file=keys_file) as running:
        await chat(running, "acme", SERVED)
        (line,) = await usage(running, "acme-admin")
        assert line["requests"] == 2


async def test_nothing_is_lost_or_counted_twice_while_the_catalogue_is_away(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, add = running.gateway.context.usage, UsageStore.add

    def committed_in_silence(self: UsageStore, *batch: Any) -> None:
        add(self, *batch)
        raise Unavailable(STORE_AWAY, "the connection broke at the commit")

    def away(*_: Any) -> None:
        raise Unavailable(STORE_AWAY, "nobody answers")

    for broken in (away, committed_in_silence):
        await chat(running, "acme", SERVED)
        with monkeypatch.context() as patch:
            patch.setattr(UsageStore, "add", broken)
            with pytest.raises(Unavailable):
                await ledger.flush()
            await chat(running, "acme", SERVED)
        for _ in range(3):
            await ledger.flush()
    (line,) = await usage(running, "acme-admin")
    assert line["requests"] == 4


async def test_flushes_at_the_same_moment_lose_nothing(running: Running) -> None:
    ledger, key = running.gateway.context.usage, KEYS["acme"][1]
    assert key is not None
    count, target = ledger.counter(key), Target(SERVED, SERVED)

    async def some(number: int) -> None:
        for _ in range(5):
            count(target, {"completion_tokens": number})
            await ledger.flush()

    await asyncio.gather(*(some(number) for number in range(8)))
    (line,) = await usage(running, "acme-admin")
    assert (line["requests"], line["completion_tokens"]) == (40, 5 * sum(range(8)))


WHO: Final = st.builds(
    UsedBy, st.just(HOUR), st.sampled_from(["a", "b"]), st.just("k"), st.sampled_from(["", "a/x"]), st.integers(0, 1)
)
SUMS: Final = st.builds(Usage, *(st.integers(0, 1 << 40) for _ in range(4)))


@settings(max_examples=15)
@given(batches=st.lists(st.tuples(st.sampled_from("gh"), st.dictionaries(WHO, SUMS), st.booleans()), max_size=6))
def test_batches_add_up_as_the_obvious_sum_does(tmp_path_factory: pytest.TempPathFactory, batches: list[Any]) -> None:
    catalogue = Catalogue(f"sqlite:///{tmp_path_factory.mktemp('usage') / 'c.db'}")
    numbers, obvious = {"g": 0, "h": 0}, dict[UsedBy, Usage]()
    for gateway, batch, twice in batches:
        numbers[gateway] += 1
        for _ in range(1 + twice):
            catalogue.usage.add(gateway, numbers[gateway], batch)
        for who, sums in batch.items():
            obvious[who] = obvious.get(who, Usage()) + sums
    found = catalogue.usage.between(HOUR, HOUR + timedelta(hours=1), None, None, 1000)
    assert dict(found) == obvious
    assert [who for who, _ in found] == sorted(obvious)
    catalogue.close()


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo"])
def test_pages_follow_each_other_whatever_the_servers_time_zone(postgres: Server, zone: str) -> None:
    url = postgres.fresh()
    postgres.psql(f"ALTER DATABASE {url.rpartition('/')[2]} SET timezone TO '{zone}'")
    catalogue, lines = Catalogue(url), dict[UsedBy, Usage]()
    for hour in range(3):
        for version in range(3):
            lines[UsedBy(HOUR - timedelta(hours=hour), "acme", "app", "acme/sql", version)] = Usage(1)
    catalogue.usage.add("g", 1, lines)
    last, found = None, list[UsedBy]()
    while page := catalogue.usage.between(HOUR - timedelta(days=1), HOUR + timedelta(hours=1), None, last, 2):
        found += [who for who, _ in page]
        last = found[-1]
        assert len(found) <= len(lines)
    assert found == sorted(lines)
    catalogue.close()


def test_two_gateways_add_to_one_sum(catalogue_url: str) -> None:
    catalogue, who = Catalogue(catalogue_url), UsedBy(HOUR, "acme", "app", "acme/sql", 1)
    for gateway in ("g", "h"):
        for number in (1, 2, 2):
            catalogue.usage.add(gateway, number, {who: Usage(1, 2, 3, 1 << 40)})
    ((_, sums),) = catalogue.usage.between(HOUR, HOUR + timedelta(hours=1), "acme", None, 10)
    assert sums == Usage(4, 8, 12, 4 << 40)
    assert catalogue.usage.forget_before(HOUR) == 0
    assert catalogue.usage.forget_before(HOUR + timedelta(hours=1)) == 1
    catalogue.close()


@pytest.mark.parametrize(
    "told",
    [None, {}, {"prompt_tokens": "7"}, {"prompt_tokens": -1}, {"prompt_tokens": True}, {"prompt_tokens": 1 << 63}],
)
def test_counts_that_are_none_are_zero(told: Any) -> None:
    assert one_request(told) == Usage(1)


async def test_prometheus_has_usage_by_tenant(running: Running) -> None:
    counts = await chat(running, "acme", SERVED)
    await chat(running, "globex", SERVED)
    text = (await ask(running, "operator", "GET", "/metrics")).text
    assert 'gateway_tenant_requests_total{tenant="acme"} 1.0' in text
    told = f'gateway_tenant_tokens_total{{kind="completion",tenant="acme"}} {float(counts["completion_tokens"])}'
    assert told in text


def test_tenants_beyond_the_bound_share_a_label() -> None:
    registry = Registry()
    metrics = TenantMetrics(registry, limit=2)
    for tenant in ("a", "b", "c", "d", "a"):
        metrics.used(tenant, Usage(requests=1))
        metrics.limited(tenant, Flow.TOKENS)
    text = generate_latest(registry.collector).decode()
    for label, count in (("a", 2.0), ("b", 1.0), ("(other)", 2.0)):
        assert f'gateway_tenant_requests_total{{tenant="{label}"}} {count}' in text
        assert f'gateway_tenant_limited_total{{limit="tokens",tenant="{label}"}} {count}' in text
