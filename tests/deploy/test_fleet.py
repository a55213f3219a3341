"""deploy/kubernetes/fleet and the chart with values-fleet.yaml: several gateways, engines that fetch by themselves."""

import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from app.server.settings import Settings
from lora_gateway_vllm.settings import Settings as PluginSettings
from tests.deploy.test_kubernetes import DEPLOY, ROOT, VERSIONS, Resource, check, config, container, documents, rendered
from tests.support import helm

FLEET = DEPLOY / "fleet"
GUIDE = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
SINGLE: Final = {"fleet": "base", "helm-fleet": "helm"}
"""Several gateways → one gateway, of the same origin."""
either = pytest.mark.parametrize("folder", SINGLE)


def applied(folder: str, kind: str, name: str) -> Resource:
    (found,) = [one for one in rendered(folder) if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def settings_of(folder: str) -> dict[str, str]:
    if folder in helm.SOURCES:
        return config(folder)
    made = yaml.safe_load((FLEET / "kustomization.yaml").read_text(encoding="utf-8"))["configMapGenerator"]
    return config() | dict(line.split("=", 1) for line in made[0]["literals"])


def pod(folder: str, kind: str, name: str) -> Resource:
    spec = applied(folder, kind, name)["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def engine(folder: str) -> Resource:
    (only,) = pod(folder, "StatefulSet", "engine")["containers"]
    assert isinstance(only, dict)
    return only


def environment(folder: str) -> dict[str, str]:
    return {one["name"]: one["value"] for one in engine(folder)["env"]}


def gibibytes(spec: Resource, volume: str) -> int:
    """Size that a pod's temporary volume may reach."""
    (found,) = [one for one in spec["volumes"] if one["name"] == volume]
    return int(found["emptyDir"]["sizeLimit"].removesuffix("Gi"))


def peers(folder: str, policy: str, way: str) -> list[tuple[dict[str, Any], set[int]]]:
    """Peers of a policy's rules, each with its ports."""
    found = applied(folder, "NetworkPolicy", policy)
    key = {"ingress": "from", "egress": "to"}[way]
    return [(peer, {port["port"] for port in rule["ports"]}) for rule in found["spec"][way] for peer in rule[key]]


@pytest.mark.parametrize("version", VERSIONS)
def test_what_would_be_applied_is_what_the_published_schemas_say(version: str) -> None:
    for one in rendered("fleet"):
        check(one, version)
        assert one["kind"] == "Namespace" or one["metadata"]["namespace"] == "lora-gateway"
    for one in documents(FLEET / "network.yaml"):
        check(one, version)


@either
def test_several_gateways_share_nothing_but_database_and_storage(folder: str) -> None:
    assert applied(folder, "Deployment", "gateway")["spec"]["replicas"] > 1
    spec = pod(folder, "Deployment", "gateway")
    volumes = {one["name"]: one for one in spec["volumes"]}
    assert set(volumes["data"]) == {"name", "emptyDir"}  # a claim would be one for all of them
    written = [mount["name"] for mount in spec["containers"][0]["volumeMounts"] if not mount.get("readOnly")]
    assert all("emptyDir" in volumes[name] for name in written)
    claims = {one["metadata"]["name"] for one in rendered(folder) if one["kind"] == "PersistentVolumeClaim"}
    assert claims == {"model"}
    assert {"secretRef": {"name": "gateway-stores"}} in spec["containers"][0]["envFrom"]


@either
def test_the_settings_are_settings(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings_of(folder) | {"GATEWAY_CATALOGUE_URL": "postgresql://gateway@db/gateway"}
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("GATEWAY_API_KEYS_FILE")
    monkeypatch.setenv("GATEWAY_API_KEYS", "a-key-of-sixteen-characters")
    settings = Settings()  # type: ignore[call-arg]  # all from the environment
    assert settings.engine_resolves
    assert settings.store_url == "s3://adapters/gateway"
    assert settings.copies_mib < gibibytes(pod(folder, "Deployment", "gateway"), "data") * 1024


@either
def test_engines_have_the_plugin_its_settings_and_the_routes_shut(folder: str, tmp_path: Path) -> None:
    given = environment(folder)
    assert given["VLLM_PLUGINS"] == "lora_gateway"
    (tmp_path / "key").write_text("k")
    plugin = PluginSettings.read(given | {"LORA_GATEWAY_KEY_FILE": str(tmp_path / "key")})
    assert plugin.url == "http://gateway"
    assert plugin.forget_s <= 1
    assert plugin.cache_bytes < gibibytes(pod(folder, "StatefulSet", "engine"), "cache") << 30
    assert Path(given["LORA_GATEWAY_KEY_FILE"]).parent == Path("/run/keys")
    args = engine(folder)["args"]
    assert args[-1] == "--middleware=lora_gateway_vllm.closed.OnlyScreened"
    # kustomize's patch replaces the list: nothing was lost
    assert args[:-1] == container("StatefulSet", "engine", SINGLE[folder])["args"]
    assert given["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert "/data/artefacts" not in {one["mountPath"] for one in engine(folder)["volumeMounts"]}


@either
def test_engines_may_ask_the_gateways_and_nobody_else(folder: str) -> None:
    gateway = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "gateway"}}}
    asked = peers(folder, "engine-asks", "egress")
    assert [ports for peer, ports in asked if peer == gateway] == [{8080}]
    assert [ports for peer, ports in asked if peer != gateway] == [{53}]
    answered = peers(folder, "gateway-answers-engines", "ingress")
    assert answered == [({"podSelector": {"matchLabels": {"app.kubernetes.io/name": "engine"}}}, {8080})]
    stores = {"namespaceSelector": {"matchLabels": {"lora-gateway/stores": "true"}}}
    assert peers(folder, "gateway-stores", "egress") == [(stores, {5432, 9000})]


def test_the_guide_names_what_must_be_there_first() -> None:
    for named in ("gateway-stores", "engine-key", "lora-gateway/stores", "EXTRAS=s3,postgres", "GATEWAY_CATALOGUE_URL"):
        assert named in GUIDE
    assert "ARG EXTRAS" in (ROOT / "Dockerfile").read_text()
    (patched,) = documents(FLEET / "engine.yaml")
    image = patched["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image in GUIDE
    assert not re.search(r"One gateway: `replicas: 1`", GUIDE)
