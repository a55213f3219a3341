"""Authorisation code flow with PKCE: a browser signs in at an issuer and comes back with a code for an ID token.

RFC 6749 section 4.1, RFC 7636 (S256), OpenID Connect Core 1.0 section 3.1, RFC 9207 (`iss` beside the code). The gateway
remembers no attempt: the browser's cookie has it.
"""

import asyncio
import base64
import hashlib
import logging
import secrets
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, quote_plus, urlencode

from app.access.issuer import Issuer, Metadata
from app.access.issuer_client import IssuerClient
from app.access.tokens import Tokens
from app.domain.errors import ISSUER_AWAY, SIGN_IN_FAILED, UNAUTHORIZED, Refused, Unavailable
from app.observe.log import event

EXCHANGES: Final = 8
"""Most codes that are exchanged at the same time: strangers who bring made-up codes occupy no more."""

MAX_CODE_CHARS: Final = 2000
"""Most characters of a code."""

SECRET_BYTES: Final = 32
"""Random bytes of `state`, of `nonce` and of PKCE's verifier."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to sign in. state: binds the answer to the browser. nonce: binds the ID token. verifier: PKCE's."""

    state: str
    nonce: str
    verifier: str

    @classmethod
    def new(cls) -> "Attempt":
        """Return an attempt with new random values."""
        return cls(*(secrets.token_urlsafe(SECRET_BYTES) for _ in range(3)))

    @property
    def challenge(self) -> str:
        """PKCE's challenge: base64url of the verifier's SHA-256, without padding."""
        return base64.urlsafe_b64encode(hashlib.sha256(self.verifier.encode()).digest()).rstrip(b"=").decode()


@dataclass(frozen=True, slots=True)
class Registration:
    """Registration of the gateway at the issuer. secret: None for a public client. redirect_url: the registered one, sent
    exactly so. scopes: scopes to ask for, with spaces between."""

    client_id: str
    secret: str | None
    redirect_url: str
    scopes: str


class CodeFlow:
    """Code flow at one issuer. Used on the event loop."""

    def __init__(self, issuer: Issuer, tokens: Tokens, client: IssuerClient, registration: Registration) -> None:
        self._issuer, self._tokens, self._client, self._registration = issuer, tokens, client, registration
        self._exchanging = asyncio.Semaphore(EXCHANGES)

    @property
    def redirect_url(self) -> str:
        """Registered address to which the issuer sends the browser back."""
        return self._registration.redirect_url

    async def begin(self, attempt: Attempt) -> str:
        """Return the address at the issuer to which the browser goes. Raises Unavailable ISSUER_AWAY."""
        endpoint = (await self._endpoints()).authorize or ""
        query = {
            "response_type": "code",
            "client_id": self._registration.client_id,
            "redirect_uri": self._registration.redirect_url,
            "scope": self._registration.scopes,
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": attempt.challenge,
            "code_challenge_method": "S256",
        }
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query, quote_via=quote)}"

    async def finish(self, attempt: Attempt, code: str, issuer: str | None) -> str:
        """Exchange the code; return the ID token, verified. issuer: `iss` beside the code, if it was there.

        Raises Refused SIGN_IN_FAILED, Unavailable ISSUER_AWAY.
        """
        if issuer is not None and issuer != self._issuer.url:
            raise Refused(SIGN_IN_FAILED, "the answer comes from another issuer")
        if not 0 < len(code) <= MAX_CODE_CHARS:
            raise Refused(SIGN_IN_FAILED, f"the code is missing or has more than {MAX_CODE_CHARS} characters")
        if self._exchanging.locked():
            raise Unavailable(ISSUER_AWAY, "too many people sign in at this moment")
        async with self._exchanging:
            try:
                token = await self._exchange(attempt, code)
            except Unavailable as error:  # whoever asks need not know the issuer's addresses
                event("sign_in_postponed", logging.ERROR, issuer=self._issuer.url, why=error.message)
                raise Unavailable(ISSUER_AWAY, "the issuer cannot be asked now") from error
        await self._check(token, attempt)
        return token

    async def _endpoints(self) -> Metadata:
        found = await self._issuer.metadata()
        if found.authorize is None or found.token is None:
            raise Unavailable(ISSUER_AWAY, f"the issuer {self._issuer.url} has no endpoints for signing in with a code")
        return found

    async def _exchange(self, attempt: Attempt, code: str) -> str:
        ours, metadata = self._registration, await self._endpoints()
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": ours.redirect_url,
            "code_verifier": attempt.verifier,
        }
        authorization = None
        if ours.secret is None or metadata.post_secret:
            form["client_id"] = ours.client_id
            form |= {} if ours.secret is None else {"client_secret": ours.secret}
        else:
            authorization = _basic(ours.client_id, ours.secret)
        status, answer = await self._client.post(metadata.token or "", form, authorization)
        token = answer.get("id_token")
        if status != 200 or not isinstance(token, str):
            why = str(answer.get("error", f"status {status}, no ID token"))[:100]
            raise Refused(SIGN_IN_FAILED, f"the issuer did not exchange the code: {why}")
        return token

    async def _check(self, token: str, attempt: Attempt) -> None:
        """Check the ID token (OpenID Connect Core 1.0, section 3.1.3.7). Raises Refused SIGN_IN_FAILED."""
        ours = self._registration.client_id
        try:
            issuer, claims = await self._tokens.verified(token, (ours,))
        except Refused as error:
            if error.code is not UNAUTHORIZED:
                raise
            raise Refused(SIGN_IN_FAILED, f"the ID token is refused: {error.message}") from error
        nonce, party = claims.get("nonce"), claims.get("azp", ours)
        if issuer is not self._issuer or party != ours:
            raise Refused(SIGN_IN_FAILED, "the ID token is of another issuer, or for another party")
        if not isinstance(nonce, str) or not secrets.compare_digest(nonce.encode(), attempt.nonce.encode()):
            raise Refused(SIGN_IN_FAILED, "the ID token was not made for this attempt: its nonce is another one")


def _basic(client_id: str, secret: str) -> str:
    """Return an `Authorization` header (RFC 6749 section 2.3.1: both are encoded as in a form before they are joined)."""
    pair = f"{quote_plus(client_id)}:{quote_plus(secret)}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"
