"""Traffic of each adapter, read from the exposition of /metrics: the console has no counters of its own."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

SERVED_MODEL: Final = "(served model)"
OTHER: Final = "(other)"
"""Label values that no adapter can have: the served model itself, and all adapters beyond the limit on labels."""

_LINE: Final = re.compile(
    r'gateway_(requests|tokens)_total\{adapter="([^"]*)",(?:kind="(\w+)"|status="\w+")\} (\S+)', re.ASCII
)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Number of answers and tokens since the gateway started."""

    requests: float = 0
    tokens_in: float = 0
    tokens_out: float = 0

    def plus(self, what: str, kind: str | None, value: float) -> "Traffic":
        """Return this traffic with one series added."""
        if what == "requests":
            return replace(self, requests=self.requests + value)
        if kind == "prompt":
            return replace(self, tokens_in=self.tokens_in + value)
        return replace(self, tokens_out=self.tokens_out + value)


def traffic(exposition: bytes) -> Mapping[str, Traffic]:
    """Parse the traffic by adapter, SERVED_MODEL or OTHER. exposition: Prometheus text format."""
    found: dict[str, Traffic] = {}
    for line in exposition.decode().splitlines():
        if series := _LINE.fullmatch(line):
            what, adapter, kind, value = series.groups()
            found[adapter] = found.get(adapter, Traffic()).plus(what, kind, float(value))
    return found


def traffic_of(found: Mapping[str, Traffic], adapter: str) -> Traffic | None:
    """Return one adapter's traffic; None if it may be counted under OTHER."""
    return found.get(adapter, None if OTHER in found else Traffic())
