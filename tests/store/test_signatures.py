"""Signed manifests of artefacts, in a directory and in object storage: written, asked for, and made anew."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from app.domain.artefact import MANIFEST_FILE, Artefact
from app.domain.digest import digest_of
from app.domain.errors import STORE_FAILED, Unavailable
from app.domain.manifest import manifest_json
from app.domain.statement import PAYLOAD_TYPE, artefact_statement
from app.store.artefacts.local import BlobStore
from app.store.artefacts.s3 import RemoteBlobs
from app.store.artefacts.s3_client import Objects
from app.store.artefacts.signatures import UNSIGNED, Signatures, statement_in
from app.store.envelope import Signer, read_public_key
from tests.store.making import artefact, received, verdict
from tests.support.s3 import Storage, storage
from tests.support.signing import signing_key

__all__ = ["storage"]

Open = Callable[[Signatures], AbstractContextManager[BlobStore]]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return signing_key(tmp_path_factory.mktemp("ours") / "key.pem")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return signing_key(tmp_path_factory.mktemp("theirs") / "key.pem")


@pytest.fixture(params=["directory", "object storage"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """A store opened with these signatures; in object storage without any local copy each time."""
    if request.param == "directory":
        return lambda signatures: BlobStore(tmp_path / "artefacts", signatures=signatures)
    url, numbers = request.getfixturevalue("storage").url, iter(range(99))

    def remote(signatures: Signatures) -> BlobStore:
        return RemoteBlobs(tmp_path / f"copies-{next(numbers)}", Objects(url), "catalogue", signatures=signatures)

    return remote


def made(seed: int = 1) -> Artefact:
    """An artefact whose manifest has a verdict."""
    one = artefact(seed)
    digests = {"config": digest_of(one.config), "weights": digest_of(one.weights)}
    return replace(one, manifest=manifest_json(received(seed), verdict(seed=seed), **digests))


def signing(key: Path, *trusted: Path) -> Signatures:
    """Signs with a key, and asks for its signature or another's."""
    signer = Signer.read(key)
    others = (read_public_key(one.with_suffix(".pub")) for one in trusted)
    return Signatures(signer, (signer.key.public_key(), *others))


def refusal(store: BlobStore, one: Artefact) -> str:
    with pytest.raises(Unavailable) as raised:
        store.verify(one.digest)
    assert raised.value.code is STORE_FAILED
    return raised.value.message


@pytest.mark.hostile("T06")
def test_only_what_a_trusted_key_signed_is_given_to_an_engine(opened: Open, ours: Path, theirs: Path) -> None:
    with opened(signing(ours)) as store:
        store.put(made())
        store.verify(made().digest)
    with opened(signing(theirs)) as store:
        assert "no signature by this key" in refusal(store, made())
    with opened(signing(theirs, ours)) as store:
        store.verify(made().digest)  # the key that signed is not in use any more, and trusted


def test_artefacts_from_before_there_was_a_key_are_signed_on_demand(opened: Open, ours: Path) -> None:
    with opened(UNSIGNED) as store:
        store.put(made(1))
        store.put(made(2))
    with opened(signing(ours)) as store:
        assert "no signed statement" in refusal(store, made(1))
        assert "store sign" in refusal(store, made(1))
        store.sign(made(1).digest)
        store.verify(made(1).digest)
        store.put(made(2))  # the same upload again
        store.verify(made(2).digest)
    with opened(signing(ours)) as store:
        for seed in (1, 2):
            store.verify(made(seed).digest)


def test_a_key_signs_what_comes_again_though_no_signature_is_asked_for(opened: Open, ours: Path) -> None:
    with opened(UNSIGNED) as store:
        store.put(made())
    with opened(Signatures(Signer.read(ours))) as store:
        store.put(made())
    with opened(signing(ours)) as store:
        store.verify(made().digest)


def test_a_lost_key_is_replaced(opened: Open, ours: Path, theirs: Path) -> None:
    with opened(signing(theirs)) as store:
        store.put(made())
    with opened(signing(ours)) as store:
        store.sign(made().digest)
        store.verify(made().digest)
        assert not list((store.root / made().digest.hex).glob("*.new"))


def test_nothing_damaged_is_signed(opened: Open, ours: Path) -> None:
    with opened(UNSIGNED) as store:
        folder = store.put(made())
        weights = folder / "adapter_model.safetensors"
        weights.chmod(0o644)
        weights.write_bytes(b"other bytes")
    with BlobStore(folder.parent, signatures=signing(ours)) as store, pytest.raises(Unavailable, match="not those"):
        store.sign(made().digest)
    assert statement_in((folder / MANIFEST_FILE).read_bytes()) is None


@pytest.mark.hostile("T06")
@pytest.mark.parametrize("field", ["files", "verdict", "received", "statement"])
def test_a_signature_covers_files_verdict_and_upload(ours: Path, field: str) -> None:
    signatures = signing(ours)
    one, other = (json.loads(signatures.signed(made(seed).manifest)) for seed in (1, 2))
    assert signatures.objection(json.dumps(one).encode()) is None
    assert "something else" in str(signatures.objection(json.dumps({**one, field: other[field]}).encode()))


@pytest.mark.hostile("T06")
@pytest.mark.parametrize(
    "statement",
    [
        None,
        1,
        [],
        "x",
        {},
        {"payload": 1, "payloadType": "x", "signatures": [{}]},
        {"payload": "e30=", "signatures": []},
    ],
    ids=["none", "number", "list", "text", "empty", "odd", "unsigned"],
)
def test_what_is_not_an_envelope_is_refused(ours: Path, statement: object) -> None:
    signatures = signing(ours)
    fields = {**json.loads(made().manifest), "statement": statement}
    assert signatures.objection(json.dumps(fields).encode()) is not None
    assert signatures.objection(b"\xff not JSON") is not None


def test_a_release_that_states_more_is_understood(ours: Path) -> None:
    signer, fields = Signer.read(ours), json.loads(made().manifest)
    statement = artefact_statement("9.9", fields)
    more = replace(statement, predicate={**statement.predicate, "added": "later"}).encode()
    manifest = json.dumps({**fields, "statement": signer.sign(more, PAYLOAD_TYPE)}).encode()
    assert signing(ours).objection(manifest) is None


def test_a_copy_from_before_the_key_tells_what_the_storage_was_given_since(
    storage: Storage, tmp_path: Path, ours: Path
) -> None:
    objects, key = Objects(storage.url), Signatures(Signer.read(ours))
    with RemoteBlobs(tmp_path / "one", objects, "catalogue") as one:
        one.put(made())
    with RemoteBlobs(tmp_path / "two", objects, "catalogue", signatures=key) as two:
        two.sign(made().digest)
    with RemoteBlobs(tmp_path / "one", objects, "catalogue", signatures=key) as one:
        assert statement_in(one.checked_manifest(made().digest)) is not None


@pytest.mark.hostile("T06")
def test_a_copy_in_object_storage_that_lost_its_signature_is_not_fetched(
    storage: Storage, tmp_path: Path, ours: Path
) -> None:
    objects, keys = Objects(storage.url), signing(ours)
    with RemoteBlobs(tmp_path / "one", objects, "catalogue", signatures=keys) as one:
        one.put(made())
    objects.replace(f"{made().digest.hex}/{MANIFEST_FILE}", made().manifest)
    with RemoteBlobs(tmp_path / "two", objects, "catalogue", signatures=keys) as two:
        assert "no signed statement" in refusal(two, made())
        assert not two.path(made().digest).exists()
