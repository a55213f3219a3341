"""Bucket: adapters in S3-compatible storage, each object read as it was when its ETag was looked up.

obstore signs the addresses; the requests are made by the checked client, so that the storage's name cannot lead elsewhere.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal

from app.domain.adapter_source import BucketSource, Provenance, SourceFile
from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
from app.domain.errors import SOURCE_BROKEN, SOURCE_CHANGED, Refused, Unavailable
from app.fetch.client import Answer, Connected, as_announced

if TYPE_CHECKING:
    from obstore.store import S3Credential

SIGNED_S: Final = 300
"""Seconds for which a signed address is valid; a request that has begun goes on."""

Method = Literal["HEAD", "GET"]
Address = Callable[[Method, str], str]

MAX_ETAG: Final = 200
"""Most characters of an ETag; S3's have 34 to 39."""


@dataclass(frozen=True, slots=True)
class Storage:
    """S3-compatible storage. url: its endpoint, without a slash at its end. access_key, secret_key: both or none; without
    them requests are not signed, as for public buckets."""

    url: str
    region: str
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)

    async def pin(self, http: Connected, source: BucketSource) -> "PinnedObjects":
        """Return the two objects with the ETags that they have now. Raises GatewayError."""
        address, etags = self.addresses(source.bucket), {}
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            url = address("HEAD", source.path(file))
            async with http.ask("HEAD", url, {}, secret={}, redirects=False) as answer:
                etags[file] = _etag(answer)
        return PinnedObjects(address, http, source, etags)

    def addresses(self, bucket: str) -> Address:
        """Return the function from a method and a key to an object's address, signed for that method if there are keys."""
        access_key, secret_key = self.access_key, self.secret_key
        if access_key is None or secret_key is None:
            return lambda _, key: f"{self.url}/{bucket}/{key}"
        import obstore
        from obstore.store import S3Store

        def credential() -> "S3Credential":
            """Return the keys, in place of those in the environment, which are for the gateway's own store."""
            return {"access_key_id": access_key, "secret_access_key": secret_key, "token": None, "expires_at": None}

        store = S3Store(
            bucket,
            config={
                "endpoint": self.url,
                "aws_endpoint_url_s3": self.url,  # or one in the environment would count, which is the store's
                "region": self.region,
                "virtual_hosted_style_request": False,
                "s3_express": False,
            },
            client_options={"allow_http": True},  # the endpoint's URL decides
            credential_provider=credential,
        )
        return lambda method, key: obstore.sign(store, method, key, timedelta(seconds=SIGNED_S))


@dataclass(frozen=True, slots=True)
class PinnedObjects:
    """The two objects of an adapter, by ETag."""

    _address: Address
    _http: Connected
    _source: BucketSource
    _etags: Mapping[str, str]

    @property
    def provenance(self) -> Provenance:
        """Origin, and the ETag of each file."""
        return Provenance(str(self._source), {file: etag.strip('"') for file, etag in self._etags.items()})

    @asynccontextmanager
    async def open(self, file: str) -> AsyncIterator[SourceFile]:
        """Open an object if it still has its ETag. Raises Refused SOURCE_CHANGED, or another GatewayError."""
        url, etag = self._address("GET", self._source.path(file)), self._etags[file]
        async with self._http.ask("GET", url, {"If-Match": etag}, secret={}, redirects=False) as answer:
            if _etag(answer) != etag:  # a storage that does not know If-Match
                raise Refused(SOURCE_CHANGED, f"{file} was written again", param="source")
            sizes = () if answer.length is None else (answer.length,)
            yield SourceFile(answer.length, None, as_announced(answer.chunks(), sizes))


def _etag(answer: Answer) -> str:
    found = answer.headers.get("ETag", "")
    if not found or len(found) > MAX_ETAG or not found.isascii() or not found.isprintable():
        raise Unavailable(SOURCE_BROKEN, "the storage gives an object no ETag")
    return found
