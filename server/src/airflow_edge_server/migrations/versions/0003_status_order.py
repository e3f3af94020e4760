"""Tell an agent's latest status from one that was overtaken."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "c41e90d7b2a8"
down_revision = "8b2d7e4f1a63"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the number of an agent's status."""
    with op.batch_alter_table("edge_agent") as table:
        table.add_column(sa.Column("status_sequence", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    """Drop it."""
    with op.batch_alter_table("edge_agent") as table:
        table.drop_column("status_sequence")
