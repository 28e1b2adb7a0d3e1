"""
Checkpoints that travel as blobs, where no folder survives attempts.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "checkpoints",
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("member", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("shard", sa.Integer()),
        sa.Column("shards", sa.Integer(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("files", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("run", "member", "name", name="pk_checkpoints"),
        sa.ForeignKeyConstraint(
            ["run"], ["runs.id"], name="fk_checkpoints_run", ondelete="CASCADE"
        ),
    )


def downgrade() -> None:
    """Drop it: an older Wherry has no use for it."""
    op.drop_table("checkpoints")
