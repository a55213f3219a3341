"""Revision 0006: evaluation that a version's artefact passed."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0006"
down_revision: Final = "0005"


def upgrade() -> None:
    """Add the column. No version was evaluated before."""
    op.add_column("versions", sa.Column("evaluated", sa.String(64)))
