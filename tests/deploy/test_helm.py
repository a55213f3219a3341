"""deploy/helm: the chart equals kustomize's directories, refuses values that it does not know, and makes no Secret.

Helm's own library lints and renders it. The promises that the chart shares with deploy/kubernetes are tested beside those,
as `helm`, `helm-changed` and `helm-fleet`.
"""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, get_args

import pytest
import yaml
from pydantic import SecretStr

from app import __version__
from app.domain.lora import ServingDtype
from app.load.fleet.dns import LOOKUP_S
from app.server.settings import Settings
from app.server.settings.engine import VLLM_RANKS
from tests.deploy.test_availability import CACHED_S
from tests.deploy.test_kubernetes import ROOT, VERSIONS, Resource, check, config, get, rendered
from tests.deploy.test_monitoring import checked
from tests.support.helm import CHART, FLEET, MONITORED, NAMED, NAMESPACE, SOURCES, file, helm, install, joined, render
from tests.support.prometheus import Promtool

SCHEMA: Final = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
GUIDES: Final = (ROOT / "docs" / "kubernetes.md", CHART / "README.md")
INFO: Final = 1
"""Severity of what `helm lint` only recommends."""
MARKS: Final = {
    *("app.kubernetes.io/part-of", "app.kubernetes.io/instance", "app.kubernetes.io/managed-by"),
    *("helm.sh/chart", "helm.sh/resource-policy", "checksum/settings"),
}
"""Labels and annotations that one of the two tools adds; nothing selects by them."""


def set_to(path: str, value: Any) -> dict[str, Any]:
    """Values that an installation needs, and this one, by its dotted path."""
    made: Any = value
    for key in reversed(path.split(".")):
        made = {key: made}
    return joined(NAMED, made)


def one(values: dict[str, Any], kind: str, name: str) -> Resource:
    (found,) = [found for found in render(values) if (found["kind"], found["metadata"]["name"]) == (kind, name)]
    return found


# ---- the same as kustomize's -----------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """The same value without marks, and with lists of mappings in one order: volumes, mounts and variables have none."""
    if isinstance(value, dict):
        made = {key: plain(inner) for key, inner in value.items() if key not in MARKS}
        return {key: inner for key, inner in made.items() if inner or key not in {"labels", "annotations"}}
    if isinstance(value, list):
        found = [plain(inner) for inner in value]
        return sorted(found, key=json.dumps) if all(isinstance(inner, dict) for inner in found) else found
    return value


def comparable(found: tuple[Resource, ...]) -> dict[str, Any]:
    """Resources by kind and name; a ConfigMap without the hash that kustomize adds to its name."""
    text = json.dumps(found, sort_keys=True)
    for resource in found:
        if resource["kind"] == "ConfigMap":
            name = resource["metadata"]["name"]
            text = text.replace(f'"{name}"', f'"{re.sub("-[a-z0-9]{10}$", "", name)}"')
    return {f"{one['kind']} {one['metadata']['name']}": plain(one) for one in json.loads(text)}


@pytest.mark.parametrize(("folder", "chart"), [("base", "helm"), ("fleet", "helm-fleet")])
def test_the_chart_applies_what_kustomize_applies(folder: str, chart: str) -> None:
    theirs = comparable(rendered(folder))
    del theirs[f"Namespace {NAMESPACE}"]  # made before: Secrets must be in it
    assert comparable(rendered(chart)) == theirs
    assert comparable(rendered("helm-changed")) != theirs, "a drift would not be noticed"


def test_the_chart_monitors_as_kustomize_does() -> None:
    values = joined(MONITORED, {"monitoring": {"labels": {"release": "prometheus"}}})
    found = tuple(one for one in render(values) if one["apiVersion"].startswith("monitoring."))
    for resource in found:
        checked(resource)
        assert resource["metadata"]["labels"].pop("release") == "prometheus"
    assert comparable(found) == comparable(rendered("monitoring"))


# ---- Helm's own checks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
def test_helm_lint_has_nothing_to_say(source: str) -> None:
    report = helm().lint(str(CHART), SOURCES[source], strict=True, kube_version=f"v{VERSIONS[0]}.0")
    assert not report["errors"]
    assert not [message for message in report["messages"] if message["severity"] > INFO]


def test_helm_lint_would_say_it(tmp_path: Path) -> None:
    broken = shutil.copytree(CHART, tmp_path / "lora-gateway")
    service = broken / "templates" / "engine" / "service.yaml"
    service.write_text(service.read_text().replace("spec:", "spec"))
    assert helm().lint(str(broken), NAMED)["errors"]


def test_a_packaged_chart_is_whole(tmp_path: Path) -> None:
    package = Path(helm().package(str(CHART), destination=str(tmp_path)))
    assert package.name == f"lora-gateway-{__version__}.tgz"
    for values in (SOURCES["helm-fleet"], MONITORED):
        assert install(values, package) == install(values)


def test_the_charts_versions_are_the_gateways() -> None:
    about = file("Chart.yaml")
    assert about["version"] == about["appVersion"] == __version__
    assert file("values.yaml")["gateway"]["image"] == f"lora-gateway:{__version__}"
    assert about["kubeVersion"].startswith(f">={VERSIONS[0]}.")


# ---- no Secrets of its own -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "lacking", "advice"),
    [
        ({}, "keysSecret is not set", "create secret generic gateway-keys --from-file=keys"),
        (joined(SOURCES["helm-fleet"], {"keysSecret": ""}), "keysSecret", "lora-gateway keys new"),
        (joined(file("values-fleet.yaml"), NAMED), "gateway.settingsSecrets is empty", "GATEWAY_CATALOGUE_URL="),
        (joined(SOURCES["helm-fleet"], {"fleet": {"engineKeySecret": ""}}), "fleet.engineKeySecret", "--role engine"),
        (joined(MONITORED, {"monitoring": {"keySecret": ""}}), "monitoring.keySecret", "--role metrics"),
        (joined(SOURCES["helm-fleet"], {"fleet": {"storeUrl": ""}}), "fleet.storeUrl", "s3://adapters/gateway"),
    ],
    ids=["keys", "fleet-keys", "fleet-settings", "fleet-engine-key", "metrics-key", "fleet-store"],
)
def test_without_the_names_nothing_is_rendered_and_the_reason_is_told(
    given: dict[str, Any], lacking: str, advice: str
) -> None:
    with pytest.raises(helm().HelmError) as refused:
        install(given)
    assert lacking in str(refused.value)
    assert advice in str(refused.value)


def test_no_secret_is_made() -> None:
    everything = joined(MONITORED, {"autoscaling": {"enabled": True}})
    for values in SOURCES.values():
        assert "Secret" not in {one["kind"] for one in render(joined(values, everything))}


def test_settings_that_are_secrets_or_come_from_other_values_are_refused() -> None:
    secrets = [
        name
        for name, field in Settings.model_fields.items()
        if SecretStr in (field.annotation, *get_args(field.annotation))
    ]
    assert {"api_keys", "engine_api_key"} <= {*secrets}
    own = {*config("helm"), *config("helm-fleet")}
    for name in {f"GATEWAY_{name.upper()}" for name in (*secrets, "catalogue_url")} | own:
        with pytest.raises(helm().HelmError, match=name):
            install(set_to("gateway.settings", {name: "x"}))


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("keySecret", "gateway-keys"),
        ("gateway.replicas", 2),
        ("gateway.image", "lora-gateway"),
        ("gateway.image", "registry:5000/lora-gateway"),
        ("gateway.image", "lora-gateway:latest"),
        ("gateway.settings", {"GATEWAY_KEEP_VERSIONS": 104857600}),  # Helm would write 1.048576e+08
        ("gateway.settings", {"HF_TOKEN": "x"}),
        ("engine.preStopSeconds", int(CACHED_S + LOOKUP_S)),
        ("engine.servedModelName", 'a", "--enable-lora-everything'),
        ("engine.maxLoraRank", 65),
        ("engine.dtype", "float8"),
        ("storage.data.size", "many"),
        ("keysSecret", "gateway_keys"),
    ],
)
def test_a_wrong_value_is_refused(path: str, wrong: object) -> None:
    with pytest.raises(helm().HelmError, match="schema"):
        install(set_to(path, wrong))


@pytest.mark.parametrize(
    "image", ["registry:5000/lora-gateway:0.1.0", "lora-gateway:0.1.0@sha256:" + "0" * 64, "a/b@sha256:" + "0" * 64]
)
def test_images_with_a_tag_or_a_digest_are_taken(image: str) -> None:
    pod = one(set_to("gateway.image", image), "Deployment", "gateway")["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == image


def test_the_schema_knows_what_the_gateway_takes() -> None:
    engine = SCHEMA["properties"]["engine"]["properties"]
    assert {*engine["dtype"]["enum"]} == {dtype.value for dtype in ServingDtype}
    assert engine["maxLoraRank"]["enum"] == [*VLLM_RANKS]
    assert engine["preStopSeconds"]["minimum"] > CACHED_S + LOOKUP_S


def leaves(schema: dict[str, Any], values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any, str]]:
    """Dotted path, default and description of every value."""
    for name, inner in schema["properties"].items():
        if "properties" in inner:
            yield from leaves(inner, values[name], f"{path}{name}.")
        elif name != "global":
            yield f"{path}{name}", values[name], inner["description"]


def test_the_readme_has_every_value() -> None:
    values = leaves(SCHEMA, file("values.yaml"))
    rows = "".join(f"| `{path}` | `{json.dumps(default)}` | {about} |\n" for path, default, about in values)
    table = f"| Value | Default | |\n| --- | --- | --- |\n{rows}"
    assert table in (CHART / "README.md").read_text(encoding="utf-8"), f"it should hold:\n{table}"


def test_changed_settings_are_new_pods_and_others_are_not() -> None:
    def mark(values: dict[str, Any]) -> str:
        return str(one(values, "Deployment", "gateway")["spec"]["template"]["metadata"]["annotations"])

    assert mark(dict(NAMED)) == mark(set_to("engine.replicas", 5))
    assert mark(dict(NAMED)) != mark(set_to("gateway.settings", {"GATEWAY_KEEP_VERSIONS": "3"}))


def test_uninstalling_keeps_the_volumes() -> None:
    claims = [found for found in rendered("helm") if found["kind"] == "PersistentVolumeClaim"]
    assert {found["metadata"]["name"] for found in claims} == {"artefacts", "data", "model"}
    for found in claims:
        assert found["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_volumes_that_are_there_are_used() -> None:
    there = {name: {"existingClaim": f"my-{name}"} for name in ("artefacts", "data", "model")}
    values = set_to("storage", there)
    assert not [found for found in render(values) if found["kind"] == "PersistentVolumeClaim"]
    for kind, name, wanted in (
        ("Deployment", "gateway", {"my-artefacts", "my-data", "my-model"}),
        ("StatefulSet", "engine", {"my-artefacts", "my-model"}),
    ):
        volumes = one(values, kind, name)["spec"]["template"]["spec"]["volumes"]
        claims = (volume.get("persistentVolumeClaim") for volume in volumes)
        assert {claim["claimName"] for claim in claims if claim} == wanted


def test_what_a_cluster_needs_besides_is_passed_on() -> None:
    rule = {"to": [{"ipBlock": {"cidr": "192.0.2.7/32"}}], "ports": [{"port": 443, "protocol": "TCP"}]}
    changed: dict[str, Any] = {
        "imagePullSecrets": ["registry"],
        "gateway": {"egress": [rule], "settingsSecrets": ["webhooks"]},
        "engine": {
            "args": ["--tensor-parallel-size=2"],
            "nodeSelector": {"gpu": "h200"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        },
        "storage": {"model": {"storageClassName": "shared", "size": "1Ti"}},
    }
    values = joined(NAMED, changed)
    for found in render(values):
        check(found, VERSIONS[0])
    assert rule in one(values, "NetworkPolicy", "gateway")["spec"]["egress"]
    claim = one(values, "PersistentVolumeClaim", "model")["spec"]
    assert (claim["storageClassName"], claim["resources"]["requests"]["storage"]) == ("shared", "1Ti")
    gateway, engine = (
        one(values, kind, name)["spec"]["template"]["spec"]
        for kind, name in (("Deployment", "gateway"), ("StatefulSet", "engine"))
    )
    assert gateway["imagePullSecrets"] == engine["imagePullSecrets"] == [{"name": "registry"}]
    assert {"secretRef": {"name": "webhooks"}} in gateway["containers"][0]["envFrom"]
    assert engine["containers"][0]["args"][-1] == "--tensor-parallel-size=2"
    assert (engine["nodeSelector"], engine["tolerations"]) == ({"gpu": "h200"}, changed["engine"]["tolerations"])


@pytest.mark.parametrize(
    ("source", "alone", "left"), [("helm", "engine.replicas", []), ("helm-fleet", "fleet.replicas", ["engine"])]
)
def test_one_alone_has_no_budget(source: str, alone: str, left: list[str]) -> None:
    budgets = [found for found in render(joined(SOURCES[source], set_to(alone, 1))) if "Budget" in found["kind"]]
    assert [found["metadata"]["name"] for found in budgets] == left


# ---- engines by the length of their queues ---------------------------------------------------------------------------

SCALED: Final = joined(NAMED, {"autoscaling": {"enabled": True, "waitingPerEngine": 5}})


@pytest.mark.parametrize("version", VERSIONS)
def test_the_autoscaler_is_what_the_published_schemas_say(version: str) -> None:
    for found in render(SCALED):
        check(found, version)


def test_the_autoscaler_alone_decides_how_many_engines_there_are() -> None:
    engines = one(SCALED, "StatefulSet", "engine")
    assert "replicas" not in engines["spec"], "an upgrade would set them back"
    spec = one(SCALED, "HorizontalPodAutoscaler", "engine")["spec"]
    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "engine"}
    grace = engines["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    (policy,) = spec["behavior"]["scaleDown"]["policies"]
    assert policy == {"type": "Pods", "value": 1, "periodSeconds": grace}
    assert one(SCALED, "PodDisruptionBudget", "engine")
    assert "HorizontalPodAutoscaler" not in {found["kind"] for found in rendered("helm")}


def test_it_reads_the_length_of_all_queues_however_many_gateways_tell_of_them(
    promtool: Promtool, tmp_path: Path
) -> None:
    (rule,) = file("prometheus-adapter.yaml")["rules"]["external"]
    (metric,) = one(SCALED, "HorizontalPodAutoscaler", "engine")["spec"]["metrics"]
    assert metric["external"]["metric"]["name"] == rule["name"]["as"]
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "5"}
    name, _, matchers = rule["seriesQuery"].partition("{")
    assert matchers == 'namespace!=""}'
    assert f"# TYPE {name} gauge" in (ROOT / "tests" / "support" / "vllm-0.32-metrics.txt").read_text()
    query = rule["metricsQuery"].replace("<<.Series>>", name).replace("<<.LabelMatchers>>", 'namespace="here"')
    # One gateway was scraped after the other, when more was waiting; gateways number engines as they find them.
    waiting = [("a", "0", 3, "here"), ("a", "1", 4, "here"), ("b", "0", 4, "here"), ("b", "1", 5, "here")]
    series = [
        {"series": f'{name}{{instance="{gateway}",engine="{engine}",namespace="{where}"}}', "values": str(depth)}
        for gateway, engine, depth, where in (*waiting, ("c", "0", 100, "there"))
    ]
    expected = {"expr": query, "eval_time": "0m", "exp_samples": [{"labels": "{}", "value": 9}]}
    test = {"tests": [{"interval": "15s", "input_series": series, "promql_expr_test": [expected]}]}
    (tmp_path / "test.yml").write_text(json.dumps(test))
    done = promtool("test", "rules", str(tmp_path / "test.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


# ---- what the guides say ---------------------------------------------------------------------------------------------


def commands() -> list[str]:
    """`helm install` and `helm upgrade` of the guides, each on one line."""
    text = "\n".join(guide.read_text(encoding="utf-8") for guide in GUIDES).replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip().startswith(("helm install", "helm upgrade"))]


def values_of(command: str) -> dict[str, Any]:
    """Values that a command gives, as Helm reads them; an upgrade has those of the installation before it."""
    words = shlex.split(command, comments=True)
    made: dict[str, Any] = dict(NAMED) if "--reuse-values" in words else {}
    for option, value in pairwise(words):
        if option == "--values":
            made = joined(made, yaml.safe_load((ROOT / value).read_text(encoding="utf-8")))
        elif option == "--set":
            made = joined(made, helm().parse_set_string(value))
    return made


def test_the_guides_commands_install_the_chart() -> None:
    assert len(commands()) >= 5
    for command in commands():
        words = shlex.split(command, comments=True)
        assert words[2:6] == ["lora-gateway", "deploy/helm", "--namespace", NAMESPACE], command
        assert install(values_of(command)), command
    fleets = [values for values in map(values_of, commands()) if values.get("fleet")]
    assert FLEET["fleet"]["engineKeySecret"] in {values["fleet"]["engineKeySecret"] for values in fleets}


def test_the_guides_name_the_secrets_with_their_entries() -> None:
    text = "\n".join(guide.read_text(encoding="utf-8") for guide in GUIDES)
    for secret in ("gateway-keys --from-file=keys", "metrics-key --from-literal=key=", "engine-key --from-file=key"):
        assert f"create secret generic {secret}" in text
    keys = get("Deployment", "gateway", "helm")["spec"]["template"]["spec"]["volumes"]
    assert {"name": "keys", "secret": {"secretName": "gateway-keys"}} in keys
