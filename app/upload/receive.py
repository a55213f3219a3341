"""Reception of one upload: request body → sealed upload, or a refusal that leaves nothing behind.

The event loop only collects chunks and enforces time limits. Parsing, digesting and writing run in a thread, a batch at a
time, so that no upload, whatever its shape, delays chat requests.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from app.concurrency.pools import Pool
from app.domain.adapter_source import Provenance
from app.domain.digest import digest_of
from app.domain.errors import TOO_LARGE, UPLOAD_INCOMPLETE, Refused
from app.domain.lora import Received
from app.domain.shares import Resource, Shares
from app.upload.form import Form
from app.upload.limits import KIB, MIB, UploadLimits
from app.upload.quarantine import Quarantine, SealedFile
from app.upload.request_headers import Announced, check_digest
from app.upload.transfer_rate import pace

FIRST_BATCH_BYTES: Final = 64 * KIB
"""Bytes collected before the first parse: they usually contain part names and the adapter's name, so that a wrong one is
refused early."""

BATCH_BYTES: Final = MIB
"""Bytes collected per call to a thread: batch_bytes to outweigh the cost of the call, few batch_bytes to hold in memory."""


@dataclass(frozen=True, slots=True, eq=False)
class SealedUpload:
    """One upload as it arrived, content unread, owned by a thread. A context manager: leaving it frees file and slot.

    Not for use on the event loop: freeing a file of gigabytes takes a file system seconds.

    name: a well-formed adapter name (reserved and taken names are not checked here). config: the bytes of
    adapter_config.json. weights: the bytes of adapter_model.safetensors in the quarantine. signature: the part of that
    name, unchecked; None if there was none. provenance: origin of an import.
    """

    name: str
    config: bytes
    weights: SealedFile
    _held: ExitStack
    signature: bytes | None = None
    provenance: Provenance | None = None

    @property
    def received(self) -> Received:
        """Digests and sizes of the received parts."""
        return Received(digest_of(self.config), self.weights.digest, len(self.config), self.weights.size)

    def close(self) -> None:
        """Free the file and the slot; may be called early, and more than once."""
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class PendingUpload:
    """One sealed upload, owned by the event loop until a thread takes it.

    Use as an asynchronous context manager: leaving it frees file and slot in a thread of `pool`, unless a thread took them.
    """

    def __init__(self, sealed: SealedUpload, pool: Pool) -> None:
        self.name: Final = sealed.name
        self.received: Final = sealed.received
        self.signature: Final = sealed.signature
        self.provenance: Final = sealed.provenance
        self._sealed: SealedUpload | None = sealed
        self._pool = pool

    def take(self) -> SealedUpload:
        """Transfer ownership to a thread, once: that thread must close the upload, and leaving this context does nothing.

        For a thread that goes on reading after the client disconnected: if its file were closed meanwhile, the descriptor's
        number could already belong to another file.
        """
        sealed, self._sealed = self._sealed, None
        if sealed is None:
            raise RuntimeError("this upload was taken already")
        return sealed

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sealed is not None:
            await self._pool.free(self.take().close)


async def receive(
    stream: AsyncIterator[bytes],
    headers: Mapping[str, str],
    limits: UploadLimits,
    quarantine: Quarantine,
    shares: Shares,
    pool: Pool,
    who: str,
) -> PendingUpload:
    """Read one multipart body with the parts name, config, weights and perhaps signature, within the limits.

    pool: threads that write, and that free refused uploads. who: the caller's name in the ledger of shares.

    Raises Refused BAD_MULTIPART, MISSING_PART, UNEXPECTED_PART, BAD_NAME, TOO_LARGE, UNSUPPORTED_ENCODING,
    UPLOAD_TIMEOUT, UPLOAD_INCOMPLETE (also if the client disconnects), TOO_MANY_UPLOADS, DIGEST_MISMATCH, or
    Unavailable NO_SPACE. After an error or a cancellation, file and slot are free again.
    """
    announced = Announced.parse(headers, limits)
    holding = shares.take(Resource.UPLOADS, who)
    async with freed_in(pool) as held:
        held.callback(holding.close)
        quarantine.check_space(announced.length or 0)
        form = Form(announced.boundary, limits, quarantine.new())
        held.callback(form.weights.discard)
        await _pump(stream, form, limits, announced.length, pool)
        weights = form.seal()
        held.callback(weights.close)
        check_digest(announced.digest, weights.digest)
        sealed = SealedUpload(form.name, bytes(form.config), weights, held.pop_all(), form.signature)
        return PendingUpload(sealed, pool)


@asynccontextmanager
async def freed_in(pool: Pool) -> AsyncIterator[ExitStack]:
    """Yield a stack of cleanup callbacks; if the block fails or is cancelled, a thread runs them."""
    held = ExitStack()
    try:
        yield held
    except BaseException:
        await pool.free(held.close)
        raise


async def _pump(stream: AsyncIterator[bytes], form: Form, limits: UploadLimits, length: int | None, pool: Pool) -> None:
    """Feed the body to the form. `length`: the announced Content-Length, which the body must match exactly."""
    cap = limits.max_body_bytes if length is None else length
    total, batch_bytes = 0, FIRST_BATCH_BYTES
    batch = bytearray()  # not a list of chunks: a million chunks of one byte must not cost a million objects
    async with pace(limits) as clock:
        while (chunk := await clock.next(stream)) is not None:
            total += len(chunk)
            if total > cap:
                raise _overrun(length, cap)
            batch += chunk
            if len(batch) >= batch_bytes:
                clock.pause()
                await pool.to_the_end(form.feed, batch)
                batch, batch_bytes = bytearray(), BATCH_BYTES
    if length is not None and total < length:
        raise Refused(UPLOAD_INCOMPLETE, f"{total} of {length} bytes arrived")
    await pool.to_the_end(form.feed, batch)


def _overrun(length: int | None, cap: int) -> Refused:
    if length is None:
        return Refused(TOO_LARGE, f"the body has more than {cap} bytes")
    return Refused(UPLOAD_INCOMPLETE, f"the body has more than the {length} bytes announced", param="content-length")
