"""Statements of OpenSSF Model Signing: ours, and one of its own tool (run in tests/clients/test_model_signing.py)."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.domain.digest import digest_of
from app.domain.errors import BAD_STATEMENT, Refused
from app.domain.model_signing import envelope_in, model_statement, signed_files
from app.domain.statement import PAYLOAD_TYPE
from app.store.envelope import opened, read_public_key

RECORDED = Path(__file__).resolve().parent / "recorded" / "model-signing"
FILES = {"adapter_config.json": digest_of(b"{}\n"), "adapter_model.safetensors": digest_of(b"abc\n")}


def test_the_tools_own_signature_is_read() -> None:
    """Made by model-signing 1.1.1: `model_signing sign key d --private_key k.pem`, of two files with FILES' bytes."""
    envelope = envelope_in((RECORDED / "model.sig").read_bytes())
    assert signed_files(opened(envelope, PAYLOAD_TYPE, read_public_key(RECORDED / "key.pub"))) == FILES


def test_ours_is_read_back() -> None:
    assert signed_files(model_statement("bard@3", FILES)) == FILES


def changed(**fields: Any) -> bytes:
    return json.dumps({**json.loads(model_statement("bard@3", FILES)), **fields}).encode()


def with_resources(*resources: Any) -> bytes:
    return changed(predicate={"resources": resources})


@pytest.mark.hostile("T06")
@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        changed(_type="x"),
        changed(predicateType="urn:lora-gateway:screening:1"),
        changed(subject=[]),
        changed(subject=[{"name": "x", "digest": {"sha256": "0" * 64}}]),
        changed(predicate=None),
        with_resources(),
        with_resources({"name": "adapter_config.json", "algorithm": "sha256-sharded-10", "digest": "0" * 64}),
        with_resources(*[{"name": "x", "algorithm": "sha256", "digest": "0" * 64}] * 2),
        with_resources({"name": "x", "algorithm": "sha256", "digest": "no digest"}),
    ],
    ids=[
        "nothing",
        "list",
        "deep",
        "type",
        "predicate-type",
        "no-subject",
        "other-subject",
        "no-predicate",
        "no-files",
        "by-parts",
        "twice",
        "no-digest",
    ],
)
def test_what_is_no_such_statement_is_refused(payload: bytes) -> None:
    with pytest.raises(Refused) as raised:
        signed_files(payload)
    assert raised.value.code is BAD_STATEMENT


@pytest.mark.parametrize("bundle", [b"", b"[]", b"{}", b"[" * 100_000], ids=["nothing", "list", "empty", "deep"])
def test_what_is_no_bundle_is_refused(bundle: bytes) -> None:
    with pytest.raises(Refused) as raised:
        envelope_in(bundle)
    assert raised.value.code is BAD_STATEMENT
