"""Revision 0004: table of artefacts that a gateway is deleting from object storage, outside any transaction."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0004"
down_revision: Final = "0003"


def upgrade() -> None:
    """Create the table, empty: no gateway is running during the migration."""
    op.create_table(
        "deletions",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("gateway", sa.String(32), nullable=False),
        sa.Column("marked_at", sa.DateTime, nullable=False),
    )
