"""Remember whether an agent relays the Execution API: then its offers hold no token."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "e1b86c40f7d2"
down_revision = "8d1b6f40c2e7"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    with op.batch_alter_table("edge_agent") as table:
        table.add_column(sa.Column("execution_api", sa.String(10), nullable=False, server_default="direct"))


def downgrade() -> None:
    """Drop it."""
    with op.batch_alter_table("edge_agent") as table:
        table.drop_column("execution_api")
