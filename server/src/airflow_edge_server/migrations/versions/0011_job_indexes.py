"""Find a part of what has ended, and what is to be cancelled, without reading whatever else there is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "d82b5c0f7e16"
down_revision = "a37d51e8c094"
branch_labels = None
depends_on = None

_TABLE = "edge_agent_job"
_CANCEL = "idx_edge_agent_job_cancel"
_OWNER = "idx_edge_agent_job_owner"
_CANCELLED = sa.text("cancel_reason IS NOT NULL")


def upgrade() -> None:
    """Add the one index, and the id to the other."""
    op.create_index(_CANCEL, _TABLE, ["state"], postgresql_where=_CANCELLED, sqlite_where=_CANCELLED)
    op.drop_index(_OWNER, table_name=_TABLE)
    op.create_index(_OWNER, _TABLE, ["owner", "reported", "state", "id"])


def downgrade() -> None:
    """Have the other as it was, and drop the one."""
    op.drop_index(_OWNER, table_name=_TABLE)
    op.create_index(_OWNER, _TABLE, ["owner", "reported", "state"])
    op.drop_index(_CANCEL, table_name=_TABLE)
