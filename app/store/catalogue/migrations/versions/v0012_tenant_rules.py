"""Revision 0012: rules that a tenant has beside the operator's."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0012"
down_revision: Final = "0011"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "tenant_rules",
        sa.Column("tenant", sa.String(63), primary_key=True),
        sa.Column("override", sa.Text, nullable=False),
        sa.Column("battery", sa.Text),
        sa.Column("revision", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Index("tenant_rules_revision", "revision"),
    )
