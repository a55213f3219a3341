"""Whether a client keeps up: a floor under its rate, and an end to its silence."""

import asyncio
import time
from collections.abc import AsyncIterator

from app.errors import UPLOAD_INCOMPLETE, UPLOAD_TIMEOUT, GatewayError, Refused
from app.upload.limits import UploadLimits


class Pace:
    """Whether the client keeps up. Only time spent waiting for it counts, not our own disk's."""

    def __init__(self, limits: UploadLimits) -> None:
        self._limits = limits
        self._bytes = 0
        self._seconds = 0.0

    async def next(self, stream: AsyncIterator[bytes]) -> bytes | None:
        """The next chunk, None at the end. Raises Refused UPLOAD_TIMEOUT, or UPLOAD_INCOMPLETE when the client left."""
        start = time.monotonic()
        patience = asyncio.timeout(self._limits.idle_timeout_s)
        try:
            async with patience:
                chunk = await anext(stream, None)
        except GatewayError:
            raise
        except Exception as error:  # whatever a server raises when its client is gone
            if patience.expired():
                raise Refused(UPLOAD_TIMEOUT, f"no byte for {self._limits.idle_timeout_s:g} s") from error
            raise Refused(UPLOAD_INCOMPLETE, "the client went away") from error
        if chunk is not None:
            self._arrived(len(chunk), time.monotonic() - start)
        return chunk

    def _arrived(self, count: int, waited: float) -> None:
        self._bytes += count
        self._seconds += waited
        if self._seconds < self._limits.rate_window_s:
            return
        if self._bytes < self._limits.min_rate_bytes_s * self._seconds:
            raise Refused(
                UPLOAD_TIMEOUT,
                f"{self._bytes} bytes in {self._seconds:.1f} s; at least {self._limits.min_rate_bytes_s:g} B/s are needed",
            )
        self._bytes, self._seconds = 0, 0.0
