"""What waiting agents have to be told beside offers, read for all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from airflow_edge_agent.protocol.frames import Cancel, Controls, Maintenance
from airflow_edge_agent.protocol.jobs import JobState
from airflow_edge_agent.protocol.states import AgentState
from airflow_edge_server.domain.agents import maintenance_order
from airflow_edge_server.domain.enrolment import is_rotation_due
from airflow_edge_server.store.among import among
from airflow_edge_server.store.controls import controls_of
from airflow_edge_server.store.dispatch import Room, read_rooms
from airflow_edge_server.store.enrolment import valid_among
from airflow_edge_server.store.finishing import finishing_among
from airflow_edge_server.store.models import EdgeAgent, EdgeAgentJob

MAX_CANCELS_PER_POLL = 100


@dataclass(frozen=True, slots=True)
class Notices:
    """What there is to tell, by agent."""

    rooms: dict[str, Room]
    cancels: dict[str, list[Cancel]]
    maintenance: dict[str, Maintenance]
    controls: dict[str, Controls]
    """Of agents that go by an older one, or by none."""
    revoked_credentials: frozenset[str]
    """Ids of credentials that are not valid any more, nor of revoked agents that still finish jobs."""
    aged_credentials: frozenset[str]
    """Ids of credentials that are to be replaced."""


def read_notices(
    session: Session, names: Sequence[str], credential_ids: Sequence[str], *, revoke_grace_seconds: float
) -> Notices:
    """Read what these agents have to be told.

    :param revoke_grace_seconds: how long an agent that was revoked may finish its jobs.
    """
    job, agent = EdgeAgentJob, EdgeAgent
    cancels: dict[str, list[Cancel]] = {}
    for row in session.execute(
        select(job.id, job.agent_name, job.fence, job.cancel_reason).where(
            among(session, job.agent_name, names),
            job.state.in_([JobState.ACCEPTED, JobState.RUNNING]),
            job.cancel_reason.is_not(None),
        )
    ):
        told = cancels.setdefault(row.agent_name, [])
        if len(told) < MAX_CANCELS_PER_POLL:
            told.append(Cancel(job_id=row.id, fence=row.fence, reason=row.cancel_reason[:2_000]))
    maintenance = {}
    for name, state, wanted, comment, by, since in session.execute(
        select(
            agent.name,
            agent.state,
            agent.maintenance_wanted,
            agent.maintenance_comment,
            agent.maintenance_by,
            agent.maintenance_since,
        ).where(among(session, agent.name, names), agent.maintenance_wanted.is_not(None))
    ):
        order = maintenance_order(AgentState(state), wanted=wanted)
        if order is not None:
            comment_sent = None if comment is None else comment[:2_000]
            maintenance[name] = Maintenance(on=order, comment=comment_sent, by=by, since=since)
    outdated = select(agent).where(among(session, agent.name, names), agent.controls_seen != agent.controls_revision)
    controls = {row.name: found for row in session.scalars(outdated) if (found := controls_of(row)) is not None}
    now = datetime.now(UTC)
    valid = valid_among(session, credential_ids, now)
    ended = frozenset(credential_ids) - frozenset(row.id for row in valid)
    finishing = finishing_among(session, sorted(ended), grace_seconds=revoke_grace_seconds, now=now)
    return Notices(
        rooms=read_rooms(session, names),
        cancels=cancels,
        maintenance=maintenance,
        controls=controls,
        revoked_credentials=ended - finishing,
        aged_credentials=frozenset(row.id for row in valid if is_rotation_due(row.created_at, row.expires_at, now)),
    )
