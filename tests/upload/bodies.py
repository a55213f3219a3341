"""Multipart bodies, well-formed and not, and streams that bring them in pieces."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from app.concurrency.pools import Pool
from app.domain.shares import Resource, Shares
from app.upload.limits import KIB, UploadLimits
from app.upload.quarantine import Quarantine
from app.upload.receive import SealedUpload, receive

BOUNDARY = b"------------------------d74496d66958873e"
HEADERS = {"content-type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}
CLOSING = b"--" + BOUNDARY + b"--\r\n"

SMALL = UploadLimits(
    max_weights_bytes=64 * KIB,
    max_config_bytes=4 * KIB,
    max_name_bytes=KIB,
    max_part_header_bytes=KIB,
    max_preamble_bytes=64,
    min_rate_bytes_s=1000,
    rate_window_s=0.1,
    idle_timeout_s=0.2,
    max_concurrent=2,
    free_disk_floor_bytes=0,
)
"""Limits that a test reaches in milliseconds."""


def part(name: str, data: bytes = b"", headers: bytes = b"", filename: str | None = None) -> bytes:
    """One part, from its boundary to the line break after its data."""
    disposition = f'form-data; name="{name}"' + ("" if filename is None else f'; filename="{filename}"')
    head = b"--" + BOUNDARY + b"\r\nContent-Disposition: " + disposition.encode() + b"\r\n" + headers + b"\r\n"
    return head + data + b"\r\n"


def form(parts: Iterable[bytes]) -> bytes:
    """Parts and the closing boundary."""
    return b"".join(parts) + CLOSING


def body(name: bytes = b"mine", config: bytes = b"{}", weights: bytes = b"\0" * 100) -> bytes:
    """A well-formed upload."""
    return form(
        [
            part("name", name),
            part("config", config, b"Content-Type: application/json\r\n", "adapter_config.json"),
            part("weights", weights, b"Content-Type: application/octet-stream\r\n", "adapter_model.safetensors"),
        ]
    )


async def pieces(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    """The bytes in pieces, as a network brings them."""
    for start in range(0, len(data), size):
        yield data[start : start + size]
        await asyncio.sleep(0)


@dataclass
class Door:
    """A quarantine with its shares: what one gateway has."""

    directory: Path
    quarantine: Quarantine
    shares: Shares
    limits: UploadLimits
    pool: Pool

    @classmethod
    def at(cls, directory: Path, limits: UploadLimits = SMALL) -> "Door":
        """Open a door in an empty directory."""
        quarantine = Quarantine(directory, limits.free_disk_floor_bytes)
        shares = Shares(limits={Resource.UPLOADS: limits.max_concurrent})
        return cls(directory, quarantine, shares, limits, Pool("receiving", limits.max_concurrent))

    @property
    def in_use(self) -> int:
        """Uploads under way."""
        return self.shares.in_use(Resource.UPLOADS)

    async def take(
        self, stream: AsyncIterator[bytes] | bytes, headers: Mapping[str, str] = HEADERS, size: int = 1000
    ) -> SealedUpload:
        """Receive one body."""
        chunks = pieces(stream, size) if isinstance(stream, bytes) else stream
        pending = await receive(chunks, headers, self.limits, self.quarantine, self.shares, self.pool, "somebody")
        return pending.take()

    def assert_empty(self) -> None:
        """Nothing of any upload is left: no file, no descriptor, no slot."""
        assert list(self.directory.iterdir()) == []
        assert self.quarantine.open_files == 0
        assert self.in_use == 0
        assert not [link for link in open_links() if str(self.directory) in link and "deleted" in link]


def open_links() -> list[str]:
    """What this process's descriptors point to."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except FileNotFoundError:  # the descriptor that lists the directory
            continue
    return found
