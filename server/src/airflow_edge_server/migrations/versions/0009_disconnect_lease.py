"""Keep how long the agent of a job may be away."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "4f9a1c7e2b60"
down_revision = "b90c5ad2f7e3"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    with op.batch_alter_table("edge_agent_job") as table:
        table.add_column(sa.Column("disconnect_lease_seconds", sa.Float(), nullable=True))


def downgrade() -> None:
    """Drop it."""
    with op.batch_alter_table("edge_agent_job") as table:
        table.drop_column("disconnect_lease_seconds")
