"""What the server wants of an agent otherwise than its own configuration says: slots, queues, no jobs for now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import delete, select, update

from airflow_edge_agent.protocol.frames import Controls
from airflow_edge_agent.protocol.jobs import HELD_STATES, JobState, Outcome
from airflow_edge_server.store import agents
from airflow_edge_server.store.models import (
    EdgeAgent,
    EdgeAgentCredential,
    EdgeAgentEvent,
    EdgeAgentJob,
    EdgeAgentMetric,
)
from airflow_edge_server.store.wakeup import Topic, announce

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

MAX_QUEUES = 100


def controls_of(agent: EdgeAgent) -> Controls | None:
    """Return what the agent has to be told; ``None``: nothing was ever wanted of it."""
    if not agent.controls_revision:
        return None
    return Controls(
        revision=agent.controls_revision,
        slots=agent.slots_wanted,
        queues_added=agent.queues_added or [],
        queues_removed=agent.queues_removed or [],
        drain=bool(agent.drain_wanted),
    )


def effective_queues(agent: EdgeAgent, configured: Iterable[str]) -> list[str]:
    """Return the queues that an agent serves, given those it is configured with."""
    return sorted({*configured, *(agent.queues_added or ())} - {*(agent.queues_removed or ())})


def touch_controls(session: Session, agent: EdgeAgent) -> None:
    """Let the agent be told: something of this has changed."""
    agent.controls_revision += 1
    session.flush()
    announce(session, Topic.ORDERS)


def change_queues(agent: EdgeAgent, add: Sequence[str], remove: Sequence[str], *, reset: bool) -> bool:
    """Change what is added to and removed from the agent's own queues; return whether that is a change.

    :raises ValueError: when that would be too many.
    """
    added = set() if reset else set(agent.queues_added or ())
    removed = set() if reset else set(agent.queues_removed or ())
    before = (sorted(agent.queues_added or ()), sorted(agent.queues_removed or ()))
    added = (added | set(add)) - set(remove)
    removed = (removed | set(remove)) - set(add)
    if len(added) > MAX_QUEUES or len(removed) > MAX_QUEUES:
        raise ValueError(f"more than {MAX_QUEUES} queues would be added or removed")
    agent.queues_added, agent.queues_removed = sorted(added) or None, sorted(removed) or None
    return before != (sorted(added), sorted(removed))


def end_due_maintenance(session: Session, now: datetime) -> list[str]:
    """Take back wishes for maintenance whose time is over; return the agents' names."""
    due = session.scalars(
        select(EdgeAgent.name).where(EdgeAgent.maintenance_wanted.is_(True), EdgeAgent.maintenance_until <= now)
    ).all()
    for name in due:
        agents.set_maintenance(session, name, on=False, comment=None, by="its own end")
    return list(due)


def until_of(for_seconds: float | None) -> datetime | None:
    """Return when something ends that lasts so long from now on."""
    return None if for_seconds is None else datetime.now(UTC) + timedelta(seconds=for_seconds)


def count_held(session: Session, name: str) -> int:
    """Return how many jobs that have not ended the agent has been given."""
    job = EdgeAgentJob
    return len(
        session.scalars(select(job.id).where(job.agent_name == name, job.state.in_(HELD_STATES)).limit(1_000)).all()
    )


def delete_agent(session: Session, agent: EdgeAgent) -> None:
    """Forget an agent, with its credentials and its past. Its finished jobs and their logs stay."""
    for table in (EdgeAgentCredential, EdgeAgentMetric, EdgeAgentEvent):
        session.execute(delete(table).where(table.agent_name == agent.name))
    session.delete(agent)
    session.flush()
    announce(session, Topic.ORDERS)


def cancel_job(session: Session, job_id: str, reason: str) -> bool:
    """End a job: at once if no agent holds it, else as soon as its agent has obeyed. Airflow takes the try for failed.

    :return: ``False``: there is no such job, it has ended, or is being ended already.
    """
    job = EdgeAgentJob
    ended = session.execute(
        update(job)
        .where(job.id == job_id, job.state.in_([JobState.QUEUED.value, JobState.OFFERED.value]))
        .values(
            state=JobState.FINISHED.value,
            outcome=Outcome.REVOKED.value,
            detail=reason,
            cancel_reason=reason,
            lease_until=None,
            finished_at=datetime.now(UTC),
        )
        .execution_options(synchronize_session=False)
    )
    told = session.execute(
        update(job)
        .where(
            job.id == job_id,
            job.state.in_([JobState.ACCEPTED.value, JobState.RUNNING.value]),
            job.cancel_reason.is_(None),
        )
        .values(cancel_reason=reason)
        .execution_options(synchronize_session=False)
    )
    done = bool(getattr(ended, "rowcount", 0) or getattr(told, "rowcount", 0))
    if done:
        announce(session, Topic.ORDERS)
    return done
