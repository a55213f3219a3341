"""API keys: who may come in. Only digests are kept; a key never stands in a log, a metric or an error."""

import hashlib
import hmac
from collections.abc import Iterable

from app.errors import UNAUTHORIZED, Refused


class Keys:
    """The set of keys this gateway accepts; with `open_door` it accepts everyone."""

    def __init__(self, keys: Iterable[str], *, open_door: bool = False) -> None:
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)
        self.open_door = open_door and not self._digests

    def check(self, authorization: str | None) -> None:
        """Accept an `Authorization` header or raise Refused UNAUTHORIZED. Time does not depend on which key is near."""
        if self.open_door:
            return
        scheme, _, key = (authorization or "").partition(" ")
        offered = hashlib.sha256(key.strip().encode()).digest()
        matches = [hmac.compare_digest(offered, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise Refused(UNAUTHORIZED, "missing or unknown API key")
