"""Client of S3-compatible storage: the few operations the store's guarantees rest on, and the conversion of errors.

Credentials, region and endpoint come from the environment variables every S3 client reads (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, …). The library (obstore, the extra `s3`) is imported on first use.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from app.domain.digest import Digest
from app.domain.errors import STORE_FAILED, Unavailable

if TYPE_CHECKING:
    from obstore.store import S3Store

CONNECT_S: Final = 5.0
"""Connection timeout, seconds."""

SILENCE_S: Final = 20.0
"""Read timeout, seconds without data."""

REQUEST_S: Final = 900.0
"""Timeout of one request in all, seconds: 2 GiB at 20 Mbit/s."""

RETRIES: Final = 4
RETRY_S: Final = 30.0
"""Number of retries, and seconds in all, for a failed request (5xx, broken connections)."""

DELETE_S: Final = 30.0
"""Timeout of one deletion, seconds: a single request, never retried by the client.

A request that was given up could come into effect after its retry was answered, and after the object was written again."""

SMALL_BYTES: Final = 16 << 20
"""Largest object that is read whole, bytes; manifests and configs are below 1 MiB."""

_CHUNK: Final = 4 << 20
"""Bytes per piece of a streamed object."""


class Missing(Unavailable):
    """Error: the object does not exist."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Timeouts and retries of the storage client; see the constants."""

    connect_s: float = CONNECT_S
    silence_s: float = SILENCE_S
    request_s: float = REQUEST_S
    retries: int = RETRIES
    retry_s: float = RETRY_S


class Objects:
    """Objects below one `s3://bucket/prefix`. Every method blocks and is thread-safe.

    All raise Unavailable STORE_FAILED (Missing, if a named object does not exist). trouble: error of the last
    operation, None if it succeeded.
    """

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        self.url = url
        self.trouble: str | None = None
        patience = patience or Patience()
        self._store = _open(url, patience)
        self._deleting = _open(url, replace(patience, silence_s=DELETE_S, request_s=DELETE_S, retries=0))

    def create(self, key: str, data: bytes) -> bool:
        """Create an object unless one of that name exists, atomically in the storage. Returns whether it was created."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._errors(f"write {key}"):
            try:
                obstore.put(self._store, key, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
        return True

    def replace(self, key: str, data: bytes) -> None:
        """Write an object, whether or not it exists."""
        import obstore

        with self._errors(f"write {key}"):
            obstore.put(self._store, key, data, use_multipart=False)

    def read(self, key: str) -> bytes:
        """Return the bytes of a small object (SMALL_BYTES)."""
        parts: list[bytes] = []
        self.stream(key, parts.append, SMALL_BYTES)
        return b"".join(parts)

    def stream(self, key: str, write: Callable[[bytes], object], limit: int | None = None) -> None:
        """Pass an object's bytes to `write`, piece by piece; its exceptions propagate. limit: most bytes accepted."""
        import obstore

        pieces: Iterator[bytes] | None = None
        with self._errors(f"read {key}"):
            found = obstore.get(self._store, key)
            if limit is not None and found.meta["size"] > limit:
                raise Unavailable(STORE_FAILED, f"object storage: {key} has more than {limit} bytes")
            pieces = iter(found.stream(min_chunk_size=_CHUNK))
        while True:
            with self._errors(f"read {key}"):
                piece = next(pieces, None)
            if piece is None:
                return
            write(bytes(piece))

    def written_at(self, key: str) -> datetime | None:
        """Return the time an object was last written, by the storage's clock; None if it does not exist."""
        import obstore

        with suppress(Missing), self._errors(f"look at {key}"):
            return obstore.head(self._store, key)["last_modified"]
        return None

    def listed(self) -> Iterator[tuple[str, int]]:
        """Yield every object's key and size in bytes, as far as the storage's listing is current."""
        import obstore

        with self._errors("list"):
            parts = iter(obstore.list(self._store))
        while True:
            with self._errors("list"):
                part = next(parts, None)
            if part is None:
                return
            for found in part:
                yield found["path"], found["size"]

    def digests(self) -> frozenset[Digest]:
        """Return the digests that objects are stored under, as far as the storage's listing is current."""
        import obstore

        with self._errors("list"):
            names = obstore.list_with_delimiter(self._store)["common_prefixes"]
        found = []
        for name in names:
            with suppress(ValueError):
                found.append(Digest(name.rstrip("/")))
        return frozenset(found)

    def delete(self, key: str) -> None:
        """Delete an object; one that does not exist counts as deleted.

        A single request that ends within DELETE_S; if it raises, the deletion may still come into effect.
        """
        import obstore

        with suppress(Missing), self._errors(f"delete {key}"):
            obstore.delete(self._deleting, key)

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """Convert the library's errors, which quote addresses and documents: only the first line is kept, else the type."""
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError as error:
            self.trouble = None
            raise Missing(STORE_FAILED, f"object storage: {doing}: no such object") from error
        except (BaseError, OSError) as error:
            self.trouble = f"object storage: {doing}: {str(error).partition(chr(10))[0][:200] or type(error).__name__}"
            raise Unavailable(STORE_FAILED, self.trouble) from error
        self.trouble = None


def _open(url: str, patience: Patience) -> "S3Store":
    try:
        from obstore.store import S3Store
    except ImportError as error:
        raise Unavailable(STORE_FAILED, "s3:// needs the extra `s3`: pip install '.[s3]'") from error
    client: dict[str, Any] = {
        "allow_http": True,  # the endpoint's URL decides
        "connect_timeout": timedelta(seconds=patience.connect_s),
        "read_timeout": timedelta(seconds=patience.silence_s),
        "timeout": timedelta(seconds=patience.request_s),
    }
    retry: dict[str, Any] = {"max_retries": patience.retries, "retry_timeout": timedelta(seconds=patience.retry_s)}
    try:
        return S3Store.from_url(url, client_options=client, retry_config=retry)  # type: ignore[arg-type]
    except Exception as error:
        raise Unavailable(STORE_FAILED, f"object storage {url}: {str(error).partition(chr(10))[0][:200]}") from error
