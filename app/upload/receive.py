"""One request body → one SealedUpload, or the reason why not; either way nothing is left behind.

The event loop only collects chunks and watches the clock. Parsing, digesting and writing run in a thread, a batch at a
time, so that no upload, however shaped, holds up anybody's chat.
"""

import asyncio
import hmac
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Final, Self

from app.domain.digest import digest_of
from app.domain.lora import Received
from app.errors import DIGEST_MISMATCH, TOO_LARGE, TOO_MANY_UPLOADS, UPLOAD_INCOMPLETE, Refused
from app.upload.announced import DIGEST_HEADER, Announced
from app.upload.form import Form
from app.upload.limits import KIB, MIB, UploadLimits
from app.upload.pace import pace
from app.upload.quarantine import Quarantine, SealedFile

FIRST_BATCH_BYTES: Final = 64 * KIB
"""Bytes collected before the first look: part names and the adapter's name usually stand here, so that a wrong one is
refused early."""

BATCH_BYTES: Final = MIB
"""Bytes collected for one trip to a thread. Much more than the trip costs, little enough to hold."""


class Slots:
    """How many uploads may be under way; who finds none free is refused, not queued.

    Keys share them by a dynamic threshold (Choudhury and Hahne 1998, of shared buffers): whoever holds n gets another only
    while n more stay free behind it, so that no key, however many uploads it keeps open, takes the last place from others.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._held: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def in_use(self) -> int:
        """Slots taken now."""
        return self._taken

    def take(self, who: str | None = None) -> Callable[[], None]:
        """Take one and return what gives it back. who: the key that shares; None: nobody else is there to share with.

        Raises Refused TOO_MANY_UPLOADS.
        """
        with self._lock:
            free = self._limit - self._taken
            if free < 1:
                raise Refused(TOO_MANY_UPLOADS, f"{self._limit} uploads are under way")
            if who is not None:
                if self._held[who] > free - 1:
                    mine = f"{self._held[who]} uploads of this key are under way"
                    raise Refused(TOO_MANY_UPLOADS, f"{mine}; what is free is kept for other keys")
                self._held[who] += 1
            self._taken += 1
        return partial(self._give_back, who)

    def _give_back(self, who: str | None) -> None:
        with self._lock:
            self._taken -= 1
            if who is not None:
                self._held[who] -= 1
                self._held += Counter()  # keys that hold none are forgotten


@dataclass(frozen=True, slots=True, eq=False)
class SealedUpload:
    """What arrived, unread. Use as a context manager: leaving it frees the file and the slot.

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

    def take(self) -> "SealedUpload":
        """The same upload in other hands: who took it closes it, and closing this one does nothing any more.

        For a thread that goes on reading when who asked has gone: a file closed under it could be anybody's by its number.
        """
        return SealedUpload(self.name, self.config, self.weights, self._held.pop_all())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def receive(
    stream: AsyncIterator[bytes],
    headers: Mapping[str, str],
    limits: UploadLimits,
    quarantine: Quarantine,
    slots: Slots,
    who: str | None = None,
) -> SealedUpload:
    """Read one multipart body with the parts name, config and weights, within the limits. who: as `Slots.take` has it.

    Raises Refused BAD_MULTIPART, MISSING_PART, UNEXPECTED_PART, BAD_NAME, TOO_LARGE, UNSUPPORTED_ENCODING,
    UPLOAD_TIMEOUT, UPLOAD_INCOMPLETE (also when the client went away), TOO_MANY_UPLOADS, DIGEST_MISMATCH, or
    Unavailable NO_SPACE. Then, and when cancelled, file and slot are free again.
    """
    announced = Announced.parse(headers, limits)
    with ExitStack() as held:
        held.callback(slots.take(who))
        quarantine.check_space(announced.length or 0)
        form = Form(announced.boundary, limits, quarantine.new())
        held.callback(form.weights.discard)
        await _pump(stream, form, limits, announced.length)
        weights = form.seal()
        held.callback(weights.close)
        if announced.digest is not None and not hmac.compare_digest(announced.digest, weights.digest.hex):
            raise Refused(DIGEST_MISMATCH, f"the weights that arrived have {weights.digest}", param=DIGEST_HEADER)
        return SealedUpload(form.name, bytes(form.config), weights, held.pop_all())


async def _pump(stream: AsyncIterator[bytes], form: Form, limits: UploadLimits, length: int | None) -> None:
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
                await _in_thread(form.feed, batch)
                batch, enough = bytearray(), BATCH_BYTES
    if length is not None and total < length:
        raise Refused(UPLOAD_INCOMPLETE, f"{total} of {length} bytes arrived")
    await _in_thread(form.feed, batch)


def _overrun(length: int | None, cap: int) -> Refused:
    if length is None:
        return Refused(TOO_LARGE, f"the body has more than {cap} bytes")
    return Refused(UPLOAD_INCOMPLETE, f"the body has more than the {length} bytes announced", param="content-length")


async def _in_thread(work: Callable[[bytearray], None], batch: bytearray) -> None:
    """Run in a thread, and never leave it behind: cancelled, wait for it, since its file is about to be closed."""
    running = asyncio.get_running_loop().run_in_executor(None, work, batch)
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            try:
                await asyncio.wait({running})
            except asyncio.CancelledError:  # asked twice: still not before the thread is done
                continue
        if not running.cancelled():
            running.exception()  # looked at, so that the loop does not complain about it
        raise
