"""Alembic's environment for our tables. Run by Airflow's database commands, never imported."""

from __future__ import annotations

from typing import Any

from airflow import settings
from alembic import context

from airflow_edge_server.store.db import EdgeAgentDBManager


def _ours(_object: Any, name: str | None, kind: str, *_: Any) -> bool:
    return kind != "table" or name in EdgeAgentDBManager.metadata.tables


_OPTIONS: dict[str, Any] = {
    "target_metadata": EdgeAgentDBManager.metadata,
    "version_table": EdgeAgentDBManager.version_table_name,
    "include_object": _ours,
    "compare_type": True,
    # SQLite changes a table by copying it.
    "render_as_batch": True,
}

if context.is_offline_mode():
    context.configure(url=settings.SQL_ALCHEMY_CONN, literal_binds=True, **_OPTIONS)
    with context.begin_transaction():
        context.run_migrations()
else:
    with settings.engine.connect() as connection:
        context.configure(connection=connection, transaction_per_migration=True, **_OPTIONS)
        with context.begin_transaction():
            context.run_migrations()
