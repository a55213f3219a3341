"""OpenSSF's own tool, `model_signing`, on what the gateway signs. It is installed first: `make clients`."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.clients import python_with, run
from tests.support.gateway import OpenHouse, form
from tests.support.signing import P256, signing_key


@pytest.mark.long
async def test_a_version_is_verified_by_the_tool_and_a_changed_one_is_not(
    open_gateway: OpenHouse, tmp_path: Path
) -> None:
    key = signing_key(tmp_path / "key.pem", P256)
    async with open_gateway(signing_key=key) as running:
        assert (await running.http.post("/adapters", files=form("first"))).status_code == 201
        version = (await running.http.get("/adapters/first/versions/1")).json()
        directory = tmp_path / "first"
        shutil.copytree(running.data / "artefacts" / version["digest"], directory)
        bundle = (await running.http.get("/adapters/first/versions/1/signature")).json()
    directory.chmod(0o755)
    (directory / "model.sig").write_text(json.dumps(bundle), encoding="utf-8")
    tool = python_with("model-signing").with_name("model_signing")
    verify = (tool, "verify", "key", directory, "--public_key", key.with_suffix(".pub"), "--signature")
    assert "succeeded" in run(*verify, directory / "model.sig", cwd=tmp_path)
    config = directory / "adapter_config.json"
    config.chmod(0o644)
    config.write_bytes(config.read_bytes() + b" ")
    done = subprocess.run([*verify, directory / "model.sig"], cwd=tmp_path, capture_output=True, text=True)  # noqa: ASYNC221
    assert done.returncode != 0
    assert "succeeded" not in done.stdout
