"""What scenarios are made of: real Dag runs, task instances and executors. Imported by the lab process only."""

from __future__ import annotations

import itertools
import logging
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from airflow import settings
from airflow.executors import workloads
from airflow.jobs.job import Job
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
from airflow.models.callback import Callback
from airflow.models.dag import DagModel
from airflow.models.dagbag import DBDagBag
from airflow.models.dagbundle import DagBundleModel
from airflow.models.dagrun import DagRun
from airflow.models.log import Log
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.taskinstance import TaskInstance
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG
from airflow.serialization.definitions.dag import SerializedDAG
from airflow.serialization.serialized_objects import LazyDeserializedDAG
from airflow.utils.session import create_session
from airflow.utils.types import DagRunTriggeredByType, DagRunType
from sqlalchemy import delete, select, update
from structlog.testing import capture_logs

from airflow_edge_server.executor import EdgeExecutor
from airflow_edge_server.store.models import (
    EdgeAgent,
    EdgeAgentCredential,
    EdgeAgentJob,
    EdgeAgentJoinToken,
    EdgeAgentLog,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy.orm import Session

_numbers = itertools.count(1)


@contextmanager
def db() -> Iterator[Session]:
    with create_session(scoped=False) as session:
        yield session


def reset() -> None:
    settings.Session.remove()
    with db() as session:
        ours = (EdgeAgentLog, EdgeAgentJob, EdgeAgentJoinToken, EdgeAgentCredential, EdgeAgent)
        for model in (*ours, Callback, TaskInstance, DagRun, Job, Log):
            session.execute(delete(model))


def dag_run(
    tasks: int = 1,
    *,
    retries: int = 0,
    pool_slots: int = 1,
    state: str | None = "queued",
    task_executor: str | None = None,
    executor_config: dict[str, Any] | None = None,
) -> list[str]:
    """Make a running Dag run whose tasks have that state; return the ids of its task instances."""
    dag_id = f"dag_{next(_numbers)}"
    with DAG(dag_id, schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)) as dag:
        for number in range(tasks):
            BashOperator(
                task_id=f"task_{number}",
                bash_command="true",
                retries=retries,
                pool_slots=pool_slots,
                priority_weight=number + 1,
                executor=task_executor,
                executor_config=executor_config,
            )
    with db() as session:
        if session.get(DagBundleModel, "lab") is None:
            session.add(DagBundleModel(name="lab"))
            session.flush()
        lazy = LazyDeserializedDAG.from_dag(dag)
        SerializedDAG.bulk_write_to_db("lab", None, [lazy], session=session)
        session.flush()
        SerializedDagModel.write_dag(lazy, bundle_name="lab", session=session)
        session.execute(update(DagModel).where(DagModel.dag_id == dag_id).values(is_paused=False))
        session.flush()
        serialized = DBDagBag().get_latest_version_of_dag(dag_id, session=session)
        now = datetime.now(UTC)
        run = serialized.create_dagrun(
            run_id="run",
            logical_date=now,
            data_interval=(now, now),
            run_after=now,
            run_type=DagRunType.MANUAL,
            triggered_by=DagRunTriggeredByType.TEST,
            state="running",
            start_date=now,
            session=session,
        )
        session.flush()
        ids = []
        for ti in sorted(run.get_task_instances(session=session), key=lambda ti: ti.task_id):
            ti.state = state
            ti.max_tries = retries
            if state is not None:
                ti.try_number = 1
                ti.queued_dttm = now
            ids.append(str(ti.id))
    return ids


def scheduler_job(*, alive: bool = True) -> int:
    with db() as session:
        beat = datetime.now(UTC) - (timedelta() if alive else timedelta(hours=1))
        job = Job(job_type="SchedulerJob", state="running" if alive else "failed")
        job.latest_heartbeat = beat
        session.add(job)
        session.flush()
        return int(job.id)


def executor(*, parallelism: int = 100, job_id: int | None = None) -> EdgeExecutor:
    made = EdgeExecutor(parallelism=parallelism)
    made.job_id = scheduler_job() if job_id is None else job_id
    made.start()
    return made


def ti(session: Session, ti_id: str) -> Any:
    return session.scalars(select(TaskInstance).where(TaskInstance.id == _uuid(ti_id))).one()


def _uuid(text: str) -> Any:
    from uuid import UUID  # noqa: PLC0415

    return UUID(text)


def set_ti(ti_id: str, **values: Any) -> None:
    with db() as session:
        session.execute(update(TaskInstance).where(TaskInstance.id == _uuid(ti_id)).values(**values))


def ti_state(ti_id: str) -> str | None:
    with db() as session:
        return session.scalars(select(TaskInstance.state).where(TaskInstance.id == _uuid(ti_id))).one_or_none()


def queue(edge: EdgeExecutor, ids: Sequence[str], *, commit: bool = True) -> None:
    """Do what the scheduler does when it hands tasks to an executor."""
    session = settings.Session()
    for ti_id in ids:
        row = ti(session, ti_id)
        row.state = "queued"
        row.queued_by_job_id = edge.job_id
        edge.queue_workload(workloads.ExecuteTask.make(row, generator=edge.jwt_generator), session=session)
    if commit:
        session.commit()
    else:
        session.rollback()
    session.close()


def queue_callback(edge: EdgeExecutor) -> str:
    callback_id = str(uuid4())
    workload = workloads.ExecuteCallback(
        callback={"id": callback_id, "fetch_method": "import_path", "data": {"path": "a.b.c", "kwargs": {}}},
        dag_rel_path="dag.py",
        token="not to be stored",
        log_path=f"executor_callbacks/{callback_id}",
        bundle_info={"name": "lab"},
    )
    with db() as session:
        edge.queue_workload(workload, session=session)
    return callback_id


def jobs(**where: Any) -> list[EdgeAgentJob]:
    with db() as session:
        found = list(session.scalars(select(EdgeAgentJob).filter_by(**where).order_by(EdgeAgentJob.queued_at)))
        session.expunge_all()
    return found


def job_of(ti_id: str) -> EdgeAgentJob:
    """Return the latest job of a task instance."""
    return jobs(ti_id=ti_id)[-1]


def set_job(job_id: str, **values: Any) -> None:
    with db() as session:
        session.execute(update(EdgeAgentJob).where(EdgeAgentJob.id == job_id).values(**values))


def start(job_id: str, agent: str = "a1") -> None:
    set_job(job_id, state="running", agent_name=agent, fence=1, started_at=datetime.now(UTC))


def finish(job_id: str, outcome: str = "finished", *, exit_code: int | None = 0, detail: str | None = None) -> None:
    set_job(
        job_id,
        state="finished",
        outcome=outcome,
        exit_code=exit_code,
        detail=detail,
        agent_name="a1",
        finished_at=datetime.now(UTC),
    )


def agent(name: str = "a1", *, state: str = "running", silent_seconds: float = 0, **values: Any) -> None:
    with db() as session:
        session.add(
            EdgeAgent(
                name=name,
                state=state,
                last_contact_at=datetime.now(UTC) - timedelta(seconds=silent_seconds),
                **values,
            )
        )


def agent_row(name: str = "a1") -> EdgeAgent:
    with db() as session:
        row = session.get(EdgeAgent, name)
        assert row is not None
        session.expunge_all()
    return row


def write_log(job_id: str, pieces: Sequence[bytes]) -> None:
    offset = 0
    with db() as session:
        for piece in pieces:
            session.add(EdgeAgentLog(job_id=job_id, offset=offset, data=piece))
            offset += len(piece)
    set_job(job_id, log_next_offset=offset)


def sync_past_grace(edge: EdgeExecutor) -> None:
    """Sync until the grace for late task states is over, without waiting for it."""
    for _ in range(3):
        edge.sync()
        edge._waiting = {job_id: (since - 60, looks) for job_id, (since, looks) in edge._waiting.items()}


def sweep(edge: EdgeExecutor) -> None:
    """Sync with every sweep due."""
    edge._next_sweep = edge._next_reconcile = edge._housekeeping.next_purge = 0
    edge.sync()


def process_events(edge: EdgeExecutor) -> None:
    """Let the scheduler's own code take the events."""
    with create_session() as session:
        SchedulerJobRunner.process_executor_events(
            executor=edge, job_id=edge.job_id, scheduler_dag_bag=DBDagBag(), session=session
        )


def events(edge: EdgeExecutor) -> list[tuple[str, Any]]:
    """Take the events as (state, info)."""
    return [(str(state), info) for state, info in edge.get_event_buffer().values()]


def log_messages() -> str:
    with db() as session:
        return "\n".join(str(extra) for extra in session.scalars(select(Log.extra)))


@contextmanager
def lines() -> Iterator[list[str]]:
    """Collect what is logged meanwhile, by us and by Airflow's own loggers, which are others."""
    found: list[str] = []

    class Collecting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    collecting, ours = Collecting(), logging.getLogger("airflow_edge_server")
    ours.addHandler(collecting)
    try:
        with capture_logs() as entries:
            yield found
        found += [str(entry["event"]) for entry in entries]
    finally:
        ours.removeHandler(collecting)
