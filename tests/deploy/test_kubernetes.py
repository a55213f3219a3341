"""deploy/kubernetes and deploy/helm against the published schemas, offline, and against what docs/kubernetes.md promises.

No cluster is asked. Where `kubectl` or `kustomize` is installed, the directories are rendered as they would be applied;
otherwise the files are looked at one by one. Installations of the chart stand among them (`helm`, …), rendered by Helm.
"""

import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from app.domain.digest import digest_of
from app.domain.engine_address import DnsName, dns_name
from app.domain.errors import Refused
from app.domain.names import AdapterName, engine_name
from app.serve.relay import PATHS
from app.server.settings import Settings
from tests.support import helm

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy" / "kubernetes"
SCHEMAS = {
    (found["group"], found["kind"]): found["schema"]
    for file in (Path(__file__).parent / "schemas").glob("*.json")
    for found in [json.loads(file.read_text(encoding="utf-8"))]
}
VERSIONS = ("1.30", "1.37")
"""Of Kubernetes: an old one and the newest known."""

Resource = dict[str, Any]


def documents(path: Path) -> list[Resource]:
    return [one for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one]


def files(folder: str) -> list[Path]:
    listed = yaml.safe_load((DEPLOY / folder / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    return [DEPLOY / folder / name for name in listed if not name.startswith("..")]


@cache
def resources(folder: str) -> tuple[Resource, ...]:
    if folder in helm.SOURCES:
        return helm.render(helm.SOURCES[folder])
    folders = ("base",) if folder == "base" else ("base", folder)
    return tuple(one for name in folders for file in files(name) for one in documents(file))


@cache
def rendered(folder: str) -> tuple[Resource, ...]:
    if folder in helm.SOURCES:
        return helm.render(helm.SOURCES[folder])
    for command in (["kubectl", "kustomize"], ["kustomize", "build"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, DEPLOY / folder], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            return tuple(one for one in yaml.safe_load_all(done.stdout) if one)
    pytest.skip("neither kubectl nor kustomize is installed: the files were looked at, not rendered")


def get(kind: str, name: str, folder: str = "base") -> Resource:
    (found,) = [one for one in resources(folder) if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def closed(schema: Any) -> Any:
    """The same schema, in which nothing may stand that it does not name: a misspelt field is an error, not ignored."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        made.setdefault("additionalProperties", False)
    return made


def check(resource: Resource, version: str) -> None:
    group = resource["apiVersion"].rpartition("/")[0]
    if (group, resource["kind"]) in SCHEMAS:
        jsonschema.Draft7Validator(closed(SCHEMAS[group, resource["kind"]])).validate(resource)
    else:
        kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", ["base", "llm-d", *helm.SOURCES])
def test_every_resource_is_what_the_published_schemas_say(folder: str, version: str) -> None:
    assert len(resources(folder)) > 9
    for one in resources(folder):
        check(one, version)


@pytest.mark.parametrize("folder", ["base", "llm-d", "ingress", "reference", *helm.SOURCES])
def test_so_is_what_would_be_applied(folder: str) -> None:
    found = rendered(folder)
    for one in found:
        check(one, VERSIONS[-1])
        assert one["kind"] == "Namespace" or one["metadata"]["namespace"] == "lora-gateway"
    settings = [one["data"] for one in found if one["kind"] == "ConfigMap" and "GATEWAY_MODEL" in one["data"]]
    assert any("GATEWAY_REQUESTS_URL" in one for one in settings) == (folder == "llm-d")


@pytest.mark.parametrize(
    ("kind", "name", "at", "wrong"),
    [
        ("StatefulSet", "engine", ("spec", "replica"), 2),
        ("NetworkPolicy", "engine", ("spec", "policyType"), ["Ingress"]),
        ("InferencePool", "engines", ("spec", "endpointPickerRef", "failureMode"), "FailShut"),
        ("InferencePool", "engines", ("spec", "targetPort"), 8000),
        ("HTTPRoute", "engines", ("spec", "timeout"), "1s"),
    ],
)
def test_a_mistake_would_be_noticed(kind: str, name: str, at: tuple[str, ...], wrong: object) -> None:
    changed: Resource = json.loads(json.dumps(get(kind, name, "llm-d")))
    *path, last = at
    inner = changed
    for key in path:
        inner = inner[key]
    inner[last] = wrong
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(changed, VERSIONS[-1])


# ---- what is promised ------------------------------------------------------------------------------------------------


either = pytest.mark.parametrize("folder", ["base", "helm", "helm-changed"])


def config(folder: str = "base") -> dict[str, str]:
    """The gateway's settings."""
    if folder in helm.SOURCES:
        given = get("ConfigMap", "gateway", folder)["data"]
        assert isinstance(given, dict)
        return given
    made = yaml.safe_load((DEPLOY / "base" / "kustomization.yaml").read_text(encoding="utf-8"))["configMapGenerator"]
    return dict(line.split("=", 1) for line in made[0]["literals"])


def container(kind: str, name: str, folder: str = "base") -> Resource:
    (only,) = get(kind, name, folder)["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def allowed_in(policies: list[Resource], app: str) -> set[str]:
    """Who may reach the pods of `app`: labels' values, as the policies that select them say."""
    found: set[str] = set()
    for policy in policies:
        selected = policy["spec"]["podSelector"].get("matchLabels", {})
        if selected == {"app.kubernetes.io/name": app}:
            for rule in policy["spec"].get("ingress", []):
                assert rule.get("from"), "a rule without `from` lets everybody in"
                assert rule["ports"], "a rule without ports opens all of them"
                for peer in rule["from"]:
                    assert set(peer) == {"podSelector"}, "a peer of another namespace"
                    found |= set(peer["podSelector"]["matchLabels"].values())
    return found


def policies(folder: str) -> list[Resource]:
    return [one for one in resources(folder) if one["kind"] == "NetworkPolicy"]


@pytest.mark.parametrize("folder", ["base", "llm-d", *helm.SOURCES])
def test_the_engines_ports_are_closed_to_all_but_the_gateway(folder: str) -> None:
    picked = {"inference-gateway", "endpoint-picker"} if folder == "llm-d" else set()
    assert allowed_in(policies(folder), "engine") == {"gateway"} | picked
    everything = get("NetworkPolicy", "nothing", folder)["spec"]
    assert everything == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert get("NetworkPolicy", "engine", folder)["spec"]["egress"] == []


@pytest.mark.parametrize("folder", ["llm-d", *helm.SOURCES])
def test_nothing_is_published(folder: str) -> None:
    for one in resources(folder):
        assert one["kind"] != "Ingress"
        if one["kind"] == "Service":
            assert one["spec"].get("type", "ClusterIP") == "ClusterIP"
        if one["kind"] == "HTTPRoute":
            assert one["spec"]["parentRefs"] == [{"name": "inference-gateway"}]


def test_only_the_gateway_reaches_the_proxy() -> None:
    (peer,) = get("NetworkPolicy", "inference-gateway", "llm-d")["spec"]["ingress"][0]["from"]
    assert peer == {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "gateway"}}}


def test_only_inference_goes_through_the_proxy() -> None:
    (rule,) = get("HTTPRoute", "engines", "llm-d")["spec"]["rules"]
    assert {match["path"]["type"] for match in rule["matches"]} == {"Exact"}
    assert {match["path"]["value"] for match in rule["matches"]} == {*PATHS.values(), "/health"}


@either
def test_the_name_that_is_looked_up_leads_to_every_engine_and_to_no_address_of_all(folder: str) -> None:
    engines = get("StatefulSet", "engine", folder)["spec"]
    service, headless = engines["serviceName"], get("Service", engines["serviceName"], folder)["spec"]
    assert headless["clusterIP"] == "None"
    assert headless["publishNotReadyAddresses"] is False
    assert headless["selector"].items() <= engines["template"]["metadata"]["labels"].items()
    (port,) = container("StatefulSet", "engine", folder)["ports"]
    assert headless["ports"][0]["port"] == port["containerPort"]
    assert dns_name(config(folder)["GATEWAY_ENGINE_URL"]) == DnsName(service, port["containerPort"])
    (peer,) = get("NetworkPolicy", "gateway", folder)["spec"]["egress"][0]["to"]
    assert peer["podSelector"]["matchLabels"].items() <= engines["template"]["metadata"]["labels"].items()


@either
def test_the_settings_are_settings_and_the_engine_has_the_same_limits(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in config(folder).items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("GATEWAY_API_KEYS_FILE")
    monkeypatch.setenv("GATEWAY_API_KEYS", "a-key-of-sixteen-characters")
    settings = Settings()  # type: ignore[call-arg]  # all from the environment
    assert {key.removeprefix("GATEWAY_").lower() for key in config(folder)} <= settings.model_fields_set | {
        "api_keys_file"
    }
    given = container("StatefulSet", "engine", folder)["args"]
    args = dict(arg.removeprefix("--").partition("=")[::2] for arg in given)
    assert args["max-loras"] == str(settings.max_loras)
    assert args["max-lora-rank"] == str(settings.max_lora_rank)
    assert args["max-cpu-loras"] == str(settings.max_cpu_loras)
    assert args["dtype"] == settings.dtype.value
    assert args["served-model-name"] == settings.served_name
    assert "enable-lora" in args


@either
def test_engines_read_artefacts_where_the_gateway_writes_them_and_change_nothing(folder: str) -> None:
    engine, gateway = (
        {mount["name"]: mount for mount in container(kind, name, folder)["volumeMounts"]}
        for kind, name in (("StatefulSet", "engine"), ("Deployment", "gateway"))
    )
    assert engine["artefacts"]["mountPath"] == gateway["artefacts"]["mountPath"] == "/data/artefacts"
    assert engine["artefacts"]["readOnly"] is True
    assert engine["model"]["readOnly"] is True
    assert "readOnly" not in gateway["artefacts"]
    claims = {
        one["metadata"]["name"]: one["spec"]["accessModes"] for one in resources(folder) if "Claim" in one["kind"]
    }
    assert claims["artefacts"] == ["ReadWriteMany"]


@pytest.mark.parametrize("folder", ["base", *helm.SOURCES])
@pytest.mark.parametrize(("kind", "name"), [("StatefulSet", "engine"), ("Deployment", "gateway")])
def test_containers_have_few_rights(kind: str, name: str, folder: str) -> None:
    pod = get(kind, name, folder)["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    rights = container(kind, name, folder)["securityContext"]
    assert rights["readOnlyRootFilesystem"] is True
    assert rights["allowPrivilegeEscalation"] is False
    assert rights["capabilities"] == {"drop": ["ALL"]}
    assert ":latest" not in container(kind, name, folder)["image"]


@either
def test_the_engine_has_no_plugins_and_no_keys(folder: str) -> None:
    given = {one["name"]: one["value"] for one in container("StatefulSet", "engine", folder)["env"]}
    assert given["VLLM_PLUGINS"] == ""
    assert given["HF_HUB_OFFLINE"] == "1"
    assert not [name for name in given if "DEV_MODE" in name or "KEY" in name or "TOKEN" in name]


@either
def test_one_gateway_at_a_time(folder: str) -> None:
    gateway = get("Deployment", "gateway", folder)["spec"]
    assert (gateway["replicas"], gateway["strategy"]["type"]) == (1, "Recreate")


def test_the_pickers_plugins_are_declared_and_used() -> None:
    picker = yaml.safe_load((DEPLOY / "llm-d" / "picker.yaml").read_text(encoding="utf-8"))
    declared = {plugin["type"] for plugin in picker["plugins"]}
    used = [plugin["pluginRef"] for plugin in picker["schedulingProfiles"][0]["plugins"]]
    sources = picker["dataLayer"]["sources"]
    fed = {one["pluginRef"] for source in sources for one in (source, *source["extractors"])}
    assert declared == {*used, *fed}
    assert used[0] == "served-model-filter", "an engine that does not list the adapter is no candidate"
    assert "lora-affinity-scorer" in used


def test_engines_names_for_adapters_hold_no_comma() -> None:
    """vLLM joins them with commas in vllm:lora_requests_info, which the affinity scorer reads."""
    name = engine_name(AdapterName("a.b_c-D"), digest_of(b""))
    assert "," not in name
    assert "@" in name
    for wrong in ("a,b", "a@b"):
        with pytest.raises(Refused):
            AdapterName.parse(wrong)
