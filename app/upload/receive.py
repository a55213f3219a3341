"""One request body → one SealedUpload, or the reason why not; either way nothing is left behind.

The event loop only collects chunks and watches the clock. Parsing, digesting and writing run in a thread, a batch at a
time, so that no upload, however shaped, holds up anybody's chat.
"""

import hmac
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from app.concurrency.pools import Pool
from app.domain.digest import digest_of
from app.domain.errors import DIGEST_MISMATCH, TOO_LARGE, UPLOAD_INCOMPLETE, Refused
from app.domain.lora import Received
from app.domain.shares import Resource, Shares
from app.upload.form import Form
from app.upload.limits import KIB, MIB, UploadLimits
from app.upload.quarantine import Quarantine, SealedFile
from app.upload.request_headers import DIGEST_HEADER, Announced
from app.upload.transfer_rate import pace

FIRST_BATCH_BYTES: Final = 64 * KIB
"""Bytes collected before the first look: part names and the adapter's name usually stand here, so that a wrong one is
refused early."""

BATCH_BYTES: Final = MIB
"""Bytes collected for one trip to a thread. Much more than the trip costs, little enough to hold."""


@dataclass(frozen=True, slots=True, eq=False)
class SealedUpload:
    """One upload as it arrived, unread, in the hands of a thread. A context manager: leaving it frees file and slot.

    Not on the event loop: freeing the last name of gigabytes takes a file system seconds.

    name: a well-formed adapter name (what is reserved or taken is not decided here). config: the bytes of
    adapter_config.json. weights: the bytes of adapter_model.safetensors in the quarantine.
    """

    name: str
    config: bytes
    weights: SealedFile
    _held: ExitStack

    @property
    def received(self) -> Received:
        """Digests and sizes, for the record."""
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
    """One sealed upload that no thread has taken yet, held on the event loop.

    Use as an asynchronous context manager: leaving it frees file and slot in a thread of `pool`, unless one took them.
    """

    def __init__(self, sealed: SealedUpload, pool: Pool) -> None:
        self.name: Final = sealed.name
        self.received: Final = sealed.received
        self._sealed: SealedUpload | None = sealed
        self._pool = pool

    def take(self) -> SealedUpload:
        """Hand the upload to a thread, once: that thread closes it, and leaving this one does nothing any more.

        For a thread that goes on reading when who asked has gone: a file closed under it could be anybody's by its number.
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
    """Read one multipart body with the parts name, config and weights, within the limits.

    pool: threads that write, and free what is refused. who: holds its share of uploads.

    Raises Refused BAD_MULTIPART, MISSING_PART, UNEXPECTED_PART, BAD_NAME, TOO_LARGE, UNSUPPORTED_ENCODING,
    UPLOAD_TIMEOUT, UPLOAD_INCOMPLETE (also when the client went away), TOO_MANY_UPLOADS, DIGEST_MISMATCH, or
    Unavailable NO_SPACE. Then, and when cancelled, file and slot are free again.
    """
    announced = Announced.parse(headers, limits)
    holding = shares.take(Resource.UPLOADS, who)
    async with _freed_in(pool) as held:
        held.callback(holding.close)
        quarantine.check_space(announced.length or 0)
        form = Form(announced.boundary, limits, quarantine.new())
        held.callback(form.weights.discard)
        await _pump(stream, form, limits, announced.length, pool)
        weights = form.seal()
        held.callback(weights.close)
        if announced.digest is not None and not hmac.compare_digest(announced.digest, weights.digest.hex):
            raise Refused(DIGEST_MISMATCH, f"the weights that arrived have {weights.digest}", param=DIGEST_HEADER)
        return PendingUpload(SealedUpload(form.name, bytes(form.config), weights, held.pop_all()), pool)


@asynccontextmanager
async def _freed_in(pool: Pool) -> AsyncIterator[ExitStack]:
    """A stack of what to free; when what is done inside fails, also by cancellation, a thread frees it."""
    held = ExitStack()
    try:
        yield held
    except BaseException:
        await pool.free(held.close)
        raise


async def _pump(stream: AsyncIterator[bytes], form: Form, limits: UploadLimits, length: int | None, pool: Pool) -> None:
    """Move the body into the form. `length`: bytes announced, which the body must have exactly."""
    cap = limits.max_body_bytes if length is None else length
    total, enough = 0, FIRST_BATCH_BYTES
    batch = bytearray()  # not a list of chunks: a million chunks of one byte must not cost a million objects
    async with pace(limits) as clock:
        while (chunk := await clock.next(stream)) is not None:
            total += len(chunk)
            if total > cap:
                raise _overrun(length, cap)
            batch += chunk
            if len(batch) >= enough:
                clock.pause()
                await pool.to_the_end(form.feed, batch)
                batch, enough = bytearray(), BATCH_BYTES
    if length is not None and total < length:
        raise Refused(UPLOAD_INCOMPLETE, f"{total} of {length} bytes arrived")
    await pool.to_the_end(form.feed, batch)


def _overrun(length: int | None, cap: int) -> Refused:
    if length is None:
        return Refused(TOO_LARGE, f"the body has more than {cap} bytes")
    return Refused(UPLOAD_INCOMPLETE, f"the body has more than the {length} bytes announced", param="content-length")
