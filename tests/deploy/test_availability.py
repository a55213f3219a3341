"""Pods that end, nodes that are drained, nodes that die: promises of deploy/kubernetes and deploy/helm, as applied."""

from typing import Final

import pytest

from app.load.fleet.dns import LOOKUP_S
from app.server.app import SHUTDOWN_S
from tests.deploy.test_kubernetes import Resource, check, rendered
from tests.support.helm import SOURCES

FOLDERS: Final = ("base", "fleet", "llm-d", *SOURCES)
CACHED_S: Final = 30
"""Seconds for which answers of a cluster's DNS may be cached: kubeadm's default."""

every_folder = pytest.mark.parametrize("folder", FOLDERS)


def of_kind(folder: str, *kinds: str) -> list[Resource]:
    return [one for one in rendered(folder) if one["kind"] in kinds]


def workload(folder: str, name: str) -> Resource:
    (found,) = [one for one in of_kind(folder, "Deployment", "StatefulSet") if one["metadata"]["name"] == name]
    return found


def pod(folder: str, name: str) -> Resource:
    spec = workload(folder, name)["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def selects(selector: Resource, folder: str, name: str) -> bool:
    labels = workload(folder, name)["spec"]["template"]["metadata"]["labels"]
    return bool(selector["matchLabels"].items() <= labels.items())


def unannounced(container: Resource) -> int:
    """Seconds for which a container whose pod ends goes on as if nothing were."""
    return int(container["lifecycle"]["preStop"]["sleep"]["seconds"])


def settings(folder: str) -> dict[str, str]:
    (found,) = [one["data"] for one in of_kind(folder, "ConfigMap") if "GATEWAY_MODEL" in one["data"]]
    assert isinstance(found, dict)
    return found


@every_folder
@pytest.mark.parametrize("name", ["gateway", "engine"])
def test_a_drained_node_takes_one_pod_at_a_time_and_never_waits_for_ever(folder: str, name: str) -> None:
    replicas = workload(folder, name)["spec"]["replicas"]
    budgets = [one["spec"] for one in of_kind(folder, "PodDisruptionBudget")]
    mine = [one for one in budgets if selects(one["selector"], folder, name)]
    assert len(mine) == (replicas > 1), "a budget for one pod would keep its node from being drained"
    for one in mine:
        assert one["maxUnavailable"] == 1
        assert "minAvailable" not in one
        assert one["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@every_folder
@pytest.mark.parametrize("name", ["gateway", "engine"])
def test_pods_of_one_kind_are_spread_over_zones_and_nodes(folder: str, name: str) -> None:
    spread = pod(folder, name).get("topologySpreadConstraints", [])
    if workload(folder, name)["spec"]["replicas"] == 1:
        return
    assert [one["topologyKey"] for one in spread] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    for one in spread:
        assert selects(one["labelSelector"], folder, name)
        assert one["whenUnsatisfiable"] == "ScheduleAnyway", "a cluster of one node runs them too"


@every_folder
def test_a_gateway_that_ends_has_the_time_that_its_requests_get(folder: str) -> None:
    (container,) = pod(folder, "gateway")["containers"]
    drain = float(settings(folder)["GATEWAY_DRAIN_SECONDS"])
    assert pod(folder, "gateway")["terminationGracePeriodSeconds"] > unannounced(container) + drain + SHUTDOWN_S
    assert unannounced(container) >= 5  # proxies and Ingress controllers hear of it within seconds


@pytest.mark.parametrize(("several", "one"), [("fleet", "base"), ("helm-fleet", "helm")])
def test_gateways_wait_longer_where_others_answer_meanwhile(several: str, one: str) -> None:
    assert float(settings(several)["GATEWAY_DRAIN_SECONDS"]) > float(settings(one)["GATEWAY_DRAIN_SECONDS"])


@every_folder
def test_an_engine_that_ends_answers_until_no_gateway_finds_it_and_then_to_the_end(folder: str) -> None:
    spec = pod(folder, "engine")
    (container,) = spec["containers"]
    flags = dict(one.removeprefix("--").partition("=")[::2] for one in container["args"])
    assert unannounced(container) > CACHED_S + LOOKUP_S
    assert spec["terminationGracePeriodSeconds"] > unannounced(container) + int(flags["shutdown-timeout"])


@every_folder
def test_budgets_are_what_the_published_schemas_say(folder: str) -> None:
    for one in of_kind(folder, "PodDisruptionBudget"):
        check(one, "1.30")
