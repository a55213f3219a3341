"""Authentication by API key, sent as by OpenAI's or Anthropic's clients. No log, metric or error contains a key."""

from collections.abc import Callable, Mapping
from typing import Final

from app.domain.api_keys import Key, Role, digest_of_key
from app.domain.errors import UNAUTHORIZED, Refused

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
    """Admission of callers by their keys; with `open_door` every caller is admitted. find: SHA-256 → key, if accepted."""

    def __init__(self, find: Callable[[bytes], Key | None], *, open_door: bool = False) -> None:
        self._find = find
        self.open_door = open_door

    def admit(self, authorization: str | None) -> Key:
        """Return the caller's key. Raises Refused UNAUTHORIZED.

        A key is found by its SHA-256, in the same time however many there are. Nobody can choose the digest of a guess, so
        the duration reveals nothing about any key.
        """
        if self.open_door:
            return ANYBODY
        scheme, _, key = (authorization or "")[:MAX_KEY_CHARS].partition(" ")
        offered = digest_of_key(key.strip())
        known = self._find(offered)
        if scheme.lower() != "bearer" or known is None:
            raise Refused(UNAUTHORIZED, "missing or unknown API key")
        return known
