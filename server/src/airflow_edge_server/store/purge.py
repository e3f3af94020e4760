"""Deletes what is older than its retention, a little at a time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement, and_, delete, func, or_, select, update

from airflow_edge_agent.protocol.jobs import JobState
from airflow_edge_server.store.models import EdgeAgentEvent, EdgeAgentJob, EdgeAgentLog, EdgeAgentMetric

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

BATCH_JOBS = 200
"""Most jobs in one call."""

HISTORY_SLICE = timedelta(minutes=30)
"""How much of the measurements and events one call deletes."""

BATCH_LOG_BYTES = 32 * 1024 * 1024
"""About how many bytes of log one call deletes, so that no transaction holds its locks for long."""


@dataclass(frozen=True)
class Purged:
    """What one call deleted."""

    jobs: int = 0
    logs: int = 0
    history: int = 0
    """Measurements and events of agents."""
    more: bool = False
    """Whether there is more to delete."""


def purge_batch(session: Session, *, job_days: float, log_days: float, handed_over_days: float | None = None) -> Purged:
    """Delete one batch of finished jobs and their logs, and leave the commit to the caller.

    A log goes ``log_days`` after its job finished; a job goes ``job_days`` after it finished and when its log is gone,
    because the log is found through it. One that remote logging has goes ``handed_over_days`` after it was given to it,
    if that is sooner. Rows that another scheduler is deleting are left to it.
    """
    now = datetime.now(UTC)
    finished = EdgeAgentJob.state == JobState.FINISHED.value
    old: ColumnElement[bool] = EdgeAgentJob.finished_at < now - timedelta(days=log_days)
    if handed_over_days is not None:
        handed_over = and_(
            EdgeAgentJob.hand_over == "done", EdgeAgentJob.hand_over_at <= now - timedelta(days=handed_over_days)
        )
        old = or_(old, handed_over)
    logged = session.execute(
        select(EdgeAgentJob.id, EdgeAgentJob.log_next_offset)
        .where(finished, EdgeAgentJob.log_next_offset > 0, old)
        .order_by(EdgeAgentJob.finished_at)
        .limit(BATCH_JOBS)
        .with_for_update(skip_locked=True)
    ).all()
    chosen: list[str] = []
    size = 0
    for job_id, length in logged:
        chosen.append(job_id)
        size += length
        if size >= BATCH_LOG_BYTES:
            break
    if chosen:
        session.execute(delete(EdgeAgentLog).where(EdgeAgentLog.job_id.in_(chosen)))
        session.execute(
            update(EdgeAgentJob)
            .where(EdgeAgentJob.id.in_(chosen))
            .values(log_next_offset=0, log_key=None)
            .execution_options(synchronize_session=False)
        )
    bare = list(
        session.scalars(
            select(EdgeAgentJob.id)
            .where(
                finished, EdgeAgentJob.log_next_offset == 0, EdgeAgentJob.finished_at < now - timedelta(days=job_days)
            )
            .order_by(EdgeAgentJob.finished_at)
            .limit(BATCH_JOBS)
            .with_for_update(skip_locked=True)
        )
    )
    if bare:
        session.execute(delete(EdgeAgentJob).where(EdgeAgentJob.id.in_(bare)))
    return Purged(
        jobs=len(bare),
        logs=len(chosen),
        more=len(bare) == BATCH_JOBS or len(logged) == BATCH_JOBS or len(chosen) < len(logged),
    )


def purge_history(session: Session, *, metric_days: float, event_days: float) -> Purged:
    """Delete a slice of the measurements and of the events of agents that are older than that many days."""
    now = datetime.now(UTC)
    count, more = 0, False
    for table, days in ((EdgeAgentMetric, metric_days), (EdgeAgentEvent, event_days)):
        until = now - timedelta(days=days)
        oldest = session.scalar(select(func.min(table.at)))
        if oldest is None or oldest >= until:
            continue
        end = min(until, oldest + HISTORY_SLICE)
        result = session.execute(delete(table).where(table.at < end))
        count += int(getattr(result, "rowcount", 0))
        more |= end < until
    return Purged(history=count, more=more)
