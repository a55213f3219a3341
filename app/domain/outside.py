"""Addresses outside that this gateway may call by itself: an operator's list of origins and networks.

A caller's address is checked twice: its text when it is given, and the network address when a connection is made, because a
name may resolve to another one by then (DNS rebinding).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, Self

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names of this machine itself."""

MAX_URL: Final = 2048
"""Most characters of a URL."""

_URL: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\])"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?(?P<path>/[!-~]*)?"
)
_ORIGIN: Final = re.compile(r"(?P<scheme>https?)://(?P<wild>\*\.)?(?P<rest>[^/*]+)")
_PORTS: Final = {"http": 80, "https": 443}
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
"""IPv6 addresses of the internet, as they are given out (RFC 4291). Versions of Python differ on the rest."""

_NAT64: Final = IPv6Network("64:ff9b::/96")
"""Prefix of IPv6 addresses that stand for an IPv4 address in its last four bytes (RFC 6052)."""


@dataclass(frozen=True, slots=True)
class Url:
    """URL of which nothing can be read in two ways: lower-case ASCII host, no user, no fragment. host: without brackets.

    path: with the query.
    """

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def of(cls, text: str, limit: int = MAX_URL) -> Self:
        """Parse a URL of at most `limit` characters. Raises ValueError."""
        found = _URL.fullmatch(text) if len(text) <= limit else None
        if found is None or "#" in text or "\\" in text:
            raise ValueError("is not like https://hooks.example.com/path: lower-case host, no user, no fragment")
        port = int(found["port"] or _PORTS[found["scheme"]])
        if port > 65_535:
            raise ValueError(f"has the port {port}; the last one is 65535")
        host = found["host"].strip("[]")
        if "[" in text[:9] or _is_address(host):
            host = str(ip_address(host))  # raises ValueError
        return cls(found["scheme"], host, port, found["path"] or "/")

    @property
    def authority(self) -> str:
        """Host and port, as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def at(self, address: Address) -> str:
        """Return this URL with a network address in place of its host."""
        host = f"[{address}]" if address.version == 6 else str(address)
        return f"{self.scheme}://{host}:{self.port}{self.path}"


@dataclass(frozen=True, slots=True)
class _Origin:
    """Origin that may be called. wild: also each name below the host's, and not the host itself."""

    url: Url
    wild: bool

    def covers(self, url: Url) -> bool:
        ours, theirs = self.url, url
        if (ours.scheme, ours.port) != (theirs.scheme, theirs.port):
            return False
        return theirs.host.endswith(f".{ours.host}") if self.wild else theirs.host == ours.host


@dataclass(frozen=True, slots=True)
class Outside:
    """List of origins that may be called, and of networks that may be reached though they are not public."""

    origins: tuple[_Origin, ...] = ()
    networks: tuple[Network, ...] = ()

    @classmethod
    def of(cls, entries: Iterable[str]) -> Self:
        """Parse entries such as `https://*.example.com`, `http://hooks.internal:8080` and `10.1.0.0/16`. Raises ValueError.

        An origin that names an address, such as `http://127.0.0.1:9000`, allows itself to reach it, and no other one.
        """
        origins: list[_Origin] = []
        networks: list[Network] = []
        for entry in entries:
            if "://" not in entry:
                networks.append(_network(entry))
                continue
            origins.append(_origin(entry))
        return cls(tuple(origins), tuple(networks))

    def check(self, text: str, limit: int = MAX_URL) -> Url:
        """Return the URL, of at most `limit` characters, if its origin is on the list. Raises ValueError."""
        url = Url.of(text, limit)
        if not any(origin.covers(url) for origin in self.origins):
            raise ValueError(f"{url.scheme}://{url.authority} is not among the origins that the operator allows")
        return url

    def reaches(self, address: Address, url: Url) -> bool:
        """Return whether a connection to this address may be made for a URL that was checked.

        It may if the address is public, of one of the listed networks, or the one that the URL itself names.
        """
        if str(address) == url.host or any(address in network for network in self.networks):
            return True
        if isinstance(address, IPv6Address):
            if (inner := address.ipv4_mapped) is not None:
                return self.reaches(inner, url)
            if address in _NAT64:
                return self.reaches(IPv4Address(int(address) & 0xFFFF_FFFF), url)
            if address not in _GLOBAL_UNICAST or address.sixtofour is not None or address.teredo is not None:
                return False
        return address.is_global and not address.is_multicast


def _origin(entry: str) -> _Origin:
    found = _ORIGIN.fullmatch(entry)
    if found is None:
        raise ValueError(f"{entry[:80]!r} is not an origin such as https://hooks.example.com or https://*.example.com")
    try:
        url = Url.of(f"{found['scheme']}://{found['rest']}")
    except ValueError as error:
        raise ValueError(f"{entry[:80]!r} {error}") from error
    wild = found["wild"] is not None
    if wild and ("." not in url.host or _is_address(url.host)):
        raise ValueError(f"{entry[:80]!r} would allow a whole top-level domain, or is a pattern of an address")
    return _Origin(url, wild)


def _network(entry: str) -> Network:
    try:
        return ip_network(entry)
    except ValueError as error:
        raise ValueError(
            f"{entry[:80]!r} is neither an origin such as https://hooks.example.com nor a network"
        ) from error


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
