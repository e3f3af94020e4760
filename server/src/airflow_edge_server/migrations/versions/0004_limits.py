"""What tasks ask for: the limits of a job."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "c5e07a3d9b14"
down_revision = "c41e90d7b2a8"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    with op.batch_alter_table("edge_agent_job") as table:
        table.add_column(sa.Column("limits", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    """Drop it."""
    with op.batch_alter_table("edge_agent_job") as table:
        table.drop_column("limits")
