"""Signed envelopes, also against the openssl program, which knows nothing of them."""

import base64
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.domain.errors import Refused
from app.store.envelope import Signer, key_id, opened, read_public_key

TYPE = "application/vnd.in-toto+json"
KINDS = {
    "ed25519": ["-algorithm", "ed25519"],
    "p256": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
    "rsa": ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
    "p384": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
}

Pair = Callable[[str], tuple[Path, Path]]


def openssl(*arguments: str | Path) -> bytes:
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True).stdout


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Kind of key → files of a private and a public key, another pair each time."""

    def made(kind: str) -> tuple[Path, Path]:
        private = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}.pem"
        openssl("genpkey", *KINDS[kind], "-out", private)
        public = private.with_suffix(".pub")
        openssl("pkey", "-in", private, "-pubout", "-out", public)
        return private, public

    return made


@pytest.mark.parametrize("kind", ["ed25519", "p256"])
def test_what_was_signed_is_opened_by_its_key_alone(pair: Pair, kind: str) -> None:
    (private, public), (_, another) = pair(kind), pair(kind)
    envelope = json.dumps(Signer.read(private).sign(b"payload", TYPE)).encode()
    assert opened(envelope, TYPE, read_public_key(public)) == b"payload"
    with pytest.raises(Refused, match="no signature by this key"):
        opened(envelope, TYPE, read_public_key(another))


@pytest.mark.parametrize("kind", ["ed25519", "p256"])
def test_openssl_verifies_the_signature_over_the_encoding_of_the_protocol(
    pair: Pair, tmp_path: Path, kind: str
) -> None:
    private, public = pair(kind)
    envelope = Signer.read(private).sign(b"hello world", "http://example.com/HelloWorld")
    (tmp_path / "signed").write_bytes(
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )  # the protocol's example
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    files: list[str | Path] = [
        "-pubin",
        "-inkey",
        public,
        "-sigfile",
        tmp_path / "sig",
        "-in",
        tmp_path / "signed",
        "-rawin",
    ]
    files += ["-digest", "sha256"] if kind == "p256" else []
    assert b"Signature Verified Successfully" in openssl("pkeyutl", "-verify", *files)
    der = openssl("pkey", "-pubin", "-in", public, "-pubout", "-outform", "DER")
    (tmp_path / "der").write_bytes(der)
    assert openssl("dgst", "-sha256", "-r", tmp_path / "der").split()[0].decode() == envelope["signatures"][0]["keyid"]
    assert key_id(read_public_key(public)) == envelope["signatures"][0]["keyid"]


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another payload": lambda e: {**e, "payload": base64.b64encode(b"other").decode()},
    "another type": lambda e: {**e, "payloadType": "text/plain"},
    "no signature": lambda e: {**e, "signatures": []},
    "a signature that is no base64": lambda e: {**e, "signatures": [{"sig": "%%"}]},
    "a signature cut short": lambda e: {**e, "signatures": [{"sig": e["signatures"][0]["sig"][:8]}]},
    "a list": lambda e: [e],
    "no payload": lambda e: {key: value for key, value in e.items() if key != "payload"},
    "signatures that are no list": lambda e: {**e, "signatures": 3},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_envelope_is_refused(pair: Pair, change: str) -> None:
    private, public = pair("ed25519")
    envelope = json.dumps(CHANGES[change](Signer.read(private).sign(b"payload", TYPE))).encode()
    with pytest.raises(Refused) as refused:
        opened(envelope, TYPE, read_public_key(public))
    assert refused.value.code.name == "bad_statement"


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"[" * 100_000, b'{"payload": "aGk="}'])
def test_what_is_no_envelope_is_refused(pair: Pair, raw: bytes) -> None:
    with pytest.raises(Refused, match="not a DSSE envelope"):
        opened(raw, TYPE, read_public_key(pair("ed25519")[1]))


def test_a_payload_of_another_type_is_refused_though_it_is_signed(pair: Pair) -> None:
    private, public = pair("ed25519")
    envelope = json.dumps(Signer.read(private).sign(b"payload", "text/plain")).encode()
    with pytest.raises(Refused, match="another type"):
        opened(envelope, TYPE, read_public_key(public))


@pytest.mark.parametrize("kind", ["rsa", "p384"])
def test_keys_of_other_kinds_are_refused_by_name(pair: Pair, kind: str) -> None:
    private, public = pair(kind)
    for read, path in ((Signer.read, private), (read_public_key, public)):
        with pytest.raises(ValueError, match="Ed25519, or ECDSA on the curve P-256"):
            read(path)


def test_what_is_no_key_says_so(pair: Pair, tmp_path: Path) -> None:
    private, public = pair("ed25519")
    (tmp_path / "empty").write_bytes(b"")
    locked = tmp_path / "locked.pem"
    openssl("pkey", "-in", private, "-aes256", "-passout", "pass:1234", "-out", locked)
    for path in (public, tmp_path / "empty", locked, tmp_path / "absent", tmp_path):
        with pytest.raises(ValueError, match=path.name):
            Signer.read(path)
    for path in (private, tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(ValueError, match=path.name):
            read_public_key(path)
