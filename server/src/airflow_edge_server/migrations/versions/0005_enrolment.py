"""Enrolment: join tokens, key pairs of agents, and what an agent may serve."""

from __future__ import annotations

import sqlalchemy as sa
from airflow.utils.sqlalchemy import UtcDateTime
from alembic import op

revision = "e2b7f4910c6d"
down_revision = "c5e07a3d9b14"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables, add the columns."""
    op.create_table(
        "edge_agent_join_token",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("secret_hash", sa.String(64), nullable=False),
        sa.Column("name_pattern", sa.String(63), nullable=False),
        sa.Column("queues", sa.JSON, nullable=False),
        sa.Column("team_name", sa.String(64), nullable=True),
        sa.Column("uses_left", sa.Integer, nullable=False),
        sa.Column("expires_at", UtcDateTime, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("created_by", sa.String(200), nullable=True),
        sa.Column("used_at", UtcDateTime, nullable=True),
        sa.Column("revoked_at", UtcDateTime, nullable=True),
    )
    op.create_table(
        "edge_agent_credential",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("agent_name", sa.String(63), nullable=False),
        sa.Column("public_key", sa.String(64), nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("expires_at", UtcDateTime, nullable=True),
        sa.Column("revoked_at", UtcDateTime, nullable=True),
        sa.Column("join_token_id", sa.String(16), nullable=True),
        sa.Column("predecessor", sa.String(16), nullable=True),
        sa.Column("agent_id", sa.String(36), nullable=True),
        sa.Column("boot_id", sa.String(200), nullable=True),
        sa.Column("hostname", sa.String(200), nullable=True),
    )
    op.create_index("ix_edge_agent_credential_agent_name", "edge_agent_credential", ["agent_name"])
    with op.batch_alter_table("edge_agent") as table:
        table.add_column(sa.Column("granted_queues", sa.JSON(none_as_null=True), nullable=True))
        table.add_column(sa.Column("enrolled_at", UtcDateTime, nullable=True))
        table.add_column(sa.Column("revoked_at", UtcDateTime, nullable=True))


def downgrade() -> None:
    """Drop them."""
    with op.batch_alter_table("edge_agent") as table:
        for column in ("revoked_at", "enrolled_at", "granted_queues"):
            table.drop_column(column)
    op.drop_table("edge_agent_credential")
    op.drop_table("edge_agent_join_token")
