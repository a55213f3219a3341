"""Revision 0002: column for the number of projected modules, which only the report contained before."""

import json
from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0002"
down_revision: Final = "0001"

_versions: Final = sa.table(
    "versions",
    sa.column("id", sa.Integer),
    sa.column("report", sa.Text),
    sa.column("modules_total", sa.Integer),
    sa.column("modules_projected", sa.Integer),
)


def upgrade() -> None:
    """Add the column, and count from the existing reports."""
    op.add_column("versions", sa.Column("modules_projected", sa.Integer))
    v, connection = _versions, op.get_bind()
    for row in connection.execute(sa.select(v.c.id, v.c.report).where(v.c.modules_total.is_not(None))).all():
        connection.execute(sa.update(v).where(v.c.id == row.id).values(modules_projected=_projected(row.report)))


def _projected(report: str | None) -> int | None:
    try:
        decisions = [module["decision"] for module in json.loads(report or "")["verdict"]["modules"]]
        return decisions.count("project")
    except (ValueError, KeyError, TypeError):  # a damaged report: the auditor reports it
        return None
