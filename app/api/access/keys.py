"""Authentication by API key, sent as by OpenAI's or Anthropic's clients, or by an issuer's token in the same place. No log,
metric or error contains a key or a token."""

from collections.abc import Callable, Mapping
from typing import Final

from app.access.sign_on import SignOn
from app.access.tokens import MAX_TOKEN_CHARS, is_token
from app.domain.api_keys import Key, Role, digest_of_key
from app.domain.errors import UNAUTHORIZED, Refused

ANYBODY: Final = Key("open", frozenset(Role), b"")
"""Key of every caller of an open gateway: the rate limits treat them as one caller."""

MAX_KEY_CHARS: Final = 512
"""Characters of an `Authorization` header that are examined for a key."""


def authorization(headers: Mapping[str, str]) -> str | None:
    """Return the `Authorization` header, or what it would be for the key in `x-api-key`, Anthropic's header for keys."""
    given = headers.get("authorization")
    if given is None and (key := headers.get("x-api-key")) is not None:
        return f"Bearer {key}"
    return given


class Keys:
    """Admission of callers by their keys; with `open_door` every caller is admitted. find: SHA-256 → key, if accepted.
    sign_on: admits the bearers of tokens; None: keys only."""

    def __init__(
        self, find: Callable[[bytes], Key | None], *, open_door: bool = False, sign_on: SignOn | None = None
    ) -> None:
        self._find, self._sign_on = find, sign_on
        self.open_door = open_door

    async def admit(self, authorization: str | None) -> Key:
        """Return the caller's key. Waits only for the issuer of a token, and not for long.

        Raises Refused UNAUTHORIZED, for a token also FORBIDDEN, Unavailable ISSUER_AWAY.

        A key is found by its SHA-256, in the same time however many there are. Nobody can choose the digest of a guess, so
        the duration reveals nothing about any key.
        """
        if self.open_door:
            return ANYBODY
        scheme, _, key = (authorization or "")[:MAX_KEY_CHARS].partition(" ")
        offered = digest_of_key(key.strip())
        known = self._find(offered)
        if scheme.lower() != "bearer" or known is None:
            if self._sign_on is not None and (token := _token(authorization)) is not None:
                return await self._sign_on.admit(token)
            raise Refused(UNAUTHORIZED, "missing or unknown API key")
        return known


def _token(authorization: str | None) -> str | None:
    """Return the bearer's text if it has the form of a token and a bearable length."""
    scheme, _, text = (authorization or "")[: MAX_TOKEN_CHARS + MAX_KEY_CHARS].partition(" ")
    token = text.strip()
    return token if scheme.lower() == "bearer" and is_token(token) else None
