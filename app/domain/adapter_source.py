"""Adapter sources: names of adapters on a hub or in a bucket, an operator's patterns for them, and what was read there."""

import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

from app.domain.errors import BAD_SOURCE, Refused
from app.domain.printable import printable
from app.domain.tenants import DEFAULT

MAX_SOURCE: Final = 1024
"""Most characters of a source's name."""

HUB: Final = "hf://"
BUCKET: Final = "s3://"
HUB_FORM: Final = "hf://org/repository[@revision][/folder]"
BUCKET_FORM: Final = "s3://bucket/prefix"

TENANT: Final = "{tenant}"
"""Part of a pattern that stands for the tenant who imports."""

_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"  # nothing in it can be read as a path upwards, a query or an escape
_HUB: Final = re.compile(rf"{HUB}(?P<repository>{_PART}/{_PART})(?:@(?P<revision>{_PART}))?(?P<folder>(?:/{_PART})*)/?")
_BUCKET: Final = re.compile(
    rf"{BUCKET}(?P<bucket>[a-z0-9][a-z0-9.-]{{1,61}}[a-z0-9])/(?P<prefix>{_PART}(?:/{_PART})*)/?"
)
_PATTERN: Final = re.compile(rf"{HUB}(?:\*|{_PART}/(?:\*|{_PART}))|{BUCKET}{_PART}/(?:{_PART}/)*(?:\*|{_PART})")


@dataclass(frozen=True, slots=True)
class HubSource:
    """Name of an adapter on a hub. revision: branch, tag or commit; folder: within the repository, or empty."""

    repository: str
    revision: str
    folder: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `hf://org/repository@revision/folder`. Raises Refused BAD_SOURCE for another form."""
        match = _HUB.fullmatch(text) if len(text) <= MAX_SOURCE else None
        if match is None:
            raise _malformed(text, HUB_FORM)
        return cls(match["repository"], match["revision"] or "main", match["folder"].strip("/"))

    @property
    def place(self) -> str:
        """Its repository, as patterns name it."""
        return f"{HUB}{self.repository}"

    def path(self, file: str) -> str:
        """Return a file's path within the repository."""
        return f"{self.folder}/{file}" if self.folder else file

    def __str__(self) -> str:
        return f"{self.place}@{self.revision}{f'/{self.folder}' if self.folder else ''}"


@dataclass(frozen=True, slots=True)
class BucketSource:
    """Name of an adapter in a bucket: its two files are the objects `prefix/<file>`."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `s3://bucket/prefix`. Raises Refused BAD_SOURCE for another form."""
        match = _BUCKET.fullmatch(text) if len(text) <= MAX_SOURCE else None
        if match is None:
            raise _malformed(text, BUCKET_FORM)
        return cls(match["bucket"], match["prefix"])

    @property
    def place(self) -> str:
        """The source, as patterns name it."""
        return f"{BUCKET}{self.bucket}/{self.prefix}"

    def path(self, file: str) -> str:
        """Return a file's key within the bucket."""
        return f"{self.prefix}/{file}"

    def __str__(self) -> str:
        return self.place


AdapterSource = HubSource | BucketSource


def source_of(text: str) -> AdapterSource:
    """Parse the name of a source. Raises Refused BAD_SOURCE."""
    if text.startswith(HUB):
        return HubSource.parse(text)
    if text.startswith(BUCKET):
        return BucketSource.parse(text)
    raise _malformed(text, f"{HUB_FORM} or {BUCKET_FORM}")


def _malformed(text: str, form: str) -> Refused:
    return Refused(BAD_SOURCE, f"{printable(text, 200)} is not of the form {form}", param="source")


@dataclass(frozen=True, slots=True)
class SourcePatterns:
    """Operator's list of sources that may be imported; none may if it is empty."""

    entries: tuple[str, ...] = ()

    @classmethod
    def of(cls, entries: Iterable[str]) -> Self:
        """Parse entries such as `hf://acme/*`, `hf://acme/sql` and `s3://adapters/{tenant}/*`. Raises ValueError.

        A `*` stands at the end and for everything below; TENANT for the label of the tenant who imports. A repository is
        allowed with all its folders and revisions.
        """
        found = tuple(entries)
        for entry in found:
            if not _PATTERN.fullmatch(entry.replace(TENANT, DEFAULT)):
                raise ValueError(f"{entry[:80]!r} is not a pattern such as hf://acme/* or s3://adapters/{TENANT}/*")
        return cls(found)

    def allow(self, source: AdapterSource, tenant: str) -> bool:
        """Return whether a tenant may import a source."""
        return any(_covers(entry.replace(TENANT, tenant), source.place) for entry in self.entries)


def _covers(pattern: str, place: str) -> bool:
    return place.startswith(pattern[:-1]) if pattern.endswith("*") else place == pattern


@dataclass(frozen=True, slots=True)
class Provenance:
    """Origin of an import. source: as it was asked for. pin: identifies the bytes there: a `commit`, or ETags by file."""

    source: str
    pin: Mapping[str, str]

    def plain(self) -> dict[str, Any]:
        """Return the report's part `source` as plain JSON values."""
        return {"name": self.source, "pin": dict(self.pin)}

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self:
        """Reverse `plain`."""
        return cls(fields["name"], fields["pin"])


@dataclass(frozen=True, slots=True, eq=False)
class SourceFile:
    """One file of a source, being read. size, sha256: as its server announced them, None if it did not.

    chunks: its bytes; raises GatewayError if they end early or are more than announced.
    """

    size: int | None
    sha256: str | None
    chunks: AsyncIterator[bytes]


class PinnedSource(Protocol):
    """Source at one commit, or at one ETag of each file."""

    @property
    def provenance(self) -> Provenance:
        """Origin and pin."""

    def open(self, file: str) -> AbstractAsyncContextManager[SourceFile]:
        """Open a file for reading. Raises GatewayError."""
