"""Engine addresses in settings: one URL per engine, or one DNS name that resolves to the addresses of all of them."""

import re
from dataclasses import dataclass
from typing import Final

MAX_ENGINES: Final = 64
"""Most engines behind one gateway: each has its own series in the metrics, and every adapter is loaded into each."""

_DISCOVERED: Final = re.compile(r"dns\+http://([A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?):([0-9]{1,5})")
_PORTS: Final = range(1, 1 << 16)


@dataclass(frozen=True, slots=True)
class DnsName:
    """`dns+http://host:port`: every address that `host` resolves to is an engine, `http://address:port`."""

    host: str
    port: int


def dns_name(url: str) -> DnsName | None:
    """Parse a `dns+http` URL of engines; return None if it is of another kind or not well formed."""
    found = _DISCOVERED.fullmatch(url)
    if found is None or int(found[2]) not in _PORTS:
        return None
    return DnsName(found[1], int(found[2]))
