"""Metrics of roll-outs: beside each other by version, bounded, and gone with the roll-out."""

from types import MappingProxyType
from typing import Any

from app.domain.rollout import Rollout, Wanted, all_to
from app.observe.adapter_label import OTHER
from app.observe.metric_registry import Registry
from app.observe.rollout_metrics import RolloutMetrics, Seen
from app.serve.routing_table import Part, Target

USAGE = MappingProxyType({"completion_tokens": 7})


def target(version: int, part: Part = Part.LIVE, adapter: str = "a") -> Target:
    return Target(adapter, f"{adapter}@{version:012}", adapter, version, "d", part)


def rollout(**weights: int) -> Rollout:
    return all_to(1).to(Wanted({int(name[1:]): weight for name, weight in weights.items()}, shadow=9), "a")


def value(registry: Registry, name: str, **labels: Any) -> float | None:
    return registry.collector.get_sample_value(f"gateway_rollout_{name}", {k: str(v) for k, v in labels.items()})


def series(registry: Registry) -> list[str]:
    return [
        sample.labels["version"]
        for m in registry.collector.collect()
        for sample in m.samples
        if "version" in sample.labels
    ]


def test_versions_stand_beside_each_other() -> None:
    registry = Registry()
    metrics = RolloutMetrics(registry)
    metrics.show({"a": rollout(v1=95, v4=5)})
    assert [value(registry, "weight", adapter="a", version=one) for one in (1, 4, 9)] == [95, 5, 0]
    metrics.answered(target(1), 200, 0.5, USAGE)
    for status in (200, 400, 499, 502):
        metrics.answered(target(4), status, 0.5, None)
    metrics.answered(target(9, Part.SHADOW), 200, 0.5, USAGE)
    metrics.first_token(target(4), 0.1)
    live = {"adapter": "a", "part": "live"}
    assert value(registry, "requests_total", **live, version=1, result="ok") == 1
    for result in ("ok", "refused", "client_gone", "failed"):
        assert value(registry, "requests_total", **live, version=4, result=result) == 1
    assert value(registry, "completion_tokens_total", **live, version=1) == 7
    assert value(registry, "completion_tokens_total", adapter="a", part="shadow", version=9) == 7
    assert value(registry, "request_duration_seconds_count", **live, version=4) == 4
    assert value(registry, "time_to_first_token_seconds_count", **live, version=4) == 1
    seen = metrics.seen("a")
    assert seen["4", "live"] == Seen(4, 1, 2.0)
    assert seen["4", "live"].mean_s == 0.5
    assert seen["9", "shadow"] == Seen(1, 0, 0.5)
    assert metrics.seen("b") == {}


def test_a_version_that_leaves_takes_its_series_along() -> None:
    registry = Registry()
    metrics = RolloutMetrics(registry)
    metrics.show({"a": rollout(v1=95, v4=5)})
    for version in (1, 4):
        metrics.answered(target(version), 200, 0.5, None)
    metrics.show({"a": rollout(v1=100)})
    assert set(series(registry)) == {"1", "9"}
    metrics.show({})
    assert series(registry) == []
    metrics.answered(target(4), 200, 0.5, None)  # it ended late
    assert set(series(registry)) == {OTHER}


def test_the_number_of_adapters_with_series_is_bounded() -> None:
    registry = Registry()
    metrics = RolloutMetrics(registry, limit=2)
    metrics.show({"a": rollout(v1=100), "b": rollout(v1=100)})
    metrics.show({"c": rollout(v1=100), "a": rollout(v1=100), "b": rollout(v1=100)})
    for adapter in ("a", "b", "c"):
        metrics.answered(target(1, adapter=adapter), 200, 0.5, None)
    found = [value(registry, "requests_total", adapter=one, part="live", version=1, result="ok") for one in "abc"]
    assert found == [1, 1, None]
    assert value(registry, "requests_total", adapter=OTHER, part="live", version=OTHER, result="ok") == 1
    metrics.show({"c": rollout(v1=100)})
    assert value(registry, "weight", adapter="c", version=1) == 100
