"""Revision 0009: limits of tenants, and what is left of them."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0009"
down_revision: Final = "0008"

_COUNT: Final = sa.Integer().with_variant(sa.BigInteger(), "postgresql")
_TOTAL: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_LIMITS: Final = (
    "adapters",
    "versions",
    "bytes",
    "uploads_per_day",
    "screenings_per_day",
    "requests_per_minute",
    "tokens_per_minute",
    "concurrent_requests",
)


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "tenant_limits",
        sa.Column("tenant", sa.String(63), primary_key=True),
        *(sa.Column(name, _TOTAL) for name in _LIMITS),
        sa.Column("revision", _COUNT, nullable=False),
    )
    op.create_table(
        "tenant_budgets",
        sa.Column("tenant", sa.String(63), primary_key=True),
        sa.Column("flow", sa.String(16), primary_key=True),
        sa.Column("remaining", sa.Double, nullable=False),
        sa.Column("at", sa.DateTime, nullable=False),
    )
    op.create_table(
        "tenant_slots",
        sa.Column("tenant", sa.String(63), primary_key=True),
        sa.Column("gateway", sa.String(32), primary_key=True),
        sa.Column("slots", _TOTAL, nullable=False),
        sa.Column("until", sa.DateTime, nullable=False),
    )
