"""Keep whether the log of a job has been handed over to remote logging."""

from __future__ import annotations

import sqlalchemy as sa
from airflow.utils.sqlalchemy import UtcDateTime
from alembic import op

revision = "a37d51e8c094"
down_revision = "4f9a1c7e2b60"
branch_labels = None
depends_on = None

_INDEX = "idx_edge_agent_job_hand_over"


def upgrade() -> None:
    """Add the columns and their index."""
    with op.batch_alter_table("edge_agent_job") as table:
        table.add_column(sa.Column("hand_over", sa.String(10), nullable=True))
        table.add_column(sa.Column("hand_over_at", UtcDateTime(), nullable=True))
        table.add_column(sa.Column("hand_over_tries", sa.Integer(), nullable=False, server_default="0"))
        table.create_index(_INDEX, ["hand_over", "finished_at"])


def downgrade() -> None:
    """Drop them."""
    with op.batch_alter_table("edge_agent_job") as table:
        table.drop_index(_INDEX)
        table.drop_column("hand_over_tries")
        table.drop_column("hand_over_at")
        table.drop_column("hand_over")
