"""deploy/kubernetes/fleet: several gateways on one database and one object storage, engines that fetch by themselves."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.server.settings import Settings
from lora_gateway_vllm.settings import Settings as PluginSettings
from tests.deploy.test_kubernetes import DEPLOY, ROOT, VERSIONS, Resource, check, config, container, documents, rendered

FLEET = DEPLOY / "fleet"
GUIDE = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")


def patch(name: str) -> Resource:
    (only,) = documents(FLEET / name)
    return only


def applied(kind: str, name: str) -> Resource:
    (found,) = [one for one in rendered("fleet") if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def settings_of() -> dict[str, str]:
    made = yaml.safe_load((FLEET / "kustomization.yaml").read_text(encoding="utf-8"))["configMapGenerator"]
    return config() | dict(line.split("=", 1) for line in made[0]["literals"])


def environment() -> dict[str, str]:
    return {one["name"]: one["value"] for one in inside("engine.yaml")["env"]}


def inside(name: str) -> Resource:
    (only,) = patch(name)["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def peers(policy: str, way: str) -> list[tuple[dict[str, Any], set[int]]]:
    """Who, and by which ports, as a policy of this directory says."""
    (found,) = [one for one in documents(FLEET / "network.yaml") if one["metadata"]["name"] == policy]
    key = {"ingress": "from", "egress": "to"}[way]
    return [(peer, {port["port"] for port in rule["ports"]}) for rule in found["spec"][way] for peer in rule[key]]


@pytest.mark.parametrize("version", VERSIONS)
def test_what_would_be_applied_is_what_the_published_schemas_say(version: str) -> None:
    for one in rendered("fleet"):
        check(one, version)
        assert one["kind"] == "Namespace" or one["metadata"]["namespace"] == "lora-gateway"
    for one in documents(FLEET / "network.yaml"):
        check(one, version)


def test_several_gateways_share_nothing_but_database_and_storage() -> None:
    assert patch("gateway.yaml")["spec"]["replicas"] > 1
    pod = applied("Deployment", "gateway")["spec"]["template"]["spec"]
    volumes = {one["name"]: one for one in pod["volumes"]}
    assert set(volumes["data"]) == {"name", "emptyDir"}  # a claim would be one for all of them
    written = [mount["name"] for mount in pod["containers"][0]["volumeMounts"] if not mount.get("readOnly")]
    assert all("emptyDir" in volumes[name] for name in written)
    claims = {one["metadata"]["name"] for one in rendered("fleet") if one["kind"] == "PersistentVolumeClaim"}
    assert claims == {"model"}
    assert {"secretRef": {"name": "gateway-stores"}} in pod["containers"][0]["envFrom"]


def test_the_settings_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings_of() | {"GATEWAY_CATALOGUE_URL": "postgresql://gateway@db/gateway"}
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("GATEWAY_API_KEYS_FILE")
    monkeypatch.setenv("GATEWAY_API_KEYS", "a-key-of-sixteen-characters")
    settings = Settings()  # type: ignore[call-arg]  # all from the environment
    assert settings.engine_resolves
    assert settings.store_url == "s3://adapters/gateway"
    (copies,) = [one for one in patch("gateway.yaml")["spec"]["template"]["spec"]["volumes"] if one["name"] == "data"]
    assert settings.copies_mib < int(copies["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 1024


def test_engines_have_the_plugin_its_settings_and_the_routes_shut(tmp_path: Path) -> None:
    given = environment()
    assert given["VLLM_PLUGINS"] == "lora_gateway"
    (tmp_path / "key").write_text("k")
    plugin = PluginSettings.read(given | {"LORA_GATEWAY_KEY_FILE": str(tmp_path / "key")})
    assert plugin.url == "http://gateway"
    assert plugin.forget_s <= 1
    volumes = {one["name"]: one for one in patch("engine.yaml")["spec"]["template"]["spec"]["volumes"] if "name" in one}
    assert plugin.cache_bytes < int(volumes["cache"]["emptyDir"]["sizeLimit"].removesuffix("Gi")) << 30
    assert Path(given["LORA_GATEWAY_KEY_FILE"]).parent == Path("/run/keys")
    args = inside("engine.yaml")["args"]
    assert args[-1] == "--middleware=lora_gateway_vllm.closed.OnlyScreened"
    assert args[:-1] == container("StatefulSet", "engine")["args"]  # a patch replaces the list: nothing was lost
    runtime = {one["name"]: one["value"] for one in container("StatefulSet", "engine")["env"]}
    assert runtime["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    mounts = applied("StatefulSet", "engine")["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert "/data/artefacts" not in {one["mountPath"] for one in mounts}


def test_engines_may_ask_the_gateways_and_nobody_else() -> None:
    gateway = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "gateway"}}}
    asked = peers("engine-asks", "egress")
    assert [ports for peer, ports in asked if peer == gateway] == [{8080}]
    assert [ports for peer, ports in asked if peer != gateway] == [{53}]
    answered = peers("gateway-answers-engines", "ingress")
    assert answered == [({"podSelector": {"matchLabels": {"app.kubernetes.io/name": "engine"}}}, {8080})]
    stores = {"namespaceSelector": {"matchLabels": {"lora-gateway/stores": "true"}}}
    assert peers("gateway-stores", "egress") == [(stores, {5432, 9000})]


def test_the_guide_names_what_must_be_there_first() -> None:
    for named in ("gateway-stores", "engine-key", "lora-gateway/stores", "EXTRAS=s3,postgres", "GATEWAY_CATALOGUE_URL"):
        assert named in GUIDE
    assert "ARG EXTRAS" in (ROOT / "Dockerfile").read_text()
    image = inside("engine.yaml")["image"]
    assert image in GUIDE
    assert not re.search(r"One gateway: `replicas: 1`", GUIDE)
