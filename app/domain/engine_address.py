"""How engines are named in settings: each by its URL, or all together by one name that DNS leads to their addresses."""

import re
from dataclasses import dataclass
from typing import Final

MAX_ENGINES: Final = 64
"""Engines behind one gateway: each has series of its own in the metrics, and every adapter is loaded into each."""

_DISCOVERED: Final = re.compile(r"dns\+http://([A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?):([0-9]{1,5})")
_PORTS: Final = range(1, 1 << 16)


@dataclass(frozen=True, slots=True)
class DnsName:
    """`dns+http://host:port`: every address that host has is an engine, `http://address:port`."""

    host: str
    port: int


def dns_name(url: str) -> DnsName | None:
    """What an engine's URL means if it is of that kind; None when it is not, or not well formed."""
    found = _DISCOVERED.fullmatch(url)
    if found is None or int(found[2]) not in _PORTS:
        return None
    return DnsName(found[1], int(found[2]))
