"""The chart of deploy/helm, rendered by Helm's own library. Where helm-python-sdk is not installed, tests are skipped."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest
import yaml

CHART: Final = Path(__file__).resolve().parents[2] / "deploy" / "helm"
NAMESPACE: Final = "lora-gateway"
NAMED: Final[dict[str, Any]] = {"keysSecret": "gateway-keys"}
"""Values that an installation must set."""
FLEET: Final[dict[str, Any]] = {
    **NAMED,
    "gateway": {"settingsSecrets": ["gateway-stores"]},
    "fleet": {"storeUrl": "s3://adapters/gateway", "engineKeySecret": "engine-key"},
}
"""Values that one of several gateways must set, beside values-fleet.yaml."""
MONITORED: Final[dict[str, Any]] = {**NAMED, "monitoring": {"enabled": True, "keySecret": "metrics-key"}}

CHANGED: Final[dict[str, Any]] = {
    **NAMED,
    "gateway": {"preStopSeconds": 20, "drainSeconds": 300, "settings": {"GATEWAY_KEEP_VERSIONS": "3"}},
    "engine": {
        "replicas": 3,
        "servedModelName": "other",
        "dtype": "float16",
        "maxLoras": 8,
        "maxLoraRank": 128,
        "maxCpuLoras": 16,
        "preStopSeconds": 60,
        "shutdownSeconds": 600,
    },
}
"""An installation that changes what other things depend on."""

Values = Mapping[str, Any]


def helm() -> ModuleType:
    """Helm's library; skips where there is none."""
    found: ModuleType = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed")
    return found


def file(name: str) -> dict[str, Any]:
    """A file of values beside the chart's own."""
    found: dict[str, Any] = yaml.safe_load((CHART / name).read_text(encoding="utf-8"))
    return found


def joined(below: Values, above: Values) -> dict[str, Any]:
    """Values of two sources, as `helm` joins --values and --set: the later one has the say, key by key."""
    made = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            made[key] = joined(below[key], above[key])
    return made


def install(values: Values, chart: Path = CHART) -> str:
    """Manifest that `helm install --dry-run=client` would apply. Raises HelmError as it does."""
    library = helm()
    with library.Config(namespace=NAMESPACE, storage_driver="memory", kubeconfig_content="{}") as config:
        release = config.install(str(chart), "lora-gateway", dict(values), dry_run="client")
    return str(release["manifest"])


@cache
def _render(values: str) -> tuple[dict[str, Any], ...]:
    return tuple(one for one in yaml.safe_load_all(install(json.loads(values))) if one)


def render(values: Values) -> tuple[dict[str, Any], ...]:
    """Resources that would be applied with these values."""
    return _render(json.dumps(values))


SOURCES: Final[dict[str, dict[str, Any]]] = {
    "helm": NAMED,
    "helm-changed": CHANGED,
    "helm-fleet": joined(file("values-fleet.yaml"), FLEET),
}
"""Name of a kind of installation, among deploy/kubernetes' directories in tests → its values."""
