"""The tokens of before go: an agent has a key pair, and gets it for a join token."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "b90c5ad2f7e3"
down_revision = "e1b86c40f7d2"
branch_labels = None
depends_on = None

_TIME = sa.TIMESTAMP(timezone=True)


def upgrade() -> None:
    """Drop the table."""
    op.drop_table("edge_agent_token")


def downgrade() -> None:
    """Create it, empty."""
    op.create_table(
        "edge_agent_token",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("agent_name", sa.String(63), nullable=False),
        sa.Column("secret_hash", sa.String(64), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("created_by", sa.String(200), nullable=True),
        sa.Column("revoked_at", _TIME, nullable=True),
    )
    op.create_index("ix_edge_agent_token_agent_name", "edge_agent_token", ["agent_name"])
