"""What has changed of many rows is written as it would be one by one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import event, select

from airflow_edge_server.store.bulk import store_changes
from airflow_edge_server.store.models import EdgeAgent, EdgeAgentEvent, EdgeAgentJob
from integration.server_api.kit import Database

MOMENT = datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)
ODD = 'quote \' "double" back\\slash {brace}, NULL ü 日本 \N{SNAKE}'


def test_rows_of_each_kind_hold_what_was_set(database: Database) -> None:
    ids = [database.add_job(state="accepted", agent_name="factory") for _ in range(6)]
    with database.sessions() as session:
        session.add_all(EdgeAgent(name=f"agent-{number}", slots_total=1, metrics={"old": 1}) for number in range(3))
    written: list[str] = []

    def note(*given: Any) -> None:
        if given[2].startswith("UPDATE"):
            written.append(given[2])

    with database.sessions() as session:
        jobs = {job.id: job for job in session.scalars(select(EdgeAgentJob))}
        agents = {agent.name: agent for agent in session.scalars(select(EdgeAgent))}
        for number, job_id in enumerate(ids[:4]):
            job = jobs[job_id]
            job.state, job.finished_at = "finished", MOMENT + timedelta(microseconds=number)
            job.usage = {"cpu_seconds": number / 2, "text": ODD}
            job.detail = None if number % 2 else ODD
            job.exit_code, job.log_bytes = -15, 2**40 + number
        jobs[ids[4]].reported = True
        jobs[ids[4]].disconnect_lease_seconds = 2.5
        agents["agent-1"].queues = ["a,b", ODD]
        agents["agent-1"].granted_queues = None
        agents["agent-2"].metrics = {"new": [1, None, {"deep": True}]}
        session.add(EdgeAgentEvent(agent_name="agent-1", at=MOMENT, kind="limit"))
        event.listen(database.engine, "before_cursor_execute", note)
        store_changes(session)
        assert not [row for row in session.dirty if session.is_modified(row)]
        event.remove(database.engine, "before_cursor_execute", note)
    if database.engine.dialect.name == "postgresql":
        assert len(written) == 4

    with database.sessions() as session:
        for number, job_id in enumerate(ids[:4]):
            job = session.get_one(EdgeAgentJob, job_id)
            assert (job.state, job.exit_code, job.log_bytes) == ("finished", -15, 2**40 + number)
            assert job.finished_at == MOMENT + timedelta(microseconds=number)
            assert job.usage == {"cpu_seconds": number / 2, "text": ODD}
            assert job.detail == (None if number % 2 else ODD)
        fifth, untouched = session.get_one(EdgeAgentJob, ids[4]), session.get_one(EdgeAgentJob, ids[5])
        assert (fifth.state, fifth.reported, fifth.disconnect_lease_seconds) == ("accepted", True, 2.5)
        assert (untouched.state, untouched.finished_at, untouched.reported) == ("accepted", None, False)
        found = {agent.name: agent for agent in session.scalars(select(EdgeAgent)) if agent.name.startswith("agent-")}
        assert found["agent-1"].queues == ["a,b", ODD]
        assert session.scalars(select(EdgeAgent.name).where(EdgeAgent.granted_queues.is_(None))).all()
        assert found["agent-1"].metrics == {"old": 1}
        assert found["agent-2"].metrics == {"new": [1, None, {"deep": True}]}
        assert len(session.scalars(select(EdgeAgentEvent)).all()) == 1
