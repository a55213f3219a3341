"""Silence of one engine: how long requests have waited for it without a byte of any answer.

It is measured where answers are read, so it costs nothing.
"""

import time


class Pulse:
    """Silence of one engine. Used on the event loop's thread only."""

    __slots__ = ("_quiet", "_since", "waiting")

    def __init__(self) -> None:
        self.waiting = 0  # reads of answers for which nothing has arrived yet
        self._quiet = 0.0  # seconds waited before `_since` without a byte; reads that gave up count too
        self._since = 0.0

    def wait(self) -> None:
        """Count one more read that waits for a byte; `leave` must follow."""
        if not self.waiting:
            self._since = time.monotonic()
        self.waiting += 1

    def leave(self) -> None:
        """Count one waiting read less, answered or not."""
        self.waiting -= 1
        if not self.waiting:
            self._quiet += time.monotonic() - self._since

    def heard(self) -> None:
        """Reset the silence: the engine gave a sign that it computes."""
        self._quiet, self._since = 0.0, time.monotonic()

    @property
    def silent_s(self) -> float:
        """Seconds since the last sign during which a read waited for the engine; time without a waiting read is left
        out.
        """
        return self._quiet + (time.monotonic() - self._since if self.waiting else 0.0)
