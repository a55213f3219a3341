"""Revision 0001: tables of adapters and their versions."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0001"
down_revision: Final = None


def upgrade() -> None:
    """Create the tables in an empty database."""
    op.create_table("schema_info", sa.Column("version", sa.Integer, nullable=False))
    op.bulk_insert(sa.table("schema_info", sa.column("version", sa.Integer)), [{"version": 1}])
    _adapters()
    _versions()
    op.create_index("versions_state", "versions", ["state"])


def _adapters() -> None:
    op.create_table(
        "adapters",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("name_key", sa.String(63).with_variant(_byte_order(), "postgresql"), nullable=False, unique=True),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("active_version", sa.Integer),
        sa.Column("next_version", sa.Integer, nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
    )


def _versions() -> None:
    digest, size = sa.String(64), sa.Integer().with_variant(sa.BigInteger(), "postgresql")
    op.create_table(
        "versions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("adapter_id", sa.Integer, sa.ForeignKey("adapters.id"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("outcome", sa.String(16)),
        sa.Column("config_digest", digest, nullable=False),
        sa.Column("weights_digest", digest, nullable=False),
        sa.Column("config_bytes", size, nullable=False),
        sa.Column("weights_bytes", size, nullable=False),
        sa.Column("parameters", digest, nullable=False),
        sa.Column("verdict_id", digest),
        sa.Column("modules_total", sa.Integer),
        sa.Column("modules_pruned", sa.Integer),
        sa.Column("artefact", digest),
        sa.Column("engine_name", sa.String(128), unique=True),
        sa.Column("error_code", sa.String(64)),
        sa.Column("error_message", sa.Text),
        sa.Column("report", sa.Text),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("updated_at", sa.DateTime, nullable=False),
        sa.UniqueConstraint("adapter_id", "number"),
    )


def _byte_order() -> sa.String:
    return sa.String(63, collation="C")
