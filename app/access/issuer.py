"""OpenID Connect issuer that the operator trusts: its metadata and keys, fetched, kept for a while, and fetched again."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from jwt import PyJWK

from app.access.issuer_client import FETCH_S, IssuerClient
from app.access.key_set import key_set
from app.domain.errors import ISSUER_AWAY, UNAUTHORIZED, Refused, Unavailable
from app.domain.outside import LOOPBACK
from app.observe.log import event

DISCOVERY: Final = "/.well-known/openid-configuration"
"""Path of an issuer's metadata below its own address (OpenID Connect Discovery 1.0, section 4)."""

REFRESH_S: Final = 300.0
"""Seconds between two fetches of an issuer that answers: a key that it withdrew is not accepted for longer."""

REFETCH_S: Final = 10.0
"""Least seconds between two fetches, whoever asks: tokens with made-up key ids cause no more."""

STALE_S: Final = 3600.0
"""Seconds for which keys are accepted that could not be fetched again: an issuer may be away for that long."""

REMEDY: Final = "Get a token from this issuer again; if that one is refused too, ask the operator"


@dataclass(frozen=True, slots=True)
class Metadata:
    """Metadata of an issuer that the gateway uses. authorize, token: endpoints of the code flow, None if it has none.

    post_secret: the client's secret stands in the form instead of the header.
    """

    keys: str
    authorize: str | None
    token: str | None
    post_secret: bool


def plain_address(url: str) -> bool:
    """Return whether an address can be asked: https, or http on this machine, without user, query or fragment."""
    try:
        parts = urlsplit(url)
        secure = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)
        _ = parts.port
    except ValueError:
        return False
    return secure and bool(parts.hostname) and "@" not in parts.netloc and not parts.query and not parts.fragment


class Issuer:
    """One issuer. Used on the event loop. tenant: the only one in which its tokens act; None: the one that they claim."""

    def __init__(
        self, url: str, tenant: str | None, client: IssuerClient, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.url, self.tenant = url, tenant
        self._client, self._now = client, now
        self._metadata: Metadata | None = None
        self._keys: Mapping[str | None, PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._away: str | None = "it was not asked yet"
        self._fetching: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None

    async def key(self, kid: str | None) -> PyJWK:
        """Return a key; without an id the only one there is. Waits for at most FETCH_S, if the key is not known.

        Raises Refused UNAUTHORIZED if the issuer does not have it, Unavailable ISSUER_AWAY if it cannot be asked.
        """
        found = self._known(kid)
        if found is None:
            await self._refresh()
            found = self._known(kid)
        if found is not None:
            return found
        if self._away is not None:
            raise self._unavailable()
        raise Refused(UNAUTHORIZED, "the token is signed with a key that its issuer does not have", remedy=REMEDY)

    async def metadata(self) -> Metadata:
        """Return the metadata. Raises Unavailable ISSUER_AWAY if it was never fetched."""
        if self._metadata is None:
            await self._refresh()
        if self._metadata is None:
            raise self._unavailable()
        return self._metadata

    def start(self) -> None:
        """Start fetching in the background. Needs a running loop."""
        self._following = asyncio.create_task(self._follow(), name=f"issuer {self.url}")

    async def stop(self) -> None:
        """Stop fetching."""
        tasks = [task for task in (self._following, self._fetching) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _known(self, kid: str | None) -> PyJWK | None:
        if self._now() - self._fetched_at > STALE_S:
            return None
        if kid is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(kid)

    def _unavailable(self) -> Unavailable:
        wait = max(1, int(self._tried_at + REFETCH_S - self._now()) + 1)
        return Unavailable(ISSUER_AWAY, f"the issuer {self.url} cannot be asked now", retry_after=wait)

    async def _refresh(self) -> None:
        """Wait for a fetch: the one under way, or a new one unless the last ended less than REFETCH_S ago."""
        if self._fetching is None:
            if self._now() - self._tried_at < REFETCH_S:
                return
            self._fetching = asyncio.create_task(self._fetch(), name=f"fetch {self.url}")
        await asyncio.shield(self._fetching)

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(FETCH_S):
                metadata = self._read(await self._client.get(self.url.rstrip("/") + DISCOVERY))
                keys = key_set(await self._client.get(metadata.keys))
        except (Unavailable, ValueError, TimeoutError) as error:
            slow = f"no answer within {FETCH_S:g} s" if isinstance(error, TimeoutError) else str(error)
            self._failed(error.message if isinstance(error, Unavailable) else slow)
        else:
            if self._away is not None or keys.keys() != self._keys.keys():
                event("issuer", issuer=self.url, tenant=self.tenant, keys=len(keys))
            self._metadata, self._keys, self._away = metadata, keys, None
            self._fetched_at = self._now()
        finally:
            self._tried_at, self._fetching = self._now(), None

    def _failed(self, why: str) -> None:
        if why != self._away:  # logged once, not every ten seconds
            event("issuer_away", logging.ERROR, issuer=self.url, why=why, hint="API keys go on; new tokens are refused")
        self._away = why

    def _read(self, document: Mapping[str, Any]) -> Metadata:
        """Return what the gateway uses of the metadata. Raises ValueError."""
        if document.get("issuer") != self.url:
            told = str(document.get("issuer"))[:200]
            raise ValueError(f"its metadata names the issuer {told!r}: GATEWAY_OIDC_ISSUERS needs exactly that text")
        listed = document.get("token_endpoint_auth_methods_supported")
        methods = listed if isinstance(listed, list) else []
        return Metadata(
            keys=self._address(document, "jwks_uri"),
            authorize=self._endpoint(document, "authorization_endpoint"),
            token=self._endpoint(document, "token_endpoint"),
            post_secret="client_secret_post" in methods and "client_secret_basic" not in methods,
        )

    def _endpoint(self, document: Mapping[str, Any], name: str) -> str | None:
        return self._address(document, name) if name in document else None

    def _address(self, document: Mapping[str, Any], name: str) -> str:
        """Return an address of the metadata; one without TLS only if the issuer's own is. Raises ValueError."""
        found = document.get(name)
        plain = isinstance(found, str) and plain_address(found.partition("?")[0])
        if not isinstance(found, str) or not plain or (self.url.startswith("https:") and found.startswith("http:")):
            raise ValueError(f"its metadata has no https address in {name}")
        return found

    async def _follow(self) -> None:
        while True:
            try:
                await self._refresh()
            except Exception:  # a bug must not end the task: withdrawn keys would be accepted for an hour
                logging.getLogger("gateway").exception("fetching an issuer's keys broke")
            await asyncio.sleep(REFRESH_S if self._away is None else REFETCH_S)
