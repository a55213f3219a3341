"""A page of another site must not use this gateway through its visitor's browser (cross-site request forgery).

A browser sends a form to any address that its visitor can reach, one on loopback too, and asks nobody first. It says so,
though: in Sec-Fetch-Site where it thinks the address trustworthy, in Origin for every POST. Whoever is no browser sends
neither. https://developer.mozilla.org/docs/Web/HTTP/Reference/Headers/Sec-Fetch-Site
"""

from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from app.domain.errors import CROSS_SITE, Refused

UNSAFE: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
"""Methods that may change something, or cost something."""

OWN_SITE: Final = frozenset({"same-origin", "none"})
"""`none`: the visitor's own doing. `same-site` is not ours: another port of this machine counts as that."""

_PORTS: Final = {"http": 80, "https": 443}


def check_site(method: str, headers: Headers, hosts: Collection[str]) -> None:
    """Refuse what another site's page made a browser send. hosts: names the operator allows, empty: any.

    A bearer token is no browser's own doing, as a cookie or a password is: who sends one was given it. Raises Refused
    CROSS_SITE.
    """
    if method not in UNSAFE or headers.get("authorization", "").lower().startswith("bearer "):
        return
    said, origins = headers.getlist("sec-fetch-site"), headers.getlist("origin")
    if said:
        if not OWN_SITE.issuperset(said):
            raise Refused(CROSS_SITE, f"Sec-Fetch-Site says {said[0][:40]!r}", param="sec-fetch-site")
    elif not all(_is_ours(origin, headers.get("host", ""), hosts) for origin in origins):
        raise Refused(CROSS_SITE, f"a page of {origins[0][:80]!r} sent it", param="origin")


def _is_ours(origin: str, host: str, hosts: Collection[str]) -> bool:
    """Whether a page of `origin` came from here: from the Host asked, or, behind a proxy, from a name that is allowed."""
    try:
        page, here = urlsplit(origin), urlsplit(f"//{host}")
        default = _PORTS.get(page.scheme)
        same = (page.hostname, page.port or default) == (here.hostname, here.port or default)
    except ValueError:  # no URL, such as one with a port of six digits
        return False
    return default is not None and page.hostname is not None and (same or page.hostname.rstrip(".") in hosts)
