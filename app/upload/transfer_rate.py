"""Minimum transfer rate and idle timeout of an upload."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from app.domain.errors import UPLOAD_INCOMPLETE, UPLOAD_TIMEOUT, GatewayError, Refused
from app.upload.limits import UploadLimits

SLACK: Final = 0.125
"""Share of the idle timeout by which a silence may exceed it, so that the timer is not reset for every chunk: a burst of
tiny chunks would set and cancel timers faster than the event loop removes them."""


class Pace:
    """Rate check and idle timer of one upload. Only time spent waiting for the client counts, not time spent writing."""

    def __init__(self, limits: UploadLimits, alarm: asyncio.Timeout) -> None:
        self._limits = limits
        self._alarm = alarm
        self._deadline = -math.inf  # time at which the alarm fires; loop time, seconds
        self._now = asyncio.get_running_loop().time
        self._bytes = 0
        self._seconds = 0.0

    async def next(self, stream: AsyncIterator[bytes]) -> bytes | None:
        """Return the next chunk, None at the end. Raises Refused UPLOAD_TIMEOUT, or UPLOAD_INCOMPLETE on disconnect."""
        start, idle = self._now(), self._limits.idle_timeout_s
        if self._deadline < start + idle:
            self._deadline = start + idle * (1 + SLACK)
            self._alarm.reschedule(self._deadline)
        try:
            chunk = await anext(stream, None)
        except GatewayError:
            raise
        except Exception as error:  # servers raise different exceptions when a client disconnects
            raise Refused(UPLOAD_INCOMPLETE, "the client went away") from error
        if chunk is not None:
            self._arrived(len(chunk), self._now() - start)
        return chunk

    def pause(self) -> None:
        """Stop the idle timer until the next call of `next`."""
        self._deadline = -math.inf
        self._alarm.reschedule(None)

    def _arrived(self, count: int, waited: float) -> None:
        self._bytes += count
        self._seconds += waited
        if self._seconds < self._limits.rate_window_s:
            return
        needed = self._limits.min_rate_bytes_s
        if self._bytes < needed * self._seconds:
            raise Refused(UPLOAD_TIMEOUT, f"{self._bytes} bytes in {self._seconds:.1f} s; {needed:g} B/s are needed")
        self._bytes, self._seconds = 0, 0.0


@asynccontextmanager
async def pace(limits: UploadLimits) -> AsyncIterator[Pace]:
    """Yield a Pace for the calling task. Raises Refused UPLOAD_TIMEOUT in it if the client is silent for too long."""
    try:
        async with asyncio.timeout(None) as alarm:
            yield Pace(limits, alarm)
    except TimeoutError as error:
        raise Refused(UPLOAD_TIMEOUT, f"no byte for {limits.idle_timeout_s:g} s") from error
