"""Adapters in a bucket of a real S3-compatible server (moto), read by ETag; and storages that do not keep their word."""

import urllib.request
from datetime import timedelta
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import obstore
import pytest
from obstore.store import S3Store

from app.domain.adapter_source import BucketSource
from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
from app.domain.errors import (
    SOURCE_BROKEN,
    SOURCE_CHANGED,
    SOURCE_FORBIDDEN,
    SOURCE_NOT_FOUND,
    Code,
    GatewayError,
)
from app.domain.outside import Outside
from app.fetch.bucket import PinnedObjects, Storage
from app.fetch.client import Connected, SourceClient
from tests.fetch.test_client import names
from tests.support.hub import RunningHub, running_hub, say
from tests.support.s3 import BUCKET, storage
from tests.support.s3 import Storage as Server

__all__ = ["storage"]

WEIGHTS: Final = bytes(range(256)) * 400
SOURCE: Final = BucketSource(BUCKET, "adapters/sql")
KEYS: Final = ("import-key", "import-secret")


@pytest.fixture
def bucket(storage: Server) -> S3Store:
    """The bucket, with the two files of SOURCE and one more."""
    store = S3Store(BUCKET, client_options={"allow_http": True})
    for name, data in ((CONFIG_FILE, b"{}"), (WEIGHTS_FILE, WEIGHTS), ("README.md", b"x")):
        obstore.put(store, SOURCE.path(name), data)
    storage.faults.seen.clear()
    return store


def client_of(url: str) -> SourceClient:
    return SourceClient(Outside.of([url]), names("127.0.0.1"))


async def contents(pinned: PinnedObjects) -> list[bytes]:
    found = []
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        async with pinned.open(file) as opened:
            found.append(b"".join([chunk async for chunk in opened.chunks]))
    return found


async def test_the_two_objects_are_read_at_their_etags(storage: Server, bucket: S3Store) -> None:
    async with client_of(storage.endpoint).connected() as http:
        pinned = await Storage(storage.endpoint, "us-east-1", *KEYS).pin(http, SOURCE)
        assert await contents(pinned) == [b"{}", WEIGHTS]
    head = obstore.head(bucket, SOURCE.path(WEIGHTS_FILE))
    assert pinned.provenance.source == "s3://bucket/adapters/sql"
    assert pinned.provenance.pin[WEIGHTS_FILE] == str(head["e_tag"]).strip('"')
    paths = [(method, path.rpartition("/")[2]) for method, path, _ in storage.faults.seen[:4]]
    assert paths == [(method, file) for method in ("HEAD", "GET") for file in (CONFIG_FILE, WEIGHTS_FILE)]


def publish(bucket: S3Store) -> None:
    """Write the two objects so that anybody may read them."""
    for file, data in ((CONFIG_FILE, b"{}"), (WEIGHTS_FILE, WEIGHTS)):
        url = obstore.sign(bucket, "PUT", SOURCE.path(file), timedelta(minutes=5))
        # as bytes: urllib's own type is a form's, which the server would read twice
        headers = {"x-amz-acl": "public-read", "Content-Type": "application/octet-stream"}
        urllib.request.urlopen(urllib.request.Request(url, data, headers, method="PUT"), timeout=60).close()


async def test_without_keys_public_objects_are_read_and_no_others(storage: Server, bucket: S3Store) -> None:
    async with client_of(storage.endpoint).connected() as http:
        anybody = Storage(storage.endpoint, "us-east-1")
        with pytest.raises(GatewayError) as caught:
            await anybody.pin(http, SOURCE)
        assert caught.value.code is SOURCE_FORBIDDEN
        publish(bucket)
        assert await contents(await anybody.pin(http, SOURCE)) == [b"{}", WEIGHTS]


def test_requests_are_signed_with_the_imports_keys_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "the-stores")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.internal")
    address = Storage("https://s3.example.com", "eu-north-1", *KEYS).addresses(BUCKET)("GET", "a/b")
    assert address.startswith(f"https://s3.example.com/{BUCKET}/a/b?")
    query = parse_qs(urlsplit(address).query)
    assert query["X-Amz-Credential"][0].startswith("import-key/")
    assert "/eu-north-1/s3/" in query["X-Amz-Credential"][0]
    assert "the-stores" not in address
    assert "import-secret" not in address + repr(Storage("https://s3.example.com", "eu-north-1", *KEYS))


async def pin_and(storage: Server, change: Any) -> Code:
    """The code of the refusal after a change between looking and reading."""
    async with client_of(storage.endpoint).connected() as http:
        pinned = await Storage(storage.endpoint, "us-east-1", *KEYS).pin(http, SOURCE)
        change()
        with pytest.raises(GatewayError) as caught:
            await contents(pinned)
    assert "Signature" not in caught.value.message
    return caught.value.code


@pytest.mark.hostile("U32")
@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE])
async def test_an_object_that_is_written_again_meanwhile_is_refused(
    storage: Server, bucket: S3Store, file: str
) -> None:
    change = lambda: obstore.put(bucket, SOURCE.path(file), b"other")  # noqa: E731
    assert await pin_and(storage, change) is SOURCE_CHANGED


@pytest.mark.hostile("U32")
async def test_an_object_that_is_deleted_meanwhile_is_refused(storage: Server, bucket: S3Store) -> None:
    assert await pin_and(storage, lambda: obstore.delete(bucket, SOURCE.path(WEIGHTS_FILE))) is SOURCE_NOT_FOUND


@pytest.mark.parametrize("source", [BucketSource(BUCKET, "nowhere"), BucketSource("no-such-bucket", "adapters/sql")])
async def test_what_is_not_there_is_said(storage: Server, bucket: S3Store, source: BucketSource) -> None:
    async with client_of(storage.endpoint).connected() as http:
        with pytest.raises(GatewayError) as caught:
            await Storage(storage.endpoint, "us-east-1", *KEYS).pin(http, source)
    assert caught.value.code is SOURCE_NOT_FOUND


async def read_of(server: RunningHub, http: Connected) -> list[bytes]:
    return await contents(await Storage(server.url, "us-east-1").pin(http, SOURCE))


@pytest.mark.hostile("U29")
@pytest.mark.parametrize(
    ("first", "then", "code"),
    [
        ({}, {}, SOURCE_BROKEN),
        ({"ETag": "x" * 300}, {}, SOURCE_BROKEN),
        ({"ETag": '"1"'}, {"ETag": '"2"'}, SOURCE_CHANGED),
        ({"ETag": '"1"'}, {}, SOURCE_BROKEN),
        ({"ETag": '"1"'}, {"ETag": '"1"', "Content-Length": "99"}, SOURCE_BROKEN),
    ],
    ids=["no_etag", "long_etag", "ignores_if_match", "forgets_it", "short"],
)
async def test_a_storage_that_does_not_keep_its_word_is_refused(
    first: dict[str, str], then: dict[str, str], code: Code
) -> None:
    with running_hub({}) as server:
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            server.instead[f"/{BUCKET}/{SOURCE.path(file)}"] = lambda to: say(
                to, b"hello", first if to.command == "HEAD" else then
            )
        async with client_of(server.url).connected() as http:
            with pytest.raises(GatewayError) as caught:
                await read_of(server, http)
    assert caught.value.code is code


@pytest.mark.parametrize("status", [401, 403])
async def test_a_storage_that_refuses_asks_for_a_credential(status: int) -> None:
    with running_hub({}) as server:
        server.instead[f"/{BUCKET}/{SOURCE.path(CONFIG_FILE)}"] = lambda to: say(to, b"", {}, status)
        async with client_of(server.url).connected() as http:
            with pytest.raises(GatewayError) as caught:
                await read_of(server, http)
    assert caught.value.code is SOURCE_FORBIDDEN


@pytest.mark.hostile("U30")
async def test_a_storage_that_redirects_is_not_followed() -> None:
    with running_hub({}) as server, running_hub({}) as other:
        location = {"Location": f"{other.url}/x"}
        server.instead[f"/{BUCKET}/{SOURCE.path(CONFIG_FILE)}"] = lambda to: say(to, b"", location, 307)
        client = SourceClient(Outside.of([server.url, other.url]), names("127.0.0.1"))
        async with client.connected() as http:
            with pytest.raises(GatewayError, match="307"):
                await read_of(server, http)
        assert not other.seen
