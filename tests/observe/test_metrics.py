"""What an operator reads at /metrics after things happened, and that strangers cannot make it grow without end."""

import json
import math
import re
import threading
import time
from collections.abc import Mapping

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.domain.policy import Policy
from app.observe.adapter_label import MAX_ADAPTERS, OTHER, SERVED_MODEL, AdapterLabels
from app.observe.metric_registry import Declared
from app.observe.metrics import UPLOAD_OUTCOMES, Metrics, ModuleCounts
from app.serve.routing_table import Target
from tests.support.gateway import SERVED, OpenHouse, Running, form

Labels = frozenset[tuple[str, str]]


def samples(text: str) -> dict[str, dict[Labels, float]]:
    """Name → labels → value."""
    found: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return found


async def scrape(running: Running) -> dict[str, dict[Labels, float]]:
    answer = await running.http.get("/metrics")
    assert answer.status_code == 200
    return samples(answer.text)


def value(found: Mapping[str, Mapping[Labels, float]], name: str, **labels: str) -> float:
    return found.get(name, {}).get(frozenset(labels.items()), 0.0)


async def chat(running: Running, model: str, **more: object) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], **more}
    answer = await running.http.post("/v1/chat/completions", json=body)
    return answer.text


async def test_each_upload_is_counted_once_by_what_became_of_it(open_gateway: OpenHouse) -> None:
    bad = form("third")
    bad["config"] = ("adapter_config.json", b"{")
    async with open_gateway(tau=1e6) as running:
        for sent in (form("first"), form("first"), bad, {"name": (None, b"fourth")}, form("models")):
            await running.http.post("/adapters", files=sent)
        found = await scrape(running)
    outcomes = {outcome: value(found, "gateway_uploads_total", outcome=outcome) for outcome in UPLOAD_OUTCOMES}
    assert outcomes == dict.fromkeys(UPLOAD_OUTCOMES, 0) | {"clean": 1, "known": 1, "rejected": 3}


async def test_what_was_cut_out_is_told_by_adapter_block_and_module_type(open_gateway: OpenHouse) -> None:
    async with open_gateway(tau=-0.3, max_pruned_share=1.0) as running:
        version = (await running.http.post("/adapters", files=form("first"))).json()
        found = await scrape(running)
    verdict = version["report"]["verdict"]["modules"]
    assert 0 < version["modules_pruned"] < version["modules_total"]
    assert value(found, "gateway_adapter_modules", adapter="first", decision="prune") == version["modules_pruned"]
    for module in verdict:
        block, kind = re.search(r"layers\.(\d)\..*\.(\w+)$", module["name"]).groups()  # type: ignore[union-attr]
        counted = value(found, "gateway_block_modules_total", block=block, module=kind, decision=module["decision"])
        assert counted == 1, module
    scored = sum(m["scores"]["input"] is not None for m in verdict)
    assert value(found, "gateway_module_score_count", comparison="input") == scored
    below = sum(m["scores"]["input"] is not None and m["scores"]["input"] <= 0 for m in verdict)
    assert value(found, "gateway_module_score_bucket", comparison="input", le="0.0") == below


async def test_streams_are_measured_token_by_token_whether_or_not_the_client_asks_for_counts(running: Running) -> None:
    await running.http.post("/adapters", files=form("first"))
    text = await chat(running, "first", stream=True)
    assert "usage" not in text
    assert text.endswith("data: [DONE]\n\n")
    assert "usage" in await chat(running, "first", stream=True, stream_options={"include_usage": True})
    await chat(running, "first")
    found = await scrape(running)
    assert value(found, "gateway_tokens_total", adapter="first", kind="prompt") == 9
    assert value(found, "gateway_tokens_total", adapter="first", kind="completion") == 15
    assert value(found, "gateway_requests_total", adapter="first", status="200") == 3
    assert value(found, "gateway_request_duration_seconds_count", adapter="first") == 3
    assert value(found, "gateway_time_to_first_token_seconds_count", adapter="first") == 2
    assert value(found, "gateway_overhead_seconds_count") == 3
    assert 0 < value(found, "gateway_overhead_seconds_sum") < 0.5


async def test_waiting_for_the_engine_is_not_our_work(running: Running) -> None:
    running.simulator.faults["chat"] = "slow"
    body = {"model": SERVED, "stream": True, "messages": [{"role": "user", "content": "x"}]}
    relay = running.gateway.context.relay
    began = time.monotonic()
    answer = await relay.complete("chat", json.dumps(body).encode())
    assert not isinstance(answer.body, bytes)
    for _ in range(6):
        await anext(answer.body)
    await answer.body.aclose()
    seconds = time.monotonic() - began
    found = await scrape(running)
    assert value(found, "gateway_request_duration_seconds_sum", adapter=SERVED_MODEL) > 0.2  # a token each 50 ms
    assert value(found, "gateway_overhead_seconds_sum") < 0.05
    gaps = value(found, "gateway_inter_token_latency_seconds_count", adapter=SERVED_MODEL)
    assert gaps == 5
    assert 0.2 < value(found, "gateway_inter_token_latency_seconds_sum", adapter=SERVED_MODEL) < seconds
    assert value(found, "gateway_tokens_total", adapter=SERVED_MODEL, kind="completion") == 6  # cut short: its pieces
    assert value(found, "gateway_request_errors_total", adapter=SERVED_MODEL, code="client_gone") == 1


async def test_failed_requests_are_told_by_adapter_and_code(running: Running) -> None:
    await running.http.post("/adapters", files=form("first"))
    running.simulator.faults["chat"] = "400"
    await chat(running, "first")
    running.simulator.faults["chat"] = "error"
    await chat(running, "first", stream=True)
    found = await scrape(running)
    assert value(found, "gateway_request_errors_total", adapter="first", code="engine_refused") == 1
    assert value(found, "gateway_request_errors_total", adapter="first", code="upstream_failed") == 1


async def test_the_engines_state_is_told(running: Running) -> None:
    await running.http.post("/adapters", files=form("first"))
    found = await scrape(running)
    assert value(found, "gateway_engine_up") == 1
    assert value(found, "gateway_engine_adapters") == value(found, "gateway_engine_adapters_desired") == 1
    assert value(found, "gateway_engine_loads_total", result="loaded") == 1
    running.simulator.loaded.clear()  # as a restart does
    running.gateway.reconciler.poke()
    deadline = time.monotonic() + 10
    while value(found, "gateway_engine_loads_total", result="loaded") < 2 and time.monotonic() < deadline:
        found = await scrape(running)
    assert value(found, "gateway_engine_adapters_lost_total") == 1
    assert value(found, "gateway_store_free_bytes") > 0
    assert value(found, "gateway_quarantine_files") == value(found, "gateway_quarantine_bytes") == 0


async def test_a_wait_shows_what_waits(running: Running) -> None:
    await running.simulator.stop()
    await running.http.post("/adapters", files=form("first"))
    found = await scrape(running)
    assert value(found, "gateway_versions_pending") == 1
    assert value(found, "gateway_engine_up") == value(found, "gateway_engine_adapters") == 0


def target(adapter: str) -> Target:
    return Target(adapter, f"{adapter}@0", adapter, 1, "0")


def ask(metrics: Metrics, adapter: str) -> None:
    metrics.answered(target(adapter), 200, 0.1, {"prompt_tokens": 3, "completion_tokens": 5})
    metrics.first_token(target(adapter), 0.1)
    metrics.more_tokens(target(adapter), 0.1, 4)
    metrics.failed(target(adapter), "upstream_failed")


def adapters_in(metrics: Metrics) -> set[str]:
    return set(re.findall(r'adapter="([^"]*)"', metrics.exposition().decode()))


@pytest.mark.ruling("O04")
def test_a_thousand_adapters_make_a_bounded_page() -> None:
    metrics = Metrics()
    names = [f"adapter-{i:04d}" for i in range(1000)]
    metrics.show_adapters(dict.fromkeys(names, ModuleCounts(3, 1, 2)), 0)
    for name in names:
        ask(metrics, name)
    assert len(adapters_in(metrics)) == MAX_ADAPTERS + 1
    text = metrics.exposition()
    assert len(text) < 3_000_000
    found = samples(text.decode())
    assert value(found, "gateway_requests_total", adapter=OTHER, status="200") == 1000 - MAX_ADAPTERS
    assert value(found, "gateway_adapter_modules", adapter=OTHER, decision="keep") == 3 * (1000 - MAX_ADAPTERS)
    assert value(found, "gateway_adapter_modules", adapter=OTHER, decision="project") == 2 * (1000 - MAX_ADAPTERS)
    assert value(found, "gateway_adapters_ready") == 1000


def test_who_goes_makes_room_and_leaves_nothing_behind() -> None:
    metrics = Metrics(max_adapters=2)
    metrics.show_adapters(dict.fromkeys("abc", ModuleCounts(1, 0)), 0)
    for name in "abc":
        ask(metrics, name)
    assert adapters_in(metrics) == {"a", "b", OTHER}
    metrics.show_adapters(dict.fromkeys("bc", ModuleCounts(1, 0)), 0)
    ask(metrics, "a")  # a request that ended after its adapter was deleted
    ask(metrics, "c")
    assert adapters_in(metrics) == {"b", "c", OTHER}
    found = samples(metrics.exposition().decode())
    assert value(found, "gateway_requests_total", adapter=OTHER, status="200") == 2
    assert (OTHER, "keep") not in {tuple(dict(k).values()) for k in found["gateway_adapter_modules"]}


def test_adapters_of_which_only_older_versions_are_served_keep_their_series() -> None:
    metrics = Metrics()
    metrics.show_adapters({"a": ModuleCounts(1, 0)}, 0)
    ask(metrics, "a")
    metrics.show_adapters({"a": None}, 0)
    found = samples(metrics.exposition().decode())
    assert value(found, "gateway_requests_total", adapter="a", status="200") == 1
    assert "gateway_adapter_modules" not in found


def test_labels_stay_with_those_who_came_first() -> None:
    labels = AdapterLabels(2)
    assert labels.follow(["x", "y", "z"]) == frozenset()
    assert (labels.of("x"), labels.of("z"), labels.of(None)) == ("x", OTHER, SERVED_MODEL)
    assert labels.follow(["a", "b", "y"]) == {"x"}
    assert (labels.of("y"), labels.of("a"), labels.of("b")) == ("y", "a", OTHER)


def test_a_scrape_while_adapters_come_and_go_never_breaks() -> None:
    metrics, stop, broke = Metrics(max_adapters=5), threading.Event(), []

    def churn() -> None:
        i = 0
        while not stop.is_set():
            names = [f"n{(i + j) % 20}" for j in range(8)]
            metrics.show_adapters(dict.fromkeys(names, ModuleCounts(1, 1)), 0)
            ask(metrics, names[0])
            i += 1

    def guarded() -> None:
        try:
            churn()
        except Exception as error:  # noqa: BLE001 - whatever breaks in a thread must fail the test
            broke.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        samples(metrics.exposition().decode())
    stop.set()
    for thread in threads:
        thread.join()
    assert not broke
    metrics.show_adapters({}, 0)
    assert adapters_in(metrics) <= {OTHER}


def test_no_audit_is_not_a_clean_audit() -> None:
    metrics = Metrics()
    assert math.isnan(value(samples(metrics.exposition().decode()), "gateway_audit_broken_invariants"))
    metrics.audited(0)
    assert value(samples(metrics.exposition().decode()), "gateway_audit_broken_invariants") == 0
    metrics.audited(2)
    found = samples(metrics.exposition().decode())
    assert value(found, "gateway_audit_broken_invariants") == 2
    assert abs(value(found, "gateway_audit_timestamp_seconds") - time.time()) < 60


def test_a_disk_that_does_not_answer_is_nan_and_not_a_failed_scrape() -> None:
    metrics = Metrics()

    def broken() -> float:
        raise OSError("gone")

    metrics.watch(metrics.uploads.store_free, broken)
    assert math.isnan(value(samples(metrics.exposition().decode()), "gateway_store_free_bytes"))


def test_the_policy_and_reference_in_force_are_told() -> None:
    metrics = Metrics()
    metrics.in_force("abc", [f"model.layers.{i}.mlp.up_proj" for i in range(12)] + ["lm_head"], Policy(tau=2.5))
    found = samples(metrics.exposition().decode())
    (policy,) = found["gateway_policy_info"]
    assert ("comparison", "input") in policy
    assert ("tau", "2.5") in policy
    assert ("max_pruned", "none") in policy
    assert value(found, "gateway_policy_tau") == 2.5
    assert value(found, "gateway_reference_info", digest="abc", modules="13") == 1
    blocks = {dict(labels)["block"] for labels in found["gateway_block_modules_total"]}
    assert blocks == {f"{i:02d}" for i in range(12)} | {"none"}  # of one width: they sort as numbers do


@pytest.mark.parametrize("declared", Metrics().registry.declared, ids=lambda declared: declared.name)
def test_names_follow_prometheus_practice(declared: Declared) -> None:
    name, kind = declared.name, declared.kind
    assert re.fullmatch(r"gateway_[a-z0-9]+(_[a-z0-9]+)*", name)
    assert name.endswith("_total") == (kind == "counter")
    assert name.endswith("_info") == (kind == "info")
    assert not re.search(r"_(ms|milliseconds|kb|mib|minutes|percent)(_|$)", name)
    if kind == "histogram" and name != "gateway_module_score":  # interquartile ranges have no unit
        assert name.endswith("_seconds")
    assert declared.help


async def test_the_engines_own_metrics_are_passed_on(running: Running) -> None:
    answer = await running.http.get("/metrics/engine")
    assert answer.headers["content-type"].startswith("text/plain")
    assert f'vllm:num_requests_running{{engine="0",model_name="{SERVED}"}}' in answer.text
    await running.simulator.stop()
    away = await running.http.get("/metrics/engine")
    assert (away.status_code, away.json()["error"]["code"]) == (503, "engine_unavailable")
    assert (await running.http.get("/metrics")).status_code == 200


def test_active_adapters_beyond_the_labels_cost_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each removal of a label searches all series, under a lock that requests wait for."""
    metrics = Metrics(max_adapters=5)
    removed: list[dict[str, str]] = []
    monkeypatch.setattr(metrics.screening.adapter_modules, "remove_by_labels", removed.append)
    metrics.show_adapters({f"a{n}": ModuleCounts(1, 0) for n in range(100)}, 0)
    assert removed == []
    metrics.show_adapters({f"a{n}": None for n in range(5)}, 0)
    assert {one["adapter"] for one in removed} >= {f"a{n}" for n in range(5)}
