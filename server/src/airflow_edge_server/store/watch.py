"""Looks after tasks that run on agents, and finds those that somebody has ended in Airflow.

Airflow tells an executor nothing when a task is cleared or marked. The task's own process learns it with its next
heartbeat, which may be long in coming; here one query finds it for all connected agents at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from airflow.models.taskinstance import TaskInstance
from sqlalchemy import ColumnElement, String, Uuid, and_, cast, func, or_, select, tuple_, type_coerce, update
from sqlalchemy.orm import Session

from airflow_edge_agent.protocol.jobs import JobState
from airflow_edge_server.domain.tasks import TaskView, why_ended
from airflow_edge_server.store.among import among
from airflow_edge_server.store.models import EdgeAgentJob
from airflow_edge_server.store.transaction import Sessions, read, write

WATCH_SECONDS = 0.5
"""How often tasks are looked at."""

_MOST = 500
_RUN_ON = ("running", "queued")


@dataclass(frozen=True, slots=True)
class _Suspect:
    """A job whose task is not as that of a job under way should be."""

    job_id: str
    fence: int
    started: bool
    task: TaskView


class TaskWatch:
    """Watches the tasks of connected agents. Not safe to use from several threads.

    :param clock: monotonic seconds.
    """

    def __init__(self, sessions: Sessions, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._sessions = sessions
        self._clock = clock
        self._since: dict[tuple[str, int, TaskView], float] = {}

    def look(self, agent_names: Sequence[str]) -> int:
        """Have the jobs cancelled that Airflow does not want any more; return how many.

        :raises sqlalchemy.exc.DBAPIError: when the database fails.
        """
        suspects = read(self._sessions, lambda session: _suspects(session, agent_names)) if agent_names else []
        now = self._clock()
        seen = {(suspect.job_id, suspect.fence, suspect.task): suspect for suspect in suspects}
        self._since = {key: self._since.get(key, now) for key in seen}
        ended: list[tuple[_Suspect, str]] = []
        for key, suspect in seen.items():
            end = why_ended(suspect.task, started=suspect.started)
            if end is not None and now - self._since[key] >= end.grace_seconds:
                ended.append((suspect, end.reason))
        if not ended:
            return 0
        return write(self._sessions, lambda session: sum(_cancel(session, *entry) for entry in ended))


def same_task(session: Session) -> ColumnElement[bool]:
    """Return the condition that joins a job with its task instance."""
    if session.get_bind().dialect.name == "postgresql":
        return TaskInstance.id == cast(EdgeAgentJob.ti_id, Uuid)  # type: ignore[no-any-return]  # Airflow's model
    # Elsewhere SQLAlchemy keeps such ids as 32 hexadecimal digits.
    return type_coerce(TaskInstance.id, String) == func.replace(EdgeAgentJob.ti_id, "-", "")


def _suspects(session: Session, agent_names: Sequence[str]) -> list[_Suspect]:
    job, ti = EdgeAgentJob, TaskInstance
    rows = session.execute(
        select(
            job.id,
            job.fence,
            job.state,
            job.dag_id,
            job.task_id,
            job.run_id,
            job.map_index,
            job.try_number,
            ti.state.label("ti_state"),
            ti.id.is_(None).label("gone"),
        )
        .select_from(job)
        .outerjoin(ti, same_task(session))
        .where(
            among(session, job.agent_name, agent_names),
            job.state.in_([JobState.ACCEPTED, JobState.RUNNING]),
            job.kind == "task",
            job.cancel_reason.is_(None),
            or_(ti.state.is_(None), ti.state.not_in(_RUN_ON)),
        )
        .limit(_MOST)
    ).all()
    others = _under_another_id(session, [row for row in rows if row.gone])
    suspects = []
    for row in rows:
        if row.gone:
            place = (row.dag_id, row.task_id, row.run_id, row.map_index)
            task = TaskView(others.get(place), same_id=False, exists=place in others)
        else:
            task = TaskView(None if row.ti_state is None else str(row.ti_state), same_id=True, exists=True)
        suspects.append(_Suspect(row.id, row.fence, row.state == JobState.RUNNING, task))
    return suspects


def _under_another_id(session: Session, rows: Iterable[Any]) -> dict[tuple[str, str, str, int], str | None]:
    """Return the states of task instances that have a new id since: Airflow gives one to each new try."""
    places = sorted({(row.dag_id, row.task_id, row.run_id, row.map_index) for row in rows if row.dag_id is not None})
    if not places:
        return {}
    ti = TaskInstance
    found = session.execute(
        select(ti.dag_id, ti.task_id, ti.run_id, ti.map_index, ti.state).where(
            tuple_(ti.dag_id, ti.task_id, ti.run_id, ti.map_index).in_(places)
        )
    )
    return {tuple(row[:4]): None if row.state is None else str(row.state) for row in found}


def _cancel(session: Session, suspect: _Suspect, reason: str) -> int:
    job = EdgeAgentJob
    result = session.execute(
        update(job)
        .where(
            and_(
                job.id == suspect.job_id,
                job.fence == suspect.fence,
                job.state.in_([JobState.ACCEPTED, JobState.RUNNING]),
                job.cancel_reason.is_(None),
            )
        )
        .values(cancel_reason=reason)
        .execution_options(synchronize_session=False)
    )
    return int(getattr(result, "rowcount", 0))
