"""Room for the names of further kinds of work."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "8b2d7e4f1a63"
down_revision = "3f1c9a6d0b52"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Widen the column."""
    with op.batch_alter_table("edge_agent_job") as table:
        table.alter_column("kind", existing_type=sa.String(10), type_=sa.String(20), existing_nullable=False)


def downgrade() -> None:
    """Forget what does not fit any more, and narrow the column."""
    op.execute("DELETE FROM edge_agent_job WHERE kind = 'connection_test'")
    with op.batch_alter_table("edge_agent_job") as table:
        table.alter_column("kind", existing_type=sa.String(20), type_=sa.String(10), existing_nullable=False)
