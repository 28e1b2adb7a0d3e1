"""
Restarts that are counted and wait; ranks that are replaced, and rounds in which they meet.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

#: Columns that count from 0, by table.
_COUNTS = {
    "runs": ("restarts_used",),
    "attempts": ("round", "charged"),
    "ranks": ("round",),
}


def upgrade() -> None:
    """Add the columns, with what they were before anybody counted."""
    for table, names in _COUNTS.items():
        for name in names:
            op.add_column(table, sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("not_before", sa.Double(), nullable=False, server_default="0"))
    op.add_column("attempts", sa.Column("members", sa.Text(), nullable=False, server_default="[]"))


def downgrade() -> None:
    """Drop them: an older Wherry does not know these groups."""
    for table, names in _COUNTS.items():
        for name in names:
            op.drop_column(table, name)
    op.drop_column("runs", "not_before")
    op.drop_column("attempts", "members")
