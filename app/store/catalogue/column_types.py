"""Column types of the catalogue's tables."""

from datetime import UTC, datetime
from typing import Final

from sqlalchemy import BigInteger, DateTime, Dialect, Integer, String, TypeDecorator

from app.domain.names import FULL_NAME_LIMIT

HEX: Final = 64
"""Characters of a SHA-256 in hex."""


class Utc(TypeDecorator[datetime]):
    """Column type: aware datetimes in Python, naive UTC in the database, because SQLite stores no time zone."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert a value for the database."""
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert a value from the database."""
        return None if value is None else value.replace(tzinfo=UTC)


class NameText(TypeDecorator[str]):
    """Column type: a name as an uploader may have written it.

    Text that no database accepts becomes text that no name contains.
    """

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Convert a value for the database: PostgreSQL stores no NUL, neither database stores an unpaired surrogate."""
        return None if value is None else value.replace("\0", "\ufffd").encode(errors="replace").decode()


COUNT: Final = Integer().with_variant(BigInteger(), "postgresql")
"""Column type of bytes and revisions: PostgreSQL's INTEGER ends at 2³¹, SQLite's does not."""

TOTAL: Final = BigInteger().with_variant(Integer(), "sqlite")
"""Column type of sums; SQLite's INTEGER has 64 bits."""

FULL: Final = FULL_NAME_LIMIT
_AT_FIRST: Final = 63
"""Declared length of names when the tables were new. SQLite still has it: it enforces none, and cannot change one."""

FULL_NAME: Final = NameText(FULL).with_variant(NameText(_AT_FIRST), "sqlite")
IN_BYTE_ORDER: Final = String(_AT_FIRST).with_variant(String(FULL, collation="C"), "postgresql")
"""Column type sorted by bytes whatever the server's language is, as in SQLite."""
