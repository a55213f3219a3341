"""Revision 0011: every fault of a refused upload."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0011"
down_revision: Final = "0010"


def upgrade() -> None:
    """Add the column. Earlier refusals have their first fault only."""
    op.add_column("versions", sa.Column("faults", sa.Text))
