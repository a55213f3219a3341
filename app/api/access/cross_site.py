"""Protection against cross-site request forgery: a page of another site must not use this gateway through a browser.

A browser sends a form to any address that its visitor can reach, including loopback, without asking first. It does reveal
the page's origin: in Sec-Fetch-Site if it considers the address trustworthy, in Origin for every POST. Clients that are
not browsers send neither. https://developer.mozilla.org/docs/Web/HTTP/Reference/Headers/Sec-Fetch-Site
"""

from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from app.api.access.keys import authorization
from app.domain.errors import CROSS_SITE, Refused

UNSAFE: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
"""Methods that may change state or consume resources."""

OWN_SITE: Final = frozenset({"same-origin", "none"})
"""Allowed values of Sec-Fetch-Site. `none`: the visitor's own action. `same-site` is not allowed: it includes other ports
of this machine."""

_PORTS: Final = {"http": 80, "https": 443}


def check_site(method: str, headers: Headers, hosts: Collection[str], allowed: Collection[str] = ()) -> None:
    """Refuse a request that another site's page made a browser send.

    hosts: names the operator allows; empty: any. allowed: origins whose pages may send requests.

    Requests with a key pass: a browser does not add one by itself, unlike a cookie or a password. Raises Refused
    CROSS_SITE.
    """
    if method not in UNSAFE or (authorization(headers) or "").lower().startswith("bearer "):
        return
    fetch_sites, origins = headers.getlist("sec-fetch-site"), headers.getlist("origin")
    if origins and set(origins) <= set(allowed):
        return
    if fetch_sites:
        if not OWN_SITE.issuperset(fetch_sites):
            raise Refused(CROSS_SITE, f"Sec-Fetch-Site says {fetch_sites[0][:40]!r}", param="sec-fetch-site")
    elif not all(_is_own_origin(origin, headers.get("host", ""), hosts) for origin in origins):
        raise Refused(CROSS_SITE, f"a page of {origins[0][:80]!r} sent it", param="origin")


def _is_own_origin(origin: str, host: str, hosts: Collection[str]) -> bool:
    """Return whether `origin` is this gateway: the request's own Host or, behind a proxy, one of the allowed names."""
    try:
        page, own = urlsplit(origin), urlsplit(f"//{host}")
        default = _PORTS.get(page.scheme)
        same_host = (page.hostname, page.port or default) == (own.hostname, own.port or default)
    except ValueError:  # not a URL, for example one with a six-digit port
        return False
    return default is not None and page.hostname is not None and (same_host or page.hostname.rstrip(".") in hosts)
