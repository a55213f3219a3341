"""Revision 0005: owners of names: the key that made an adapter, and the spelling of the name in each upload."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0005"
down_revision: Final = "0004"

_READ: Final = ("adapter_id", "state", "engine_name")


def upgrade() -> None:
    """Add the columns. An adapter with a stored version keeps its name, without an owner: none was recorded."""
    op.add_column("adapters", sa.Column("key_owner", sa.String(63)))
    op.add_column("adapters", sa.Column("bound", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("versions", sa.Column("key_owner", sa.String(63)))
    op.add_column("versions", sa.Column("spelling", sa.String(63), nullable=False, server_default=""))
    op.execute(
        sa.text("UPDATE versions SET spelling = (SELECT name FROM adapters WHERE adapters.id = versions.adapter_id)")
    )
    names = sa.table("adapters", sa.column("id"), sa.column("bound"))
    rows = sa.table("versions", *map(sa.column, _READ))
    stored = rows.c.state.in_(("stored", "ready", "retired")) | rows.c.engine_name.is_not(None)
    living = sa.select(rows.c.adapter_id).where(rows.c.state != "deleted", stored)
    op.execute(sa.update(names).where(names.c.id.in_(living)).values(bound=sa.true()))
