"""Requests in flight: how many there are on each engine name, and when each was last asked for."""

import time
from collections import Counter
from collections.abc import Set as AbstractSet


class InFlight:
    """Counter of requests by engine name. For the event loop; `forget` may be called from a thread."""

    def __init__(self) -> None:
        self._requests: Counter[str] = Counter()
        self._used: dict[str, float] = {}

    def begin(self, engine_name: str) -> None:
        """Count one more request; `end` must follow."""
        self._requests[engine_name] += 1
        self._used[engine_name] = time.time()

    def end(self, engine_name: str) -> None:
        """Count one request less."""
        self._requests[engine_name] -= 1
        if self._requests[engine_name] <= 0:
            del self._requests[engine_name]

    def count(self, engine_name: str) -> int:
        """Requests in flight on `engine_name`."""
        return self._requests.get(engine_name, 0)

    def total(self) -> int:
        """Requests in flight on all names together."""
        return self._requests.total()

    def idle(self, engine_name: str) -> bool:
        """Whether nothing is in flight on `engine_name`: safe to unload."""
        return engine_name not in self._requests

    def last_used(self, engine_name: str) -> float | None:
        """Start of the last request for `engine_name` (Unix time, s, for people); None when there was none."""
        return self._used.get(engine_name)

    def keep(self, engine_names: AbstractSet[str]) -> None:
        """Forget when names outside these were used, but for those with requests in flight."""
        for name in list(self._used):  # in one step: requests go on meanwhile
            if name not in engine_names and name not in self._requests:
                self._used.pop(name, None)
