"""Revision 0003: several gateways on one catalogue: their ids, the versions they work on, and a revision number.

The revision number grows with every change.
"""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0003"
down_revision: Final = "0002"

_COUNT: Final = sa.Integer().with_variant(sa.BigInteger(), "postgresql")


def upgrade() -> None:
    """Add columns and tables. Every existing version counts as changed at revision 0, and no gateway works on it."""
    op.add_column("versions", sa.Column("owner", sa.String(32)))
    op.add_column("versions", sa.Column("revision", _COUNT, nullable=False, server_default="0"))
    op.create_index("versions_artefact", "versions", ["artefact"])
    op.create_table(
        "catalogue_state",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("revision", _COUNT, nullable=False),
        sa.Column("store", sa.String(32)),
    )
    state = sa.table("catalogue_state", sa.column("id", sa.Integer), sa.column("revision", sa.Integer))
    op.bulk_insert(state, [{"id": 1, "revision": 0}])
    op.create_table(
        "gateways",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("seen_at", sa.DateTime, nullable=False),
        sa.Column("settled", _COUNT, nullable=False),
        sa.Column("parameters", sa.String(64), nullable=False),
    )
    op.create_table(
        "claims",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("gateway", sa.String(32), sa.ForeignKey("gateways.id", ondelete="CASCADE"), primary_key=True),
    )
