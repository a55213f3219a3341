"""Reception of one import: two files of a pinned source → sealed upload, or a refusal that leaves nothing behind.

The limits are those of an upload: the same caps, the same least rate, the same shares of slots, the same quarantine.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

from app.concurrency.pools import Pool
from app.domain.adapter_source import PinnedSource, SourceFile
from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
from app.domain.digest import Digest, digest_of
from app.domain.errors import SOURCE_BROKEN, SOURCE_TIMEOUT, TOO_LARGE, UPLOAD_TIMEOUT, Refused, Unavailable
from app.domain.names import AdapterName
from app.domain.shares import Resource, Shares
from app.upload.limits import UploadLimits
from app.upload.quarantine import Quarantine, SealedFile
from app.upload.receive import BATCH_BYTES, PendingUpload, SealedUpload, freed_in
from app.upload.request_headers import check_digest
from app.upload.transfer_rate import pace

Write = Callable[[bytearray], Awaitable[object]]

_PART: Final = {CONFIG_FILE: "config", WEIGHTS_FILE: "weights"}


async def receive_import(
    name: str,
    source: AbstractAsyncContextManager[PinnedSource],
    limits: UploadLimits,
    quarantine: Quarantine,
    shares: Shares,
    pool: Pool,
    who: str,
    digest: str | None = None,
) -> PendingUpload:
    """Read adapter_config.json and adapter_model.safetensors of a source, within the limits of an upload.

    source: entered once there is a slot. pool, who: as for `receive`. digest: SHA-256 that the caller expects of the
    weights, in hex. Raises Refused BAD_NAME, TOO_LARGE, TOO_MANY_UPLOADS, DIGEST_MISMATCH; Unavailable NO_SPACE,
    SOURCE_TIMEOUT, SOURCE_BROKEN; and what the source raises. After an error or a cancellation, file and slot are free
    again.
    """
    name = AdapterName.parse(name).text
    holding = shares.take(Resource.UPLOADS, who)
    async with freed_in(pool) as held:
        held.callback(holding.close)
        quarantine.check_space()
        async with source as pinned:
            config = bytearray()

            async def keep(batch: bytearray) -> None:
                config.extend(batch)

            async with _opened(pinned, CONFIG_FILE, limits.max_config_bytes) as file:
                await _pump(file, keep, limits, CONFIG_FILE, limits.max_config_bytes)
            _check(file, CONFIG_FILE, digest_of(bytes(config)))
            weights = await _weights(pinned, limits, quarantine, pool, held.callback)
            check_digest(digest, weights.digest)
            provenance = pinned.provenance
        sealed = SealedUpload(name, bytes(config), weights, held.pop_all(), provenance=provenance)
        return PendingUpload(sealed, pool)


async def _weights(
    pinned: PinnedSource,
    limits: UploadLimits,
    quarantine: Quarantine,
    pool: Pool,
    at_the_end: Callable[[Callable[[], None]], object],
) -> SealedFile:
    """Stream the weights into the quarantine; `at_the_end` takes what frees them."""
    cap = limits.max_weights_bytes
    async with _opened(pinned, WEIGHTS_FILE, cap) as file:
        quarantine.check_space(file.size or 0)
        unsealed = quarantine.new()
        at_the_end(unsealed.discard)

        async def write(batch: bytearray) -> None:
            await pool.to_the_end(unsealed.write, memoryview(batch))

        await _pump(file, write, limits, WEIGHTS_FILE, cap)
    sealed = unsealed.seal()
    at_the_end(sealed.close)
    _check(file, WEIGHTS_FILE, sealed.digest)
    return sealed


def _check(file: SourceFile, name: str, found: Digest) -> None:
    if file.sha256 is not None and file.sha256 != found.hex:
        raise Unavailable(SOURCE_BROKEN, f"{name} has {found}, and {Digest(file.sha256)} was announced")


@asynccontextmanager
async def _opened(pinned: PinnedSource, name: str, cap: int) -> AsyncIterator[SourceFile]:
    async with pinned.open(name) as file:
        if file.size is not None and file.size > cap:
            raise Refused(TOO_LARGE, f"{name}: {file.size} bytes announced, the cap is {cap}", param=_PART[name])
        yield file


async def _pump(file: SourceFile, write: Write, limits: UploadLimits, name: str, cap: int) -> None:
    """Pass a file's bytes to `write` in batches."""
    total, batch = 0, bytearray()
    try:
        async with pace(limits) as clock:
            while (chunk := await clock.next(file.chunks)) is not None:
                total += len(chunk)
                if total > cap:
                    raise Refused(TOO_LARGE, f"{name}: more than {cap} bytes", param=_PART[name])
                batch += chunk
                if len(batch) >= BATCH_BYTES:
                    clock.pause()
                    await write(batch)
                    batch = bytearray()
    except Refused as error:
        if error.code is UPLOAD_TIMEOUT:
            raise Unavailable(SOURCE_TIMEOUT, f"{name}: {error.message}") from error
        raise
    await write(batch)
