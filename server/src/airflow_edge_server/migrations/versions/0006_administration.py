"""What administrators see and want: history and events of agents, and what the server wants of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "8d1b6f40c2e7"
down_revision = "e2b7f4910c6d"
branch_labels = None
depends_on = None

_TIME = sa.TIMESTAMP(timezone=True)
# SQLite counts up only what it calls an integer.
_COUNTED = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add columns and tables."""
    with op.batch_alter_table("edge_agent") as table:
        table.add_column(sa.Column("maintenance_until", _TIME))
        table.add_column(sa.Column("carrier", sa.String(20)))
        table.add_column(sa.Column("slots_wanted", sa.Integer))
        table.add_column(sa.Column("queues_added", sa.JSON(none_as_null=True)))
        table.add_column(sa.Column("queues_removed", sa.JSON(none_as_null=True)))
        table.add_column(sa.Column("drain_wanted", sa.Boolean))
        table.add_column(sa.Column("controls_revision", sa.Integer, nullable=False, server_default="0"))
        table.add_column(sa.Column("controls_seen", sa.Integer, nullable=False, server_default="0"))
        table.add_column(sa.Column("configuration", sa.JSON(none_as_null=True)))
    op.create_table(
        "edge_agent_metric",
        sa.Column("agent_name", sa.String(63), primary_key=True),
        sa.Column("at", _TIME, primary_key=True),
        sa.Column("cpu_percent", sa.Float),
        sa.Column("load_1_per_core", sa.Float),
        sa.Column("memory_used_bytes", sa.BigInteger),
        sa.Column("memory_total_bytes", sa.BigInteger),
        sa.Column("disk_used_bytes", sa.BigInteger),
        sa.Column("disk_total_bytes", sa.BigInteger),
        sa.Column("slots_used", sa.Integer),
    )
    op.create_index("idx_edge_agent_metric_at", "edge_agent_metric", ["at"])
    op.create_table(
        "edge_agent_event",
        sa.Column("id", _COUNTED, primary_key=True, autoincrement=True),
        sa.Column("agent_name", sa.String(63), nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("kind", sa.String(30), nullable=False),
        sa.Column("detail", sa.Text),
        sa.Column("by", sa.String(200)),
    )
    op.create_index("idx_edge_agent_event_agent", "edge_agent_event", ["agent_name", "id"])
    op.create_index("idx_edge_agent_event_at", "edge_agent_event", ["at"])


def downgrade() -> None:
    """Drop them."""
    op.drop_table("edge_agent_event")
    op.drop_table("edge_agent_metric")
    with op.batch_alter_table("edge_agent") as table:
        for name in (
            "configuration",
            "controls_seen",
            "controls_revision",
            "drain_wanted",
            "queues_removed",
            "queues_added",
            "slots_wanted",
            "carrier",
            "maintenance_until",
        ):
            table.drop_column(name)
