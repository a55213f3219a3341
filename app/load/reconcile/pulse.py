"""How long an engine was waited for without a byte of any answer: counted where answers are read, so it costs nothing."""

import time


class Pulse:
    """Of one engine. For the event loop's thread."""

    __slots__ = ("_quiet", "_since", "waiting")

    def __init__(self) -> None:
        self.waiting = 0  # reads of answers that nothing has come for yet
        self._quiet = 0.0  # seconds waited before `_since` with nothing heard: who gave up waiting was not answered
        self._since = 0.0

    def wait(self) -> None:
        """One more waits for a byte; `leave` must follow."""
        if not self.waiting:
            self._since = time.monotonic()
        self.waiting += 1

    def leave(self) -> None:
        """One waits no more, answered or not."""
        self.waiting -= 1
        if not self.waiting:
            self._quiet += time.monotonic() - self._since

    def heard(self) -> None:
        """The engine gave a sign that it computes."""
        self._quiet, self._since = 0.0, time.monotonic()

    @property
    def silent_s(self) -> float:
        """Seconds since it was last heard in which somebody waited for it; time in which nobody did does not count."""
        return self._quiet + (time.monotonic() - self._since if self.waiting else 0.0)
