"""deploy/kubernetes/reference: a Job that makes the reference in the place that the gateway reads, once."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from app.screen.reference.open import open_reference
from tests.deploy.test_kubernetes import ROOT, VERSIONS, Resource, check, container, get
from tests.support.references import make_pair


def job() -> Resource:
    return get("Job", "reference", "reference")


def inside() -> Resource:
    (only,) = job()["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def run(volume: Path, tools: Path) -> str:
    """Output of the Job's own script, run with this folder as the volume."""
    (script,) = inside()["args"]
    line = [*inside()["command"], script.replace("cd /checkpoints", f"cd {shlex.quote(str(volume))}")]
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder with `lora-gateway` in it."""
    command = tmp_path / "bin" / "lora-gateway"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m app "$@"\n')
    command.chmod(0o755)
    return command.parent


@pytest.mark.parametrize("version", VERSIONS)
def test_it_is_what_the_published_schemas_say(version: str) -> None:
    check(job(), version)


def test_it_builds_once_where_the_gateway_looks(tmp_path: Path, tools: Path) -> None:
    volume = tmp_path / "volume"
    base, aligned = make_pair(volume)
    assert base == volume / "base"
    aligned.rename(volume / "model")
    (volume / "reference").mkdir()  # as the kubelet makes a subPath that is not there yet
    said = run(volume, tools)
    made = open_reference(volume / "reference", None)
    assert f"GATEWAY_REFERENCE_DIGEST={made.digest}\n" in said
    made.close()
    before = {file: file.stat().st_mtime_ns for file in (volume / "reference").iterdir()}
    assert "nothing was built" in run(volume, tools)
    assert {file: file.stat().st_mtime_ns for file in (volume / "reference").iterdir()} == before


def test_it_writes_the_folders_that_the_gateway_reads() -> None:
    mounts = {one["mountPath"]: one.get("subPath") for one in container("Deployment", "gateway")["volumeMounts"]}
    (script,) = inside()["args"]
    assert f"--aligned {mounts['/model']} --out {mounts['/reference']}" in script
    (mount,) = [one for one in inside()["volumeMounts"] if one["name"] == "model"]
    assert "readOnly" not in mount
    (volume,) = [one for one in job()["spec"]["template"]["spec"]["volumes"] if one["name"] == "model"]
    assert get("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
    assert inside()["image"] == container("Deployment", "gateway")["image"]


def test_it_has_few_rights_and_no_network() -> None:
    pod = job()["spec"]["template"]["spec"]
    gateway = get("Deployment", "gateway")["spec"]["template"]["spec"]
    for given in ("automountServiceAccountToken", "enableServiceLinks", "securityContext"):
        assert pod[given] == gateway[given]
    assert inside()["securityContext"] == container("Deployment", "gateway")["securityContext"]
    labels = job()["spec"]["template"]["metadata"]["labels"]
    policies = [get("NetworkPolicy", name)["spec"]["podSelector"] for name in ("engine", "gateway")]
    assert all(policy["matchLabels"] != labels for policy in policies), "it would get another pod's connections"
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in inside()["env"]
