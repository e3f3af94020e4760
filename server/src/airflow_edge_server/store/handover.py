"""Which logs are to be handed over to remote logging, and who does it.

A log is one try's: all dispatches that have the same log path. It is claimed with the first of them, for a time, so
that one process works on it; whoever dies over it is succeeded by another when that time is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from airflow.models.taskinstance import TaskInstance
from sqlalchemy import Select, or_, select, update
from sqlalchemy.orm import Session

from airflow_edge_agent.protocol.jobs import JobState
from airflow_edge_server.store.models import EdgeAgentJob
from airflow_edge_server.store.transaction import locked

CLAIM = timedelta(minutes=10)
"""How long one process has for one log."""

LOOK_AGAIN = timedelta(seconds=15)
"""When a log is looked at again that is not complete, or whose task has not ended."""

LATE = timedelta(days=1)
"""How long after its job's end the rest of a log is waited for. Its agent may be away."""

MOST_TRIES = 30

LONGEST_PAUSE = timedelta(hours=1)

MOST_BYTES = 256 * 2**20
"""Longer logs stay where they are: remote log handlers take a log in one piece, in memory."""

_GOES_ON = frozenset(
    {"running", "deferred", "queued", "scheduled", "restarting", "up_for_reschedule", "awaiting_input"}
)
"""States of a task instance whose try goes on, or may."""

Verdict = Literal["done", "none", "failed"]


@dataclass(frozen=True)
class DueLog:
    """A log that is ours to hand over now."""

    key: str
    path: str
    """Relative to Airflow's log folder."""
    ti_id: str
    job_ids: tuple[str, ...]
    """In the order in which their logs follow each other."""
    tries: int
    """How many there were before."""


@dataclass(frozen=True)
class NothingDue:
    """No log was claimed."""

    more: bool
    """Whether to ask again at once."""


def waits(session: Session, now: datetime) -> bool:
    """Tell whether there is a job whose log has to be looked at."""
    return session.scalar(_candidates(now)) is not None


def claim(session: Session, now: datetime) -> DueLog | NothingDue:
    """Claim the log that has waited longest, or put off what cannot be handed over yet.

    Leaves the commit to the caller.
    """
    job = EdgeAgentJob
    found = session.scalar(_candidates(now))
    if found is None:
        return NothingDue(more=False)
    row = session.execute(select(job.log_key, job.kind).where(job.id == found)).one_or_none()
    if row is None:
        return NothingDue(more=True)
    if row.log_key is None or row.kind != "task":
        _settle(session, [found], "none", now)
        return NothingDue(more=True)
    siblings = _siblings(session, row.log_key)
    if not siblings:
        return NothingDue(more=True)
    first = siblings[0]
    finished = [row for row in siblings if row.state == JobState.FINISHED]
    ids = [row.id for row in finished]
    if first.hand_over_at is not None and first.hand_over is None and first.hand_over_at > now:
        _put_off(session, [found], first.hand_over_at)
        return NothingDue(more=True)
    size = sum(row.log_next_offset for row in finished)
    if _goes_on(session, first.ti_id, siblings, now):
        _put_off(session, ids, now + LOOK_AGAIN)
    elif size == 0:
        _settle(session, ids, "none", now)
    elif size > MOST_BYTES:
        _settle(session, ids, "failed", now)
    else:
        path = (first.workload or {}).get("log_path")
        if not isinstance(path, str):
            _settle(session, ids, "none", now)
            return NothingDue(more=True)
        # Counted before the work: it may have arrived although its process died before it could note that.
        tries = max(row.hand_over_tries for row in siblings)
        _put_off(session, ids, now + CLAIM, hand_over_tries=tries + 1)
        with_log = tuple(row.id for row in finished if row.log_next_offset)
        return DueLog(row.log_key, path, first.ti_id, with_log, tries)
    return NothingDue(more=True)


def settle(session: Session, due: DueLog, verdict: Verdict, now: datetime) -> None:
    """Note what has become of a log."""
    _settle(session, _finished_ids(session, due), verdict, now)


def put_off(session: Session, due: DueLog, now: datetime) -> bool:
    """Try again later, ever later; return whether there will be another time."""
    tries = due.tries + 1
    ids = _finished_ids(session, due)
    if tries >= MOST_TRIES:
        _settle(session, ids, "failed", now)
        return False
    _put_off(session, ids, now + min(LONGEST_PAUSE, LOOK_AGAIN * 2 ** min(tries, 10)))
    return True


def _candidates(now: datetime) -> Select[str]:
    job = EdgeAgentJob
    return (
        select(job.id)
        .where(
            job.hand_over.is_(None),
            job.finished_at.is_not(None),
            job.state == JobState.FINISHED.value,
            or_(job.hand_over_at.is_(None), job.hand_over_at <= now),
        )
        .order_by(job.finished_at)
        .limit(1)
    )


def _siblings(session: Session, key: str) -> Sequence[Any]:
    job = EdgeAgentJob
    return session.execute(
        locked(
            select(
                job.id, job.state, job.ti_id, job.workload, job.log_bytes, job.log_next_offset, job.finished_at,
                job.hand_over, job.hand_over_at, job.hand_over_tries,
            )
            .where(job.log_key == key)
            .order_by(job.queued_at, job.id),
            session,
        )
    ).all()  # fmt: skip


def _goes_on(session: Session, ti_id: str, siblings: Sequence[Any], now: datetime) -> bool:
    """Tell whether more of the log may come."""
    for row in siblings:
        if row.state != JobState.FINISHED:
            return True
        complete = row.log_bytes is not None and row.log_next_offset >= row.log_bytes
        if not complete and now - row.finished_at < LATE:
            return True
    # A further try has another id: then none is found, or one that belongs to it.
    state = session.scalar(select(TaskInstance.state).where(TaskInstance.id == UUID(ti_id)))
    return state in _GOES_ON


def _finished_ids(session: Session, due: DueLog) -> list[str]:
    job = EdgeAgentJob
    return list(session.scalars(select(job.id).where(job.log_key == due.key, job.state == JobState.FINISHED.value)))


def _put_off(session: Session, ids: Sequence[str], until: datetime, **values: int) -> None:
    session.execute(
        update(EdgeAgentJob)
        .where(EdgeAgentJob.id.in_(ids))
        .values(hand_over_at=until, **values)
        .execution_options(synchronize_session=False)
    )


def _settle(session: Session, ids: Sequence[str], verdict: Verdict, now: datetime) -> None:
    session.execute(
        update(EdgeAgentJob)
        .where(EdgeAgentJob.id.in_(ids))
        .values(hand_over=verdict, hand_over_at=now)
        .execution_options(synchronize_session=False)
    )
