"""Uploads with a signature: by a tenant's own key, by another's, over other bytes, and none where one is asked for."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.domain.digest import digest_of
from app.domain.model_signing import bundle_of, model_statement
from app.domain.statement import PAYLOAD_TYPE
from app.server.settings import Settings
from app.store.envelope import Signer
from tests.support.gateway import OpenHouse, Running, form
from tests.support.signing import P256, signing_key


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return signing_key(tmp_path_factory.mktemp("maker") / "key.pem", P256)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return signing_key(tmp_path_factory.mktemp("stranger") / "key.pem", P256)


def trusting(*keys: Path, tenant: str = "default") -> str:
    return ",".join(f"{tenant}={key.with_suffix('.pub')}" for key in keys)


def signature(key: Path, upload: Any, **changed: bytes) -> bytes:
    """Signature of an upload's files in the form of `model_signing` (run in tests/clients/test_model_signing.py)."""
    parts = {"adapter_config.json": upload["config"][1], "adapter_model.safetensors": upload["weights"][1], **changed}
    files = {name: digest_of(data) for name, data in parts.items()}
    signer = Signer.read(key)
    return json.dumps(bundle_of(signer.sign(model_statement("d", files), PAYLOAD_TYPE), signer.public_pem)).encode()


def crowded(bundle: bytes) -> bytes:
    """The bundle with as many signatures as fit into the part."""
    fields = json.loads(bundle)
    fields["dsseEnvelope"]["signatures"] *= 300
    return json.dumps(fields).encode()


async def sent(running: Running, upload: Any, signed: bytes | None, path: str = "/adapters") -> tuple[int, str | None]:
    part = {} if signed is None else {"signature": ("model.sig", signed)}
    answer = await running.http.post(path, files={**upload, **part})
    return answer.status_code, answer.json()["error"]["code"] if answer.is_error else None


async def test_an_upload_is_taken_with_the_signature_of_a_key_that_is_trusted(
    open_gateway: OpenHouse, maker: Path, stranger: Path
) -> None:
    both = trusting(stranger, maker)
    async with open_gateway(upload_keys=both, require_signed_uploads=True) as running:
        upload = form("first")
        assert await sent(running, upload, signature(maker, upload, **{"README.md": b"beside them"})) == (201, None)
        assert await sent(running, upload, signature(maker, upload), "/screen") == (200, None)
        assert await sent(running, form("other", 1), None) == (422, "signature_required")
        assert await sent(running, form("other", 1), None, "/screen") == (422, "signature_required")


@pytest.mark.hostile("T06")
async def test_a_signature_that_is_not_this_uploads_is_refused(
    open_gateway: OpenHouse, maker: Path, stranger: Path
) -> None:
    upload, other = form("first"), form("first", 1)
    forged = [
        signature(stranger, upload),
        signature(maker, other),
        signature(maker, upload, **{"adapter_config.json": b"{}"}),
        b"",
        b"no bundle",
        b"[" * 60_000,
        json.dumps({"dsseEnvelope": {"payloadType": "\ud800", "payload": "", "signatures": [{"sig": ""}]}}).encode(),
        crowded(signature(stranger, upload)),
        json.dumps(
            {"dsseEnvelope": json.loads(signature(maker, upload))["dsseEnvelope"] | {"payload": "e30="}}
        ).encode(),
    ]
    async with open_gateway(upload_keys=trusting(maker)) as running:
        for signed in forged:
            assert await sent(running, upload, signed) == (422, "bad_signature"), signed[:80]
        assert await sent(running, upload, b"x" * (65 << 10)) == (413, "too_large")
        assert (await running.http.get("/adapters")).json()["adapters"] == []
        assert not [path for path in (running.data / "quarantine").rglob("*") if path.is_file() and path.stat().st_size]
        for _ in range(9):  # more than there are slots
            assert (await sent(running, upload, forged[-3]))[0] == 422
        assert await sent(running, upload, None) == (201, None)  # none is asked for


async def test_a_key_counts_for_its_own_tenant(open_gateway: OpenHouse, maker: Path) -> None:
    upload = form("first")
    async with open_gateway(upload_keys=trusting(maker, tenant="acme")) as running:
        assert await sent(running, upload, signature(maker, upload)) == (422, "bad_signature")
        assert await sent(running, upload, signature(maker, upload), "/adapters?tenant=acme") == (201, None)


def test_keys_that_are_none_stop_the_start(maker: Path, tmp_path: Path) -> None:
    given = {"model": "m", "reference": "r", "open": True}
    for entry, why in (
        ("acme", "is not like acme="),
        (f"acme={tmp_path / 'missing'}", "No such file"),
        (f"acme={maker}", "no public key"),
        (f"No Tenant={maker.with_suffix('.pub')}", "tenant"),
    ):
        with pytest.raises(ValidationError, match=why):
            Settings.model_validate({**given, "upload_keys": entry})
    with pytest.raises(ValidationError, match="no upload would be taken"):
        Settings.model_validate({**given, "require_signed_uploads": True})
