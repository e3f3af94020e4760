"""Agents, their tokens, jobs and logs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "3f1c9a6d0b52"
down_revision = None
branch_labels = None
depends_on = None

_TIME = sa.TIMESTAMP(timezone=True)


def upgrade() -> None:
    """Create the four tables."""
    op.create_table(
        "edge_agent",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("team_name", sa.String(64)),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("problem", sa.Text),
        sa.Column("maintenance_wanted", sa.Boolean),
        sa.Column("maintenance_comment", sa.Text),
        sa.Column("maintenance_by", sa.String(200)),
        sa.Column("maintenance_since", _TIME),
        sa.Column("agent_id", sa.String(36)),
        sa.Column("boot_id", sa.String(200)),
        sa.Column("instance_id", sa.String(36)),
        sa.Column("session_id", sa.String(36)),
        sa.Column("hostname", sa.String(200)),
        sa.Column("queues", sa.JSON, nullable=False),
        sa.Column("slots_total", sa.Integer, nullable=False),
        sa.Column("slots_used", sa.Integer, nullable=False),
        sa.Column("versions", sa.JSON, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("first_seen_at", _TIME),
        sa.Column("connected_at", _TIME),
        sa.Column("last_contact_at", _TIME),
    )
    op.create_table(
        "edge_agent_token",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("agent_name", sa.String(63), nullable=False),
        sa.Column("secret_hash", sa.String(64), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("created_by", sa.String(200)),
        sa.Column("revoked_at", _TIME),
    )
    op.create_index("ix_edge_agent_token_agent_name", "edge_agent_token", ["agent_name"])
    op.create_table(
        "edge_agent_job",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("kind", sa.String(10), nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("reported", sa.Boolean, nullable=False),
        sa.Column("team_name", sa.String(64)),
        sa.Column("queue", sa.String(256), nullable=False),
        sa.Column("slots", sa.Integer, nullable=False),
        sa.Column("priority_weight", sa.Integer, nullable=False),
        sa.Column("ti_id", sa.String(36), nullable=False),
        sa.Column("dag_id", sa.String(250)),
        sa.Column("task_id", sa.String(250)),
        sa.Column("run_id", sa.String(250)),
        sa.Column("map_index", sa.Integer, nullable=False),
        sa.Column("try_number", sa.Integer, nullable=False),
        sa.Column("workload", sa.JSON, nullable=False),
        sa.Column("log_key", sa.String(64)),
        sa.Column("agent_name", sa.String(63)),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("lease_until", _TIME),
        sa.Column("cancel_reason", sa.Text),
        sa.Column("outcome", sa.String(20)),
        sa.Column("exit_code", sa.Integer),
        sa.Column("detail", sa.Text),
        sa.Column("usage", sa.JSON, nullable=False),
        sa.Column("log_bytes", sa.BigInteger),
        sa.Column("log_next_offset", sa.BigInteger, nullable=False),
        sa.Column("queued_at", _TIME, nullable=False),
        sa.Column("offered_at", _TIME),
        sa.Column("accepted_at", _TIME),
        sa.Column("started_at", _TIME),
        sa.Column("finished_at", _TIME),
    )
    op.create_index(
        "idx_edge_agent_job_dispatch", "edge_agent_job", ["state", "queue", "kind", "priority_weight", "queued_at"]
    )
    op.create_index("idx_edge_agent_job_agent", "edge_agent_job", ["agent_name", "state"])
    op.create_index("idx_edge_agent_job_owner", "edge_agent_job", ["owner", "reported", "state"])
    op.create_index("idx_edge_agent_job_ti", "edge_agent_job", ["ti_id"])
    op.create_index("idx_edge_agent_job_log", "edge_agent_job", ["log_key"])
    op.create_index("idx_edge_agent_job_finished", "edge_agent_job", ["finished_at"])
    op.create_table(
        "edge_agent_log",
        sa.Column("job_id", sa.String(36), primary_key=True),
        sa.Column("offset", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("data", sa.LargeBinary(256 * 1024), nullable=False),
    )


def downgrade() -> None:
    """Drop them."""
    for table in ("edge_agent_log", "edge_agent_job", "edge_agent_token", "edge_agent"):
        op.drop_table(table)
