"""What an agent that was revoked may still do: finish the jobs that it holds, for a while, and nothing else.

Nothing says so by itself: it is read from what is there. A credential that has ended is let in again only while all of
this is so:

- it ended by the revocation of its agent, not by being replaced, nor by its age;
- the agent still holds a job that nobody wants to be cancelled, or the log of one that has ended since is on its way;
- the revocation is not longer ago than ``[edge_agent] revoke_grace``.

With ``--jobs cancel`` all jobs are to be cancelled, so nothing is left to be let in for.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session

from airflow_edge_agent.protocol.jobs import JobState
from airflow_edge_server.domain.enrolment import Machine, is_elsewhere
from airflow_edge_server.store.among import among
from airflow_edge_server.store.models import EdgeAgent, EdgeAgentCredential, EdgeAgentJob

LOG_SECONDS = 600.0
"""How long after its end the log of a job may come in."""

OVERDUE = "the agent was revoked, and the time that its jobs had to finish is over"

_HELD = (JobState.ACCEPTED.value, JobState.RUNNING.value)


def find_finishing(
    session: Session, credential_id: str, *, grace_seconds: float, now: datetime
) -> EdgeAgentCredential | None:
    """Return the credential of a revoked agent that still finishes jobs; ``None``: it is nothing of that kind.

    :param grace_seconds: how long after its revocation it may.
    """
    credential = EdgeAgentCredential
    query = _finishing(select(credential), grace_seconds, now).where(credential.id == credential_id)
    return session.scalars(query).one_or_none()


def is_copy(session: Session, credential_id: str, machine: Machine) -> bool:
    """Tell whether a credential that was revoked is used elsewhere than on the machine that holds its jobs."""
    found = session.get(EdgeAgentCredential, credential_id)
    if found is None or found.revoked_at is None:
        return False
    return is_elsewhere(Machine(found.agent_id, found.boot_id, found.hostname), machine)


def finishing_among(
    session: Session, credential_ids: Sequence[str], *, grace_seconds: float, now: datetime
) -> frozenset[str]:
    """Return those of the credentials whose revoked agents still finish jobs."""
    if not credential_ids:
        return frozenset()
    credential = EdgeAgentCredential
    query = _finishing(select(credential.id), grace_seconds, now).where(among(session, credential.id, credential_ids))
    return frozenset(session.scalars(query))


def cancel_overdue(session: Session, *, grace_seconds: float, now: datetime) -> int:
    """Have the jobs cancelled that revoked agents have not finished in time; return how many."""
    job = EdgeAgentJob
    overdue = select(EdgeAgent.name).where(EdgeAgent.revoked_at <= now - timedelta(seconds=grace_seconds))
    result = session.execute(
        update(job)
        .where(job.agent_name.in_(overdue), job.state.in_(_HELD), job.cancel_reason.is_(None))
        .values(cancel_reason=OVERDUE)
        .execution_options(synchronize_session=False)
    )
    return int(getattr(result, "rowcount", 0))


def _finishing(query: Any, grace_seconds: float, now: datetime) -> Any:
    agent, credential = EdgeAgent, EdgeAgentCredential
    return query.join(agent, agent.name == credential.agent_name).where(
        # One that was replaced ended before.
        credential.revoked_at >= agent.revoked_at,
        agent.revoked_at > now - timedelta(seconds=grace_seconds),
        or_(credential.expires_at.is_(None), credential.expires_at > now),
        _has_work(now),
    )


def _has_work(now: datetime) -> ColumnElement[bool]:
    agent, job = EdgeAgent, EdgeAgentJob
    log_comes = and_(
        job.state == JobState.FINISHED.value,
        job.finished_at >= agent.revoked_at,
        job.finished_at > now - timedelta(seconds=LOG_SECONDS),
        job.log_next_offset < job.log_bytes,
    )
    work = or_(job.state.in_(_HELD), log_comes)
    return select(job.id).where(job.agent_name == agent.name, job.cancel_reason.is_(None), work).exists()
