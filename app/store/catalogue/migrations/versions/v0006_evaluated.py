"""Revision 0006: evaluation that a version's artefact passed, and the rung that made it."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0006"
down_revision: Final = "0005"


def upgrade() -> None:
    """Add the columns. No version was evaluated before."""
    op.add_column("versions", sa.Column("evaluated", sa.String(64)))
    op.add_column("versions", sa.Column("rung", sa.Integer))
