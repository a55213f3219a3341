"""Revision 0013: roll-outs of adapters."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0013"
down_revision: Final = "0012"


def upgrade() -> None:
    """Add the column. No roll-out was under way before."""
    op.add_column("adapters", sa.Column("traffic", sa.Text))
