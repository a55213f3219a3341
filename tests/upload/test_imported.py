"""From a pinned source to sealed bytes within the limits of an upload; and whatever goes wrong, nothing is left."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from app.domain.adapter_source import PinnedSource, Provenance, SourceFile
from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
from app.domain.digest import digest_of
from app.domain.errors import (
    BAD_NAME,
    NO_SPACE,
    SOURCE_BROKEN,
    SOURCE_NOT_FOUND,
    SOURCE_TIMEOUT,
    TOO_LARGE,
    TOO_MANY_UPLOADS,
    Code,
    GatewayError,
    Refused,
)
from app.upload.imported import receive_import
from app.upload.limits import KIB, UploadLimits
from app.upload.receive import SealedUpload
from tests.support.waiting import until
from tests.upload.bodies import SMALL, Door

PATIENT = replace(SMALL, min_rate_bytes_s=0, idle_timeout_s=60)
"""Limits without a clock that a busy machine could reach."""

WEIGHTS = bytes(range(256)) * 100
FROM = Provenance("hf://org/name@main", {"commit": "c0ffee"})
Stream = Callable[[], AsyncIterator[bytes]]


async def whole(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 1000):
        yield data[start : start + 1000]


@dataclass
class Source:
    """A pinned source in this process. files: bytes, or a stream of them. sizes, digests: as announced. opened: by name."""

    files: dict[str, bytes | Stream] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)
    provenance: Provenance = FROM

    @asynccontextmanager
    async def open(self, file: str) -> AsyncIterator[SourceFile]:
        self.opened.append(file)
        if file not in self.files:
            raise Refused(SOURCE_NOT_FOUND, file)
        data = self.files[file]
        chunks = whole(data) if isinstance(data, bytes) else data()
        yield SourceFile(self.sizes.get(file), self.digests.get(file), chunks)

    @asynccontextmanager
    async def pinned(self) -> AsyncIterator[PinnedSource]:
        yield self


def source(config: bytes | Stream = b"{}", weights: bytes | Stream = WEIGHTS, **more: dict[str, object]) -> Source:
    return Source({CONFIG_FILE: config, WEIGHTS_FILE: weights}, **more)  # type: ignore[arg-type]


async def take(door: Door, given: Source, name: str = "mine", limits: UploadLimits = PATIENT) -> SealedUpload:
    pending = await receive_import(name, given.pinned(), limits, door.quarantine, door.shares, door.pool, "somebody")
    return pending.take()


async def code_of(door: Door, given: Source, name: str = "mine", limits: UploadLimits = PATIENT) -> Code:
    """The code of the refusal, once nothing is left of the import."""
    with pytest.raises(GatewayError) as caught:
        await take(door, given, name, limits)
    door.assert_empty()
    return caught.value.code


async def test_two_files_arrive_as_they_were_read(door: Door) -> None:
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    given = source(b'{"r": 4}', sizes={WEIGHTS_FILE: len(WEIGHTS)}, digests={WEIGHTS_FILE: digest})
    with await take(door, given) as upload:
        assert (upload.name, upload.config, upload.weights.file.read()) == ("mine", b'{"r": 4}', WEIGHTS)
        assert upload.received.weights_digest == digest_of(WEIGHTS)
        assert upload.provenance == FROM
        assert door.in_use == 1
    door.assert_empty()


async def test_only_the_two_files_are_opened(door: Door) -> None:
    given = source()
    given.files |= {"adapter_model.bin": b"pickle", "README.md": b"x"}
    (await take(door, given)).close()
    assert given.opened == [CONFIG_FILE, WEIGHTS_FILE]


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield bytes(KIB)


@pytest.mark.hostile("U31")
@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE])
async def test_a_source_that_does_not_end_is_cut_off_at_the_cap(door: Door, file: str) -> None:
    given = source()
    given.files[file] = endless
    assert await code_of(door, given) is TOO_LARGE


@pytest.mark.hostile("U31")
@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE])
async def test_a_size_above_the_cap_is_refused_before_a_byte_is_read(door: Door, file: str) -> None:
    class Unread(AsyncIterator[bytes]):
        async def __anext__(self) -> bytes:
            raise AssertionError("a byte was asked for")

    given = source(sizes={file: SMALL.max_weights_bytes + 1})
    given.files[file] = Unread
    assert await code_of(door, given) is TOO_LARGE


@pytest.mark.hostile("U31")
async def test_a_source_that_falls_silent_is_left(door: Door) -> None:
    async def silent() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    assert await code_of(door, source(weights=silent), limits=SMALL) is SOURCE_TIMEOUT


@pytest.mark.hostile("U31")
async def test_a_source_that_drips_is_left(door: Door) -> None:
    async def drip() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(0.02)

    assert await code_of(door, source(weights=drip), limits=replace(SMALL, idle_timeout_s=60)) is SOURCE_TIMEOUT


@pytest.mark.hostile("U29")
@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE])
async def test_bytes_of_another_digest_than_announced_are_refused(door: Door, file: str) -> None:
    assert await code_of(door, source(digests={file: "0" * 64})) is SOURCE_BROKEN


async def test_a_file_that_is_not_there_leaves_nothing(door: Door) -> None:
    given = source()
    del given.files[WEIGHTS_FILE]
    assert await code_of(door, given) is SOURCE_NOT_FOUND


async def test_without_a_slot_or_with_a_bad_name_the_source_is_not_asked(door: Door) -> None:
    given = source()
    assert await code_of(door, given, name="../x") is BAD_NAME
    held = [await take(door, source()) for _ in range(SMALL.max_concurrent)]
    with pytest.raises(Refused) as caught:
        await take(door, given)
    assert caught.value.code is TOO_MANY_UPLOADS
    assert not given.opened
    for one in held:
        one.close()
    assert door.in_use == 0


async def test_a_disk_without_room_refuses(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door.quarantine, "_floor", 1 << 62)
    given = source()
    assert await code_of(door, given) is NO_SPACE
    assert not given.opened


async def test_an_import_that_is_cancelled_leaves_nothing(door: Door) -> None:
    waits = asyncio.Event()

    async def silent() -> AsyncIterator[bytes]:
        yield b"x"
        waits.set()
        await asyncio.Event().wait()

    work = asyncio.create_task(take(door, source(weights=silent)))
    await until(waits.is_set)
    assert door.quarantine.open_files == 1
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    door.assert_empty()
