"""Revision 0008: tenants: longer names, which begin with their tenant; keys made at run time; usage; the audit log."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0008"
down_revision: Final = "0007"

_COUNT: Final = sa.Integer().with_variant(sa.BigInteger(), "postgresql")
_TOTAL: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Widen the columns of names, where a length is enforced, and create the tables of keys, usage and audit."""
    if op.get_bind().dialect.name != "sqlite":
        for table, column, length, collation in (
            ("adapters", "name", 127, None),
            ("adapters", "name_key", 127, "C"),
            ("versions", "spelling", 127, None),
            ("versions", "engine_name", 159, None),
        ):
            op.alter_column(table, column, type_=sa.String(length, collation=collation))
    op.create_table(
        "api_keys",
        sa.Column("tenant", sa.String(63), primary_key=True),
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("roles", sa.String(128), nullable=False),
        sa.Column("key_owner", sa.String(63)),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("previous_digest", sa.String(64)),
        sa.Column("previous_until", sa.DateTime),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("expires_at", sa.DateTime),
        sa.Column("last_used_at", sa.DateTime),
        sa.Column("revoked_at", sa.DateTime),
        sa.Column("revision", _COUNT, nullable=False),
    )
    op.create_index("api_keys_revision", "api_keys", ["revision"])
    op.create_table(
        "usage",
        sa.Column("hour", sa.DateTime, primary_key=True),
        sa.Column("tenant", sa.String(63), primary_key=True),
        sa.Column("key", sa.String(63), primary_key=True),
        sa.Column("adapter", sa.String(127), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        *(
            sa.Column(name, _TOTAL, nullable=False)
            for name in ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")
        ),
    )
    op.create_table(
        "usage_batches",
        sa.Column("gateway", sa.String(32), primary_key=True),
        sa.Column("number", _COUNT, nullable=False),
        sa.Column("at", sa.DateTime, nullable=False),
    )
    op.create_table(
        "audit_log",
        sa.Column("number", _TOTAL, primary_key=True, autoincrement=False),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.Column("key", sa.String(127), nullable=False),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("action", sa.String(128), nullable=False),
        sa.Column("target", sa.String(127).with_variant(sa.String(63), "sqlite"), nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("code", sa.String(64), nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("request", sa.String(128), nullable=False),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    op.create_index("audit_log_tenant", "audit_log", ["tenant", "number"])
