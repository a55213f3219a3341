"""Revision 0008: longer names, which begin with their tenant."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0008"
down_revision: Final = "0007"


def upgrade() -> None:
    """Widen the columns of names. SQLite does not enforce the length of a text."""
    if op.get_bind().dialect.name == "sqlite":
        return
    for table, column, length, collation in (
        ("adapters", "name", 127, None),
        ("adapters", "name_key", 127, "C"),
        ("versions", "spelling", 127, None),
        ("versions", "engine_name", 159, None),
    ):
        op.alter_column(table, column, type_=sa.String(length, collation=collation))
