"""deploy/kubernetes/monitoring: the rules and scrapes of docker/prometheus, as resources of the Prometheus Operator.

Its definitions are not installed here: the structure is checked against the parts of them that are used, written down below
(ServiceMonitor and PrometheusRule of monitoring.coreos.com/v1).
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest
import yaml

from tests.deploy.test_kubernetes import DEPLOY, ROOT, Resource, documents, files, rendered
from tests.support.helm import SOURCES
from tests.support.prometheus import HOME, RULES, Promtool

MONITORING: Final = DEPLOY / "monitoring"
GROUP: Final = "monitoring.coreos.com"


def an_object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def a_list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


TEXT: Final = {"type": "string"}
TEXTS: Final = {"type": "object", "additionalProperties": TEXT}
DURATION: Final = {"type": "string", "pattern": "^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"}
RELABELING: Final = an_object(
    action={"enum": ["replace", "keep", "drop", "labeldrop"]},
    sourceLabels=a_list({"type": "string", "pattern": "^[a-zA-Z_][a-zA-Z0-9_]*$"}),
    regex=TEXT,
    targetLabel=TEXT,
    replacement=TEXT,
)
ENDPOINT: Final = an_object(
    port=TEXT,
    path=TEXT,
    interval=DURATION,
    scrapeTimeout=DURATION,
    authorization=an_object(credentials=an_object(("key",), name=TEXT, key=TEXT)),
    relabelings=a_list(RELABELING),
    metricRelabelings=a_list(RELABELING),
)
RULE: Final = an_object(
    ("expr",), alert=TEXT, record=TEXT, expr=TEXT, **{"for": DURATION}, labels=TEXTS, annotations=TEXTS
)
SPECS: Final = {
    "ServiceMonitor": an_object(
        ("endpoints", "selector"), endpoints=a_list(ENDPOINT), selector=an_object(matchLabels=TEXTS)
    ),
    "PrometheusRule": an_object(groups=a_list(an_object(("name",), name=TEXT, interval=DURATION, rules=a_list(RULE)))),
}


def checked(resource: Resource) -> None:
    assert resource["apiVersion"] == f"{GROUP}/v1"
    jsonschema.Draft7Validator(SPECS[resource["kind"]]).validate(resource["spec"])


def one(kind: str) -> Resource:
    (found,) = [one for file in files("monitoring") for one in documents(file) if one["kind"] == kind]
    return found


def docker_groups() -> list[Any]:
    return [group for file in sorted(RULES.glob("*.yml")) for group in documents(file)[0]["groups"]]


def test_the_rules_are_what_their_generator_writes() -> None:
    command = [sys.executable, str(MONITORING / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run: python deploy/kubernetes/monitoring/generate.py\n{done.stdout}{done.stderr}"


def test_recording_rules_and_alerts_are_dockers() -> None:
    def by_name(groups: list[Any]) -> dict[str, Any]:
        return {group["name"]: group for group in groups}

    assert by_name(one("PrometheusRule")["spec"]["groups"]) == by_name(docker_groups())
    assert len(docker_groups()) == 2


def test_promtool_accepts_the_rules(promtool: Promtool, tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps(one("PrometheusRule")["spec"]), encoding="utf-8")
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", SPECS)
def test_a_resource_has_the_structure_of_its_definition(kind: str) -> None:
    checked(one(kind))


@pytest.mark.parametrize(
    ("kind", "at", "wrong"),
    [
        ("ServiceMonitor", ("endpoints", 0, "scrape_timeout"), "10s"),  # Prometheus's spelling, not the operator's
        ("ServiceMonitor", ("selector", "app"), "gateway"),
        ("ServiceMonitor", ("endpoints", 1, "metricRelabelings", 0, "source_labels"), ["__name__"]),
        ("PrometheusRule", ("groups", 1, "rules", 0, "for"), 60),
        ("PrometheusRule", ("groups", 1, "rule"), []),
    ],
)
def test_a_mistake_would_be_noticed(kind: str, at: tuple[Any, ...], wrong: object) -> None:
    changed: Resource = json.loads(json.dumps(one(kind)))
    *path, last = at
    inner: Any = changed["spec"]
    for key in path:
        inner = inner[key]
    inner[last] = wrong
    with pytest.raises(jsonschema.ValidationError):
        checked(changed)


@pytest.mark.parametrize("folder", ["base", "fleet", "llm-d", *SOURCES])
def test_the_monitor_finds_the_gateway_alone_and_its_port(folder: str) -> None:
    wanted = one("ServiceMonitor")["spec"]["selector"]["matchLabels"]
    services = [found for found in rendered(folder) if found["kind"] == "Service"]
    (service,) = [found for found in services if wanted.items() <= found["metadata"].get("labels", {}).items()]
    assert service["metadata"]["name"] == "gateway"  # the label `job` of its series, which alerts and dashboards name
    ports = {port["name"] for port in service["spec"]["ports"]}
    assert {endpoint["port"] for endpoint in one("ServiceMonitor")["spec"]["endpoints"]} <= ports


def seconds(duration: str) -> int:
    return int(duration.removesuffix("s"))


def test_scrapes_are_dockers() -> None:
    docker = yaml.safe_load((HOME / "prometheus.yml").read_text(encoding="utf-8"))
    jobs = {job["job_name"]: job for job in docker["scrape_configs"] if job["job_name"] != "prometheus"}
    endpoints = one("ServiceMonitor")["spec"]["endpoints"]
    found = {
        next(
            (rule["replacement"] for rule in end.get("relabelings", []) if rule["targetLabel"] == "job"), "gateway"
        ): end
        for end in endpoints
    }
    assert {name: end["path"] for name, end in found.items()} == {
        name: job["metrics_path"] for name, job in jobs.items()
    }
    for name, end in found.items():
        kept = [(rule["sourceLabels"], rule["regex"], rule["action"]) for rule in end.get("metricRelabelings", [])]
        theirs = [(r["source_labels"], r["regex"], r["action"]) for r in jobs[name].get("metric_relabel_configs", [])]
        assert kept == theirs
        assert end["interval"] == docker["global"]["scrape_interval"]
        assert end["scrapeTimeout"] == docker["global"]["scrape_timeout"]
        assert seconds(end["scrapeTimeout"]) <= seconds(end["interval"])  # else the operator takes neither


def test_all_of_it_is_for_the_operator() -> None:
    assert {found["apiVersion"].partition("/")[0] for found in rendered("monitoring")} == {GROUP}


@pytest.mark.parametrize("folder", ["base", "fleet", "llm-d", "ingress", "reference", *SOURCES])
def test_a_cluster_without_the_operator_can_apply_the_rest(folder: str) -> None:
    assert not [found for found in rendered(folder) if found["apiVersion"].startswith(GROUP)]


def test_the_guide_names_the_secret_and_the_label_that_lets_prometheus_in() -> None:
    guide = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    for end in one("ServiceMonitor")["spec"]["endpoints"]:
        secret = end["authorization"]["credentials"]
        assert f"create secret generic {secret['name']} --from-literal={secret['key']}=" in guide
    (peer,) = next(
        found["spec"]["ingress"][0]["from"]
        for found in rendered("base")
        if (found["kind"], found["metadata"]["name"]) == ("NetworkPolicy", "gateway")
    )
    ((label, value),) = peer["namespaceSelector"]["matchLabels"].items()
    assert f"kubectl label namespace monitoring {label}={value}" in guide
