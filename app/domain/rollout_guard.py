"""Guard of a roll-out: the rule by which a version does worse than the stable one."""

import math
from dataclasses import dataclass
from typing import Final

LEAST_FAILED: Final = 5
"""Failed requests of a version before it is judged: a few say nothing."""

Z: Final = 4.0
"""Standard deviations of the bounds: wide, because the rule is applied after every request."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Requests that a version has answered, and those among them that failed by the engine's fault."""

    requests: int = 0
    failed: int = 0

    def plus(self, *, failed: bool) -> "Tally":
        """Return the tally with one more request."""
        return Tally(self.requests + 1, self.failed + failed)


def is_worse(version: Tally, stable: Tally) -> bool:
    """Return whether a version fails more often than the stable one beyond doubt.

    Compares Wilson's bounds (1927) of both rates: the lower one of the version with the upper one of the stable version,
    which must have answered something.
    """
    if version.failed < LEAST_FAILED or not stable.requests:
        return False
    return _bounds(version)[0] > _bounds(stable)[1]


def _bounds(tally: Tally) -> tuple[float, float]:
    """Return Wilson's bounds of the failure rate."""
    n, rate = tally.requests, tally.failed / tally.requests
    middle = rate + Z * Z / (2 * n)
    spread = Z * math.sqrt(rate * (1 - rate) / n + Z * Z / (4 * n * n))
    whole = 1 + Z * Z / n
    return (middle - spread) / whole, (middle + spread) / whole
