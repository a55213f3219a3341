"""Signed statements from the route to the command that verifies them, over everything but the engine."""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.api.routes.engine_pull import ENGINE_FILES
from app.domain.digest import digest_of
from app.domain.model_signing import envelope_in, signed_files
from app.domain.statement import PAYLOAD_TYPE
from app.server.settings import Settings
from app.store.envelope import opened, read_public_key
from tests.gateway.test_races import until
from tests.support.gateway import OpenHouse, Running, form
from tests.support.signing import P256, signing_key

ROOT = Path(__file__).resolve().parents[2]
URL = "/adapters/{}/versions/1/attestation"


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return signing_key(tmp_path_factory.mktemp("keys") / "key.pem")


@pytest.fixture
def public(private: Path) -> Path:
    return private.with_suffix(".pub")


async def signed(running: Running, name: str, target: Path) -> Path:
    """Copy an adapter's stored files and its statement to a directory, as a person would who passes it on."""
    assert (await running.http.post("/adapters", files=form(name))).status_code == 201
    version = (await running.http.get(f"/adapters/{name}/versions/1")).json()
    shutil.copytree(running.data / "artefacts" / version["digest"], target)
    target.chmod(0o755)
    answer = await running.http.get(URL.format(name))
    assert answer.status_code == 200, answer.text
    (target / "attestation.json").write_bytes(answer.content)
    return target


def verify(directory: Path, key: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app", "verify", str(directory), "--key", str(key), *more]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "COLUMNS": "120"}, capture_output=True, text=True)


async def test_the_files_of_a_version_are_verified_without_the_gateway(
    open_gateway: OpenHouse, private: Path, public: Path, tmp_path: Path
) -> None:
    async with open_gateway(signing_key=private) as running:
        directory = await signed(running, "first", tmp_path / "first")
    done = verify(directory, public)
    assert done.returncode == 0, done.stderr
    assert "adapter_config.json, adapter_model.safetensors" in done.stdout
    assert "first@1" in done.stdout
    assert "none were asked" in done.stdout
    said = json.loads(verify(directory, public, "--json").stdout)
    assert said["received"]["weights_sha256"] == digest_of(form("first")["weights"][1]).hex


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda d: (d / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
        (lambda d: (d / "adapter_config.json").write_text("{}"), "adapter_config.json has other bytes"),
        (lambda d: (d / "adapter_model.bin").write_bytes(b"x"), "adapter_model.bin is there"),
        (lambda d: (d / "sub").mkdir(), "sub is there"),
        (lambda d: (d / "attestation.json").write_text("{}"), "not a DSSE envelope"),
    ],
    ids=["missing", "changed", "added", "folder", "no-envelope"],
)
async def test_what_the_statement_does_not_cover_is_not_verified(
    open_gateway: OpenHouse, private: Path, public: Path, tmp_path: Path, harm: Any, why: str
) -> None:
    async with open_gateway(signing_key=private) as running:
        directory = await signed(running, "first", tmp_path / "first")
    for file in directory.iterdir():
        file.chmod(0o644)
    harm(directory)
    done = verify(directory, public)
    assert (done.returncode, done.stdout) == (2, "")
    assert why in done.stderr


async def test_a_statement_is_of_one_adapter_and_the_next_key_signs_anew(
    open_gateway: OpenHouse, private: Path, public: Path, tmp_path: Path
) -> None:
    async with open_gateway(signing_key=private) as running:
        directory = await signed(running, "first", tmp_path / "first")
        assert (await running.http.post("/adapters", files=form("other", 1))).status_code == 201
        (directory / "attestation.json").write_bytes((await running.http.get(URL.format("other"))).content)
    assert verify(directory, public).returncode == 2
    async with open_gateway(signing_key=signing_key(tmp_path / "second.pem")) as running:
        (directory / "attestation.json").write_bytes((await running.http.get(URL.format("first"))).content)
    done = verify(directory, public)
    assert (done.returncode, "no signature by this key" in done.stderr) == (2, True)


async def test_versions_that_are_not_served_get_no_statement(open_gateway: OpenHouse, private: Path) -> None:
    async with open_gateway(signing_key=private, max_update_ratio=1e-9) as running:
        assert (await running.http.post("/adapters", files=form("bad"))).status_code == 422
        answer = await running.http.get(URL.format("bad"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "version_not_ready")
        answer = await running.http.get(URL.format("unknown"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "adapter_not_found")


async def test_a_version_is_no_longer_attested_once_the_policy_withholds_it(
    open_gateway: OpenHouse, private: Path
) -> None:
    async with open_gateway(signing_key=private) as running:
        assert (await running.http.post("/adapters", files=form("first"))).status_code == 201
    async with open_gateway(signing_key=private, max_update_ratio=1e-9) as running:
        answer = await running.http.get(URL.format("first"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "version_not_ready")
        assert "withheld" in answer.json()["error"]["message"]


async def test_without_a_key_there_are_no_statements(running: Running) -> None:
    assert (await running.http.post("/adapters", files=form("first"))).status_code == 201
    answer = await running.http.get(URL.format("first"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_signed")


async def test_the_same_version_is_stated_in_the_same_bytes(open_gateway: OpenHouse, private: Path) -> None:
    async with open_gateway(signing_key=private) as running:
        assert (await running.http.post("/adapters", files=form("first"))).status_code == 201
        first, again = [(await running.http.get(URL.format("first"))).json() for _ in range(2)]
    assert first == again
    assert base64.b64decode(first["payload"]).startswith(b'{"_type":"https://in-toto.io/Statement/v1"')


def test_a_key_that_cannot_sign_refuses_the_start(private: Path, public: Path) -> None:
    with pytest.raises(ValidationError, match="no unencrypted private key"):
        Settings.model_validate({"model": "m", "reference": "r", "open": True, "signing_key": public})


async def test_the_manifest_carries_a_statement_that_is_verified_by_itself(
    open_gateway: OpenHouse, private: Path, public: Path, tmp_path: Path
) -> None:
    async with open_gateway(signing_key=private) as running:
        directory = await signed(running, "first", tmp_path / "first")
    (directory / "attestation.json").unlink()
    done = verify(directory, public)
    assert done.returncode == 0, done.stderr
    assert "says nothing about them" in done.stdout
    (directory / "model.sig").write_text("{}")  # no engine reads it
    assert verify(directory, public).returncode == 0
    another = signing_key(tmp_path / "another.pem").with_suffix(".pub")
    assert verify(directory, another).returncode == 2


def sign(data: Path, key: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app", "store", "sign", "--data", str(data), "--key", str(key)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


async def test_an_artefact_without_a_trusted_signature_is_not_loaded(
    open_gateway: OpenHouse, private: Path, tmp_path: Path
) -> None:
    async with open_gateway() as running:
        assert (await running.http.post("/adapters", files=form("old"))).status_code == 201
        running.simulator.loaded.clear()  # as a new engine
    required = {"signing_key": private, "require_signed": True}
    async with open_gateway(**required) as running:
        assert (await running.http.post("/adapters", files=form("new", 1))).status_code == 201
        assert {name.partition("@")[0] for name in running.simulator.loaded} == {"new"}
        chat = {"model": "old", "messages": [{"role": "user", "content": "hello"}]}
        answer = await running.http.post("/v1/chat/completions", json=chat)
        assert answer.status_code == 503, answer.text
    done = sign(running.data, private)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 artefacts are signed" in done.stdout
    async with open_gateway(**required) as running:
        await until(running, "old", 200)


async def test_what_an_audit_does_not_find_intact_is_not_signed(open_gateway: OpenHouse, private: Path) -> None:
    async with open_gateway() as running:
        pushed = (await running.http.post("/adapters", files=form("first"))).json()
    weights = running.data / "artefacts" / pushed["digest"] / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    done = sign(running.data, private)
    assert done.returncode == 1
    assert "nothing was signed" in done.stdout
    assert "statement" not in json.loads((weights.parent / "manifest.json").read_bytes())


def test_signatures_are_not_asked_for_where_nothing_can_be_signed(private: Path, public: Path) -> None:
    given = {"model": "m", "reference": "r", "open": True}
    with pytest.raises(ValidationError, match="require_signed needs signing_key"):
        Settings.model_validate({**given, "require_signed": True})
    with pytest.raises(ValidationError, match="no public key"):
        Settings.model_validate({**given, "signing_key": private, "trusted_keys": str(private)})
    with pytest.raises(ValidationError, match="counts only with require_signed"):
        Settings.model_validate({**given, "signing_key": private, "trusted_keys": str(public)})
    settings = Settings.model_validate(
        {**given, "signing_key": private, "require_signed": True, "trusted_keys": f"{public}, {public}"}
    )
    assert len(settings.signatures.trusted or ()) == 3


async def test_a_signature_of_model_signing_needs_a_key_that_the_format_has(
    open_gateway: OpenHouse, private: Path, tmp_path: Path
) -> None:
    async with open_gateway(signing_key=private) as running:
        assert (await running.http.post("/adapters", files=form("first"))).status_code == 201
        answer = await running.http.get("/adapters/first/versions/1/signature")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_signed")
        assert "P-256" in answer.json()["error"]["message"]
    key = signing_key(tmp_path / "p256.pem", P256)
    async with open_gateway(signing_key=key) as running:
        version = (await running.http.get("/adapters/first/versions/1")).json()
        answer = await running.http.get("/adapters/first/versions/1/signature")
    assert answer.status_code == 200, answer.text
    payload = opened(envelope_in(answer.content), PAYLOAD_TYPE, read_public_key(key.with_suffix(".pub")))
    folder = running.data / "artefacts" / version["digest"]
    assert signed_files(payload) == {name: digest_of((folder / name).read_bytes()) for name in ENGINE_FILES}


async def test_a_manifest_that_was_changed_in_the_store_is_not_signed(open_gateway: OpenHouse, tmp_path: Path) -> None:
    async with open_gateway(signing_key=signing_key(tmp_path / "p256.pem", P256)) as running:
        pushed = (await running.http.post("/adapters", files=form("first"))).json()
        manifest = running.data / "artefacts" / pushed["digest"] / "manifest.json"
        fields = json.loads(manifest.read_bytes())
        fields["files"]["adapter_model.safetensors"] = "0" * 64
        manifest.chmod(0o644)
        manifest.write_text(json.dumps(fields))
        for route in ("attestation", "signature"):
            answer = await running.http.get(f"/adapters/first/versions/1/{route}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "store_failed")


async def test_engines_that_fetch_are_not_told_of_what_nobody_signed(open_gateway: OpenHouse, private: Path) -> None:
    async with open_gateway() as running:
        pushed = (await running.http.post("/adapters", files=form("old"))).json()
    async with open_gateway(signing_key=private, require_signed=True) as running:
        for path in ("/resolve/old@1", f"/artefacts/{pushed['digest']}/adapter_config.json"):
            assert (await running.http.get(path)).json()["error"]["code"] == "store_failed"
