"""The executor's questions: what of mine has ended, what is adopted, revoked, lost or forgotten."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from airflow.jobs.job import Job
from airflow.models.taskinstance import TaskInstance
from sqlalchemy import select, tuple_, update

from airflow_edge_agent.protocol.jobs import JobState, Outcome
from airflow_edge_agent.protocol.states import CONNECTED_STATES
from airflow_edge_server.domain.jobs import MAX_OFFERS
from airflow_edge_server.store.among import among
from airflow_edge_server.store.dispatch import changed, return_accepted
from airflow_edge_server.store.models import EdgeAgent, EdgeAgentJob, EdgeAgentLog
from airflow_edge_server.store.wakeup import Topic, announce

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

BATCH = 500
"""Most ids in one ``IN``, and most rows of one sweep."""

KEPT_ALIVE_FOR = timedelta(seconds=1)
"""A task of which Airflow has heard so lately is not kept alive anew."""

TASK_HEARTBEAT_FRESH = timedelta(seconds=90)
"""A task whose own heartbeat is younger than this is alive, whatever is the matter with its agent."""

_WAITING_TI_STATES = frozenset({"queued", "restarting", "running"})

_T = TypeVar("_T")


@dataclass(frozen=True)
class EndedJob:
    """A finished job that its owner has not dealt with."""

    id: str
    kind: str
    ti_id: str
    try_number: int
    agent_name: str | None
    outcome: str | None
    exit_code: int | None
    detail: str | None
    place: tuple[str | None, str | None, str | None, int]
    """Dag, task, run and map index."""
    queue: str
    usage: dict[str, Any]
    workload: dict[str, Any] | None


@dataclass(frozen=True)
class TaskState:
    """What Airflow knows of a task instance."""

    state: str | None
    try_number: int
    last_heartbeat_at: datetime | None


def ended_jobs(session: Session, owner: str, *, limit: int, after: str = "") -> list[EndedJob]:
    """Return finished jobs of this owner that are not reported yet, in the order of ids.

    Of another order, PostgreSQL thinks that it had better look for them among all that have ended.

    :param after: id behind which to begin; empty: at the first.
    """
    job = EdgeAgentJob
    rows = session.execute(
        select(
            job.id,
            job.kind,
            job.ti_id,
            job.try_number,
            job.agent_name,
            job.outcome,
            job.exit_code,
            job.detail,
            job.dag_id,
            job.task_id,
            job.run_id,
            job.map_index,
            job.queue,
            job.usage,
            job.workload,
        )
        .where(job.owner == owner, ~job.reported, job.state == JobState.FINISHED.value, job.id > after)
        .order_by(job.id)
        .limit(limit)
        .with_hint(job, "FORCE INDEX (idx_edge_agent_job_owner)", "mysql")
        .with_hint(job, "FORCE INDEX (idx_edge_agent_job_owner)", "mariadb")
    )
    return [
        EndedJob(
            *row[:8],
            place=(row.dag_id, row.task_id, row.run_id, row.map_index),
            queue=row.queue,
            usage=row.usage or {},
            workload=row.workload,
        )
        for row in rows
    ]


@dataclass(frozen=True)
class TracedJob:
    """A finished job as a span has to tell of it."""

    id: str
    workload: dict[str, Any] | None
    queue: str
    agent_name: str | None
    outcome: str | None
    detail: str | None
    exit_code: int | None
    fence: int
    queued_at: datetime
    offered_at: datetime | None
    accepted_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None


def traced_jobs(session: Session, job_ids: Sequence[str]) -> list[TracedJob]:
    """Return these jobs with what a span tells."""
    columns = [getattr(EdgeAgentJob, field.name) for field in fields(TracedJob)]
    found: list[TracedJob] = []
    for part in _parts(job_ids):
        rows = session.execute(select(*columns).where(among(session, EdgeAgentJob.id, part)))
        found += [TracedJob(*row) for row in rows]
    return found


def end_at_once(session: Session, job: EdgeAgentJob, detail: str) -> None:
    """Add a new job as one that has ended before it began, and say why in its task's log."""
    now = datetime.now(UTC)
    line = {"timestamp": now.isoformat(), "level": "error", "event": f"not started: {detail}", "logger": "edge-agent"}
    data = (json.dumps(line) + "\n").encode()
    job.state = JobState.FINISHED.value
    job.outcome = Outcome.NOT_STARTED.value
    job.detail = detail
    job.finished_at = now
    job.log_bytes = job.log_next_offset = len(data)
    session.add_all([job, EdgeAgentLog(job_id=job.id, offset=0, data=data)])


def mark_reported(session: Session, job_ids: Sequence[str]) -> None:
    """Note that the owner has dealt with the end of these jobs."""
    for part in _parts(job_ids):
        _update(session, among(session, EdgeAgentJob.id, part), reported=True)


def task_states(session: Session, ti_ids: Iterable[str]) -> dict[str, TaskState]:
    """Return the state of these task instances; those that are gone are left out."""
    states = {}
    for part in _parts(sorted(set(ti_ids))):
        rows = session.execute(
            select(TaskInstance.id, TaskInstance.state, TaskInstance.try_number, TaskInstance.last_heartbeat_at).where(
                among(session, TaskInstance.id, [UUID(ti_id) for ti_id in part])
            )
        )
        for ti_id, state, try_number, heartbeat in rows:
            # The state is an enum or a plain string, depending on how the row was loaded.
            states[str(ti_id)] = TaskState(None if state is None else str(state), try_number, heartbeat)
    return states


def cleared_tasks(session: Session, jobs: Iterable[EndedJob]) -> dict[str, TaskState]:
    """Return the state of task instances that were cleared while these jobs ran; by job.

    Clearing gives a task instance another id, and leaves the one that runs to be found by its place in the Dag run.
    """
    by_place = {job.place: job for job in jobs}
    states: dict[str, TaskState] = {}
    for part in _parts(sorted(by_place, key=str)):
        ti = TaskInstance
        rows = session.execute(
            select(ti.dag_id, ti.task_id, ti.run_id, ti.map_index, ti.state, ti.try_number, ti.last_heartbeat_at).where(
                tuple_(ti.dag_id, ti.task_id, ti.run_id, ti.map_index).in_(part), ti.state == "restarting"
            )
        )
        for row in rows:
            states[by_place[tuple(row[:4])].id] = TaskState(str(row.state), row.try_number, row.last_heartbeat_at)
    return states


def newest_jobs(session: Session, ti_ids: Iterable[str]) -> dict[str, str]:
    """Return the id of the latest dispatch of each task instance."""
    newest: dict[str, str] = {}
    for part in _parts(sorted(set(ti_ids))):
        rows = session.execute(
            select(EdgeAgentJob.ti_id, EdgeAgentJob.id)
            .where(among(session, EdgeAgentJob.ti_id, part))
            .order_by(EdgeAgentJob.queued_at, EdgeAgentJob.id)
        )
        newest.update((ti_id, job_id) for ti_id, job_id in rows)
    return newest


def owned_among(session: Session, owner: str, job_ids: Sequence[str]) -> set[str]:
    """Return those of these jobs that exist, belong to this owner and are not reported."""
    # By ids alone: asked for the owner, too, databases may go through all of the owner's jobs instead.
    job = EdgeAgentJob
    found: set[str] = set()
    for part in _parts(job_ids):
        rows = session.execute(select(job.id, job.owner, job.reported).where(among(session, job.id, part)))
        found.update(row.id for row in rows if row.owner == owner and not row.reported)
    return found


def running_among(session: Session, job_ids: Sequence[str]) -> set[str]:
    """Return those of these jobs that an agent has started."""
    found: set[str] = set()
    for part in _parts(job_ids):
        found.update(
            session.scalars(
                select(EdgeAgentJob.id).where(
                    among(session, EdgeAgentJob.id, part), EdgeAgentJob.state == JobState.RUNNING.value
                )
            )
        )
    return found


def adopt(session: Session, ti_ids: Sequence[str], owner: str) -> dict[str, tuple[str, int]]:
    """Make this owner responsible for the latest job of each task instance.

    One that was reported is reported again: its reporter may have died before Airflow heard of it. One that was
    revoked is not adopted, because Airflow was about to queue its task again.

    :return: id and try number of the adopted job, by task instance.
    """
    newest = newest_jobs(session, ti_ids)
    adopted: dict[str, tuple[str, int]] = {}
    for part in _parts(list(newest.values())):
        rows = session.execute(
            select(EdgeAgentJob.ti_id, EdgeAgentJob.id, EdgeAgentJob.try_number, EdgeAgentJob.outcome).where(
                among(session, EdgeAgentJob.id, part)
            )
        ).all()
        for ti_id, job_id, try_number, outcome in rows:
            if outcome != Outcome.REVOKED.value:
                adopted[ti_id] = (job_id, try_number)
    for part in _parts([job_id for job_id, _ in adopted.values()]):
        _update(session, among(session, EdgeAgentJob.id, part), owner=owner, reported=False)
    return adopted


def adopt_callbacks(session: Session, owner: str, dead_owners: Sequence[str]) -> dict[str, str]:
    """Take over callbacks of owners that are gone; Airflow itself does not hand them on.

    :return: callback ids, by job.
    """
    if not dead_owners:
        return {}
    rows = session.execute(
        select(EdgeAgentJob.id, EdgeAgentJob.ti_id, EdgeAgentJob.owner)
        .where(
            EdgeAgentJob.owner.in_(dead_owners),
            EdgeAgentJob.reported.is_(False),
            EdgeAgentJob.kind == "callback",
        )
        .limit(BATCH)
    ).all()
    # Another scheduler may be doing the same: only what was changed here is ours.
    return {
        job_id: callback_id
        for job_id, callback_id, was in rows
        if _update(session, EdgeAgentJob.id == job_id, EdgeAgentJob.owner == was, owner=owner)
    }


def dead_owners(session: Session, owner: str, *, silent_seconds: float) -> list[str]:
    """Return other owners of unreported jobs whose scheduler is gone.

    An owner begins with the id of its scheduler's job, followed by a colon.
    """
    others = set(
        session.scalars(
            select(EdgeAgentJob.owner)
            .where(EdgeAgentJob.reported.is_(False), EdgeAgentJob.owner != owner, EdgeAgentJob.kind == "callback")
            .distinct()
        )
    )
    jobs = {int(number): None for other in others if (number := other.partition(":")[0]).isdigit()}
    if not jobs:
        return []
    alive = set(
        session.scalars(
            select(Job.id).where(
                Job.id.in_(list(jobs)),
                Job.state == "running",
                Job.latest_heartbeat >= datetime.now(UTC) - timedelta(seconds=silent_seconds),
            )
        )
    )
    return sorted(other for other in others if (n := other.partition(":")[0]).isdigit() and int(n) not in alive)


def revoke(session: Session, job_id: str, why: str) -> None:
    """Take a job back: end it if no agent holds it, else have the agent end it."""
    revoked = _update(
        session,
        EdgeAgentJob.id == job_id,
        EdgeAgentJob.state.in_([JobState.QUEUED.value, JobState.OFFERED.value]),
        state=JobState.FINISHED.value,
        outcome=Outcome.REVOKED.value,
        detail=why,
        finished_at=datetime.now(UTC),
        lease_until=None,
        reported=True,
    )
    if not revoked and _update(
        session,
        EdgeAgentJob.id == job_id,
        EdgeAgentJob.state.in_([JobState.ACCEPTED.value, JobState.RUNNING.value]),
        EdgeAgentJob.cancel_reason.is_(None),
        cancel_reason=why,
    ):
        announce(session, Topic.ORDERS)


def revoke_stale(session: Session, *, after: str, age_seconds: float) -> tuple[str, int]:
    """Take back queued jobs whose tasks wait no more, for instance because somebody marked them.

    Looks at one batch, in the order of ids.

    :param after: id where the batch before ended; empty: from the start.
    :return: where to go on, empty at the end; and how many were taken back.
    """
    rows = session.execute(
        select(EdgeAgentJob.id, EdgeAgentJob.ti_id, EdgeAgentJob.try_number)
        .where(
            EdgeAgentJob.state == JobState.QUEUED.value,
            EdgeAgentJob.kind == "task",
            EdgeAgentJob.id > after,
            EdgeAgentJob.queued_at < datetime.now(UTC) - timedelta(seconds=age_seconds),
        )
        .order_by(EdgeAgentJob.id)
        .limit(BATCH)
    ).all()
    ti_ids = [row.ti_id for row in rows]
    states = task_states(session, ti_ids)
    newest = newest_jobs(session, ti_ids)
    count = 0
    for job_id, ti_id, try_number in rows:
        task = states.get(ti_id)
        waits = task is not None and task.state in _WAITING_TI_STATES and task.try_number == try_number
        if waits and newest.get(ti_id) == job_id:
            continue
        count += _update(
            session,
            EdgeAgentJob.id == job_id,
            EdgeAgentJob.state == JobState.QUEUED.value,
            state=JobState.FINISHED.value,
            outcome=Outcome.REVOKED.value,
            detail="its task does not wait for it any more",
            finished_at=datetime.now(UTC),
        )
    return (rows[-1].id if len(rows) == BATCH else "", count)


@dataclass(frozen=True)
class LostJob:
    """A job taken away from an agent that is gone."""

    id: str
    agent_name: str
    requeued: bool
    workload: dict[str, Any] | None


def keep_alive(session: Session, *, silent_seconds: float, timeout_seconds: float) -> int:
    """Let Airflow know that tasks run on while their agent is away, as long as its lease holds; return how many do.

    Nobody else sends heartbeats for them then. What an agent that is there relays is left to itself.

    :param silent_seconds: how long an agent must not have been heard of.
    :param timeout_seconds: how much longer than its agent a job is waited for.
    """
    now = datetime.now(UTC)
    job, agent, ti = EdgeAgentJob, EdgeAgent, TaskInstance
    rows = session.execute(
        select(job.ti_id, job.disconnect_lease_seconds, agent.last_contact_at)
        .join(agent, agent.name == job.agent_name)
        .where(
            job.state.in_([JobState.ACCEPTED.value, JobState.RUNNING.value]),
            job.kind == "task",
            job.cancel_reason.is_(None),
            job.disconnect_lease_seconds > 0,
            agent.last_contact_at < now - timedelta(seconds=silent_seconds),
        )
    ).all()
    held = [
        UUID(row.ti_id)
        for row in rows
        if now - row.last_contact_at < timedelta(seconds=timeout_seconds + row.disconnect_lease_seconds)
    ]
    count = 0
    for part in _parts(sorted(held)):
        statement = update(ti).where(
            ti.id.in_(part), ti.state == "running", ti.last_heartbeat_at < now - KEPT_ALIVE_FOR
        )
        count += changed(
            session.execute(statement.values(last_heartbeat_at=now).execution_options(synchronize_session=False))
        )
    return count


def end_lost(session: Session, *, grace_seconds: float, timeout_seconds: float) -> list[LostJob]:
    """Deal with the jobs of agents that have not been heard of for so long.

    A relayed job is lost when its agent has ended it, ``timeout_seconds`` after its disconnect lease; others after
    ``grace_seconds``. Of those, a task that sends heartbeats to Airflow is alive and left alone. One that was accepted
    but never started goes back to its queue, if it has not been offered too often; should its agent start it after all,
    Airflow refuses one of the two starts. All others are ended as lost.
    """
    now = datetime.now(UTC)
    silent = dict(
        session.execute(
            select(EdgeAgent.name, EdgeAgent.last_contact_at).where(
                EdgeAgent.state.not_in([state.value for state in CONNECTED_STATES]),
                EdgeAgent.last_contact_at < now - timedelta(seconds=min(grace_seconds, timeout_seconds)),
            )
        )
        .tuples()
        .all()
    )
    lost: list[LostJob] = []
    for part in _parts(sorted(silent)):
        rows = session.execute(
            select(
                EdgeAgentJob.id,
                EdgeAgentJob.fence,
                EdgeAgentJob.state,
                EdgeAgentJob.kind,
                EdgeAgentJob.ti_id,
                EdgeAgentJob.agent_name,
                EdgeAgentJob.cancel_reason,
                EdgeAgentJob.disconnect_lease_seconds,
                EdgeAgentJob.workload,
            ).where(
                EdgeAgentJob.agent_name.in_(part),
                EdgeAgentJob.state.in_([JobState.ACCEPTED.value, JobState.RUNNING.value]),
            )
        ).all()
        tasks = task_states(session, [row.ti_id for row in rows if row.kind == "task"])
        for row in rows:
            task = tasks.get(row.ti_id)
            lease = row.disconnect_lease_seconds
            heard = silent[row.agent_name]
            assert heard is not None  # or it would not have been found
            if now - heard < timedelta(seconds=grace_seconds if lease is None else timeout_seconds + lease):
                continue
            beat = task.last_heartbeat_at if task and task.state == "running" and lease is None else None
            if beat is not None and now - beat < TASK_HEARTBEAT_FRESH:
                continue
            never_started = (
                row.state == JobState.ACCEPTED.value
                and row.cancel_reason is None
                and row.fence < MAX_OFFERS
                # Nothing fences a second start of a callback.
                and task is not None
                and task.state == "queued"
            )
            values: dict[str, Any] = {"lease_until": None}
            if never_started:
                values |= {"state": JobState.QUEUED.value, "agent_name": None, "accepted_at": None}
            else:
                values |= {
                    "state": JobState.FINISHED.value,
                    "outcome": Outcome.LOST.value,
                    "finished_at": now,
                    "detail": f"the agent has not been heard of since {heard:%Y-%m-%d %H:%M:%S} UTC"
                    + (", longer than its disconnect lease allows" if lease else ""),
                }
            here = (EdgeAgentJob.id == row.id, EdgeAgentJob.state == row.state, EdgeAgentJob.fence == row.fence)
            if _update(session, *here, **values):
                lost.append(LostJob(row.id, row.agent_name, requeued=never_started, workload=row.workload))
    if any(job.requeued for job in lost):
        announce(session, Topic.JOBS)
    return lost


def end_revoked(session: Session, *, after_seconds: float) -> list[LostJob]:
    """End the jobs of revoked agents that were to be cancelled, as lost: whatever the agent says now is not heard.

    :param after_seconds: how long the agent had time to end them itself.
    """
    now = datetime.now(UTC)
    job = EdgeAgentJob
    rows = session.execute(
        select(job.id, job.agent_name, job.fence, job.state, job.cancel_reason, job.workload)
        .join(EdgeAgent, EdgeAgent.name == job.agent_name)
        .where(
            EdgeAgent.revoked_at < now - timedelta(seconds=after_seconds),
            job.state.in_([JobState.ACCEPTED.value, JobState.RUNNING.value]),
            job.cancel_reason.is_not(None),
        )
        .limit(BATCH)
    ).all()
    return [
        LostJob(row.id, row.agent_name, requeued=False, workload=row.workload)
        for row in rows
        if _update(
            session,
            job.id == row.id,
            job.state == row.state,
            job.fence == row.fence,
            state=JobState.FINISHED.value,
            outcome=Outcome.LOST.value,
            finished_at=now,
            lease_until=None,
            detail=row.cancel_reason,
        )
    ]


def return_unstarted(session: Session, *, silent_seconds: float) -> int:
    """Return jobs to their queues that silent agents have accepted and never started; return how many.

    The api-server that held the agent's connection does this much sooner; here it is done for those that are gone
    together with it.
    """
    before = datetime.now(UTC) - timedelta(seconds=silent_seconds)
    names = session.scalars(
        select(EdgeAgentJob.agent_name)
        .join(EdgeAgent, EdgeAgent.name == EdgeAgentJob.agent_name)
        .where(EdgeAgentJob.state == JobState.ACCEPTED.value, EdgeAgent.last_contact_at < before)
        .distinct()
    ).all()
    count = return_accepted(session, [name for name in names if name is not None]) if names else 0
    if count:
        announce(session, Topic.JOBS)
    return count


def _update(session: Session, *where: ColumnElement[bool], **values: Any) -> int:
    result = session.execute(
        update(EdgeAgentJob).where(*where).values(**values).execution_options(synchronize_session=False)
    )
    return int(getattr(result, "rowcount", 0))


def _parts(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]
