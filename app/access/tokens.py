"""Verification of bearer tokens: signed by a trusted issuer, for this gateway, and valid now (RFC 7519, RFC 8725).

No part of a token is believed before its signature is verified, except that `iss` and `kid` choose a key among those of
issuers in the settings. Its headers `jku`, `x5u`, `x5c` and `jwk`, which bring a key along, are not read. No error, log or
metric contains a token.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import jwt

from app.access.issuer import REMEDY, Issuer
from app.access.key_set import ALGORITHMS
from app.domain.errors import UNAUTHORIZED, Refused

MAX_TOKEN_CHARS: Final = 8192
"""Most characters of a token; one with a hundred groups has about 4,000."""

TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt", "id+jwt"})
"""Accepted values of the header `typ`, in lower case: an issuer also signs other things, such as notices of a sign-out."""

EVENTS: Final = "events"
"""Claim of tokens that tell of an event (RFC 8417), such as a sign-out, some of which have no type of their own."""

REQUIRED: Final = ("iss", "aud", "exp", "sub")

_SHAPE = re.compile(r"[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*")

_REASONS: Final[tuple[tuple[type[jwt.PyJWTError], str], ...]] = (
    (jwt.ExpiredSignatureError, "the token has expired"),
    (jwt.ImmatureSignatureError, "the token is not valid yet"),
    (jwt.InvalidAudienceError, "the token is for another audience"),
    (jwt.MissingRequiredClaimError, f"the token lacks one of the claims {', '.join(REQUIRED)}"),
    (jwt.InvalidSignatureError, "the token's signature is wrong"),
    (jwt.InvalidAlgorithmError, "the token is not signed with the algorithm of its issuer's key"),
)


def is_token(text: str) -> bool:
    """Return whether a bearer's text has the form of a signed token: three parts in base64url, with dots between."""
    return _SHAPE.fullmatch(text) is not None


class Tokens:
    """Verification of tokens.

    issuers: those that are trusted. audiences: accepted values of `aud`, one of which suffices. leeway_s: seconds by which
    clocks may differ. further: issuer's URL → audiences of its tokens alone: two issuers may have a client of one id.
    """

    def __init__(
        self,
        issuers: Iterable[Issuer],
        audiences: Collection[str],
        leeway_s: float,
        further: Mapping[str, Collection[str]] = MappingProxyType({}),
    ) -> None:
        self._further = further
        self._issuers = {issuer.url: issuer for issuer in issuers}
        self._audiences, self._leeway_s = tuple(audiences), leeway_s

    async def verified(self, token: str, audiences: Collection[str] | None = None) -> tuple[Issuer, dict[str, Any]]:
        """Return the token's issuer and its claims. audiences: in place of those of every token.

        Raises Refused UNAUTHORIZED, Unavailable ISSUER_AWAY if the issuer's key is not known and it cannot be asked.
        """
        if len(token) > MAX_TOKEN_CHARS or not is_token(token):
            raise _refused(f"the token is malformed or has more than {MAX_TOKEN_CHARS} characters")
        try:
            unverified = jwt.decode_complete(token, options={"verify_signature": False})
        except jwt.PyJWTError as error:
            raise _refused("the token is malformed") from error
        issuer = self._issuer(unverified["payload"].get("iss"))
        key = await issuer.key(_key_id(unverified["header"]))
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=self._accepted(issuer) if audiences is None else tuple(audiences),
                issuer=issuer.url,
                leeway=self._leeway_s,
                options={"require": list(REQUIRED), "enforce_minimum_key_length": True},
            )
        except jwt.PyJWTError as error:
            raise _refused(_reason(error)) from error
        if EVENTS in claims:
            raise _refused("the token tells of an event and is not for signing in")
        return issuer, claims

    def _accepted(self, issuer: Issuer) -> tuple[str, ...]:
        return (*self._audiences, *self._further.get(issuer.url, ()))

    def _issuer(self, claimed: Any) -> Issuer:
        found = self._issuers.get(claimed) if isinstance(claimed, str) else None
        if found is None:
            raise _refused("the token's issuer is not one that this gateway trusts")
        return found


def _key_id(header: dict[str, Any]) -> str | None:
    """Return the header's `kid`. Raises Refused if the header is of a token that is not accepted, whatever its key."""
    if header.get("alg") not in ALGORITHMS:
        raise _refused(f"the token is not signed with one of {', '.join(ALGORITHMS)}")
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower() not in TYPES:
        raise _refused("the token is of a type that is not for signing in")
    kid: str | None = header.get("kid")
    return kid


def _reason(error: jwt.PyJWTError) -> str:
    return next((why for kind, why in _REASONS if isinstance(error, kind)), "a claim of the token is malformed")


def _refused(why: str) -> Refused:
    return Refused(UNAUTHORIZED, why, remedy=REMEDY)
