"""Revision 0007: evaluation that a published version failed when it was asked again."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0007"
down_revision: Final = "0006"


def upgrade() -> None:
    """Add the column. No version was asked again before."""
    op.add_column("versions", sa.Column("failed_evaluation", sa.String(64)))
