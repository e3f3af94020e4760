"""What is said to databases, as far as it differs; what they answer is tested on real ones."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from airflow_edge_server.store.models import EdgeAgentJob
from airflow_edge_server.store.transaction import locked
from airflow_edge_server.store.watch import same_task


@pytest.mark.parametrize(
    ("url", "lock", "join"),
    [
        ("mysql+pymysql", " FOR UPDATE SKIP LOCKED", "replace(edge_agent_job.ti_id, "),
        ("postgresql+psycopg2", " FOR NO KEY UPDATE SKIP LOCKED", "CAST(edge_agent_job.ti_id AS UUID)"),
        ("sqlite", "", "replace(edge_agent_job.ti_id, "),
    ],
)
def test_rows_are_locked_and_tasks_are_found_in_the_databases_own_words(url: str, lock: str, join: str) -> None:
    engine = create_engine(f"{url}://")
    with Session(engine) as session:
        job = EdgeAgentJob
        query = select(job.id)
        locking = str(locked(query, session, skip_locked=True).compile(engine))
        assert " ".join(locking.split()) == " ".join(f"{query.compile(engine)}{lock}".split())
        assert f"task_instance.id = {join}" in str(query.where(same_task(session)).compile(engine))
