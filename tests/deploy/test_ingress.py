"""deploy/kubernetes/ingress: an example that lets through what the gateway takes, and publishes its API alone."""

from typing import Final

import pytest

from app.serve.relay import PATHS
from app.server.settings import Settings
from app.upload.limits import MIB, UploadLimits
from tests.deploy.test_kubernetes import ROOT, VERSIONS, Resource, check, get
from tests.support.gateway import Running

NGINX: Final = "nginx.ingress.kubernetes.io/"
INSIDE: Final = ("/", "/metrics", "/metrics/engine", "/console/", "/resolve/x", "/artefacts/x/y", "/rescreen", "/docs")
"""Paths that stay in the cluster."""


def ingress() -> Resource:
    return get("Ingress", "gateway", "ingress")


def option(name: str) -> str:
    value = ingress()["metadata"]["annotations"][NGINX + name]
    assert isinstance(value, str), "an annotation is text, or the API server refuses it"
    return value


def goes_through(path: str) -> bool:
    """Return True if the Ingress passes a path on, by Kubernetes' rules for Exact and Prefix."""
    (rule,) = ingress()["spec"]["rules"]
    return any(
        path == one["path"] or (one["pathType"] == "Prefix" and path.startswith(one["path"].rstrip("/") + "/"))
        for one in rule["http"]["paths"]
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_it_is_what_the_published_schemas_say(version: str) -> None:
    check(ingress(), version)


def test_it_leads_to_the_gateways_service() -> None:
    service = get("Service", "gateway")
    ports = {port["name"] for port in service["spec"]["ports"]}
    for path in ingress()["spec"]["rules"][0]["http"]["paths"]:
        assert path["backend"]["service"]["name"] == service["metadata"]["name"]
        assert path["backend"]["service"]["port"]["name"] in ports


def test_every_host_has_tls() -> None:
    spec = ingress()["spec"]
    assert {rule["host"] for rule in spec["rules"]} == {host for tls in spec["tls"] for host in tls["hosts"]}
    assert all(tls["secretName"] for tls in spec["tls"])
    assert option("force-ssl-redirect") == "true"


async def test_the_api_goes_through_and_the_rest_stays_inside(running: Running) -> None:
    assert all(goes_through(path) for path in (*PATHS.values(), "/v1/models", "/adapters", "/adapters/a/events"))
    assert not [path for path in INSIDE if goes_through(path)]
    for path in ingress()["spec"]["rules"][0]["http"]["paths"]:
        asked = path["path"] + ("/models" if path["path"] == "/v1" else "")
        assert (await running.http.get(asked)).status_code != 404, "the gateway has no such route"


def test_the_largest_upload_goes_through_unbuffered() -> None:
    limit = UploadLimits(max_weights_bytes=Settings.model_fields["max_weights_mib"].default * MIB).max_body_bytes
    size = option("proxy-body-size")
    assert size.endswith("m")
    assert limit <= int(size[:-1]) * MIB < limit + 2 * MIB
    assert option("proxy-request-buffering") == "off"


def test_streams_and_long_answers_go_through() -> None:
    assert option("proxy-buffering") == "off"
    longest = sum(Settings.model_fields[name].default for name in ("screen_seconds", "canary_seconds"))
    assert int(option("proxy-read-timeout")) > longest
    assert int(option("proxy-send-timeout")) > longest


def test_the_guide_names_what_must_be_there_first() -> None:
    guide = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    assert f"create secret tls {ingress()['spec']['tls'][0]['secretName']} " in guide
    assert "kubectl label namespace ingress-nginx lora-gateway/clients=true" in guide
