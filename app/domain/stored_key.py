"""Keys made at run time, as the catalogue stores them: a key, and the times from and until which it is accepted."""

from dataclasses import dataclass
from datetime import datetime

from app.domain.api_keys import Key


@dataclass(frozen=True, slots=True)
class StoredKey:
    """One key made at run time. expires_at: None if it does not expire. last_used_at: to a minute; None: never.

    previous, previous_until: SHA-256 of the key before the last rotation, 32 bytes, and the time until which that one is
    accepted as well; None without a rotation. revision: grows with every change of any key.
    """

    key: Key
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    previous: bytes | None
    previous_until: datetime | None
    revision: int

    def accepted(self) -> dict[bytes, datetime | None]:
        """Return SHA-256 of a key → time until which it is accepted, None: for ever. Empty for a revoked key."""
        if self.revoked_at is not None:
            return {}
        if self.previous is None or self.previous_until is None:
            return {self.key.digest: self.expires_at}
        ends = min(self.previous_until, self.expires_at or self.previous_until)
        return {self.previous: ends, self.key.digest: self.expires_at}
