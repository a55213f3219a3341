"""Authentication by API key, sent as by OpenAI's or Anthropic's clients. No log, metric or error contains a key."""

import hmac
from collections.abc import Iterable, Mapping
from typing import Final

from app.domain.api_keys import Key, Role, digest_of_key
from app.domain.errors import FORBIDDEN, UNAUTHORIZED, Refused

ANYBODY: Final = Key("open", frozenset(Role), b"")
"""Key of every caller of an open gateway: the rate limits treat them as one caller."""

MAX_KEY_CHARS: Final = 512
"""Characters of an `Authorization` header that are examined."""


def authorization(headers: Mapping[str, str]) -> str | None:
    """Return the `Authorization` header, or what it would be for the key in `x-api-key`, Anthropic's header for keys."""
    given = headers.get("authorization")
    if given is None and (key := headers.get("x-api-key")) is not None:
        return f"Bearer {key}"
    return given


class Keys:
    """The keys this gateway accepts; with `open_door` and no keys it accepts every caller."""

    def __init__(self, keys: Iterable[Key], *, open_door: bool = False) -> None:
        self._keys = tuple(keys)
        self.open_door = open_door and not self._keys

    def admit(self, authorization: str | None, roles: frozenset[Role]) -> Key:
        """Return the caller's key, which must have one of `roles`. Raises Refused UNAUTHORIZED or FORBIDDEN.

        All digests are compared, each in constant time, so that the duration reveals nothing about any key.
        """
        if self.open_door:
            return ANYBODY
        scheme, _, key = (authorization or "")[:MAX_KEY_CHARS].partition(" ")
        offered = digest_of_key(key.strip())
        matches = [known for known in self._keys if hmac.compare_digest(offered, known.digest)]
        if scheme.lower() != "bearer" or not matches:
            raise Refused(UNAUTHORIZED, "missing or unknown API key")
        if not matches[0].may(roles):
            wanted = ", ".join(sorted(roles | {Role.ADMIN}))
            raise Refused(FORBIDDEN, f"the key {matches[0].name!r} lacks the role; one of these is needed: {wanted}")
        return matches[0]
