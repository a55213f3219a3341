"""Requests in flight: their number on each engine name, and the time of the last request."""

import time
from collections import Counter
from collections.abc import Set as AbstractSet


class InFlight:
    """Counter of requests by engine name. Used on the event loop; `keep` may be called from a thread."""

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
        """Return the number of requests in flight on `engine_name`."""
        return self._requests.get(engine_name, 0)

    def total(self) -> int:
        """Return the number of requests in flight on all names together."""
        return self._requests.total()

    def idle(self, engine_name: str) -> bool:
        """Return whether no request is in flight on `engine_name`, so that it is safe to unload."""
        return engine_name not in self._requests

    def last_used(self, engine_name: str) -> float | None:
        """Return the start of the last request for `engine_name` (Unix time, s, for display); None if there was none."""
        return self._used.get(engine_name)

    def keep(self, engine_names: AbstractSet[str]) -> None:
        """Forget the last use of all other names, except those with requests in flight."""
        for name in list(self._used):  # copied in one step: requests begin meanwhile
            if name not in engine_names and name not in self._requests:
                self._used.pop(name, None)
