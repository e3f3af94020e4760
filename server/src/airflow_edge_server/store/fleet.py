"""What administrators look at: questions about the whole fleet, a bounded number of them for any number of agents."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, String, and_, case, cast, func, not_, or_, select
from sqlalchemy.engine import Row
from sqlalchemy.orm import Session

from airflow_edge_agent.protocol.enrolment import permitted
from airflow_edge_agent.protocol.jobs import HELD_STATES, JobState
from airflow_edge_agent.protocol.states import DRAINED_BY, AgentState
from airflow_edge_server.domain.dispatch import KIND_ORDER
from airflow_edge_server.domain.fleet import Place, Server, Serving, survey
from airflow_edge_server.store.models import EdgeAgent, EdgeAgentEvent, EdgeAgentJob, EdgeAgentMetric

Teams = frozenset[str] | None
"""Whose agents and jobs are meant, beside those of no team; ``None``: everybody's."""

WAITING = (JobState.QUEUED,)
AT_WORK = (JobState.OFFERED, JobState.ACCEPTED, JobState.RUNNING)

_METRICS = EdgeAgent.metrics


def _figure(name: str) -> ColumnElement[Any]:
    figure: ColumnElement[Any] = _METRICS[name].as_float()
    return figure


def _share(used: str, total: str) -> ColumnElement[Any]:
    return _figure(used) / func.nullif(_figure(total), 0)


AGENT_ORDERS: dict[str, ColumnElement[Any]] = {
    "name": EdgeAgent.name.expression,
    "state": EdgeAgent.state.expression,
    "hostname": EdgeAgent.hostname.expression,
    "slots_used": EdgeAgent.slots_used.expression,
    "slots_total": EdgeAgent.slots_total.expression,
    "last_contact_at": EdgeAgent.last_contact_at.expression,
    "connected_at": EdgeAgent.connected_at.expression,
    "problem": EdgeAgent.problem.expression,
    "cpu_percent": _figure("cpu_percent"),
    "memory_percent": _share("memory_used_bytes", "memory_total_bytes"),
    "disk_percent": _share("state_disk_used_bytes", "state_disk_total_bytes"),
}
"""By what agents can be sorted."""


@dataclass(frozen=True, slots=True)
class AgentFilter:
    """Which agents are meant; what is ``None`` or empty does not matter."""

    name: str | None = None
    """A pattern with ``*`` and ``?``; upper and lower case are the same."""
    queue: str | None = None
    states: Collection[AgentState] = ()
    troubled: bool | None = None
    """Whether the agent reports a problem."""
    teams: Teams = None


def of_teams(column: Any, teams: Teams) -> list[ColumnElement[bool]]:
    """Return what restricts a query to what is of these teams or of none."""
    return [] if teams is None else [or_(column.is_(None), column.in_(sorted(teams)))]


def find_agents(
    session: Session, wanted: AgentFilter, *, order_by: str, descending: bool, limit: int, offset: int
) -> tuple[list[EdgeAgent], int]:
    """Return a page of agents, and how many match."""
    where = _matching(wanted)
    total = session.scalar(select(func.count()).select_from(EdgeAgent).where(*where)) or 0
    key = AGENT_ORDERS[order_by]
    # Where databases put what is not known differs: here it is last.
    query = select(EdgeAgent).where(*where).order_by(key.is_(None), key.desc() if descending else key, EdgeAgent.name)
    return list(session.scalars(query.limit(limit).offset(offset))), total


def find_agent_names(session: Session, wanted: AgentFilter, *, limit: int) -> list[str]:
    """Return the names of agents that match."""
    return list(session.scalars(select(EdgeAgent.name).where(*_matching(wanted)).order_by(EdgeAgent.name).limit(limit)))


def _matching(wanted: AgentFilter) -> list[ColumnElement[bool]]:
    where = of_teams(EdgeAgent.team_name, wanted.teams)
    if wanted.name:
        where.append(EdgeAgent.name.ilike(_like(wanted.name), escape="\\"))
    if wanted.queue:
        where.append(_serves(wanted.queue))
    if wanted.states:
        where.append(EdgeAgent.state.in_([state.value for state in wanted.states]))
    if wanted.troubled is not None:
        where.append(_troubled() if wanted.troubled else not_(_troubled()))
    return where


def _troubled() -> ColumnElement[bool]:
    problem = EdgeAgent.problem
    # Both halves are known for each row, so that the contrary can be asked for.
    return and_(problem.is_not(None), not_(func.coalesce(problem, "").startswith(DRAINED_BY, autoescape=True)))


def _like(glob: str) -> str:
    escaped = _escaped(glob)
    return escaped.replace("*", "%").replace("?", "_")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _serves(queue: str) -> ColumnElement[bool]:
    # Databases differ in what they can ask of JSON, but all can show it as text; some keep it as it was written, some
    # write it anew.
    texts = {json.dumps(queue), json.dumps(queue, ensure_ascii=False)}
    column = cast(EdgeAgent.queues, String(65_535))
    return or_(*(column.like(f"%{_escaped(text)}%", escape="\\") for text in sorted(texts)))


def count_held(session: Session, names: Sequence[str]) -> dict[str, int]:
    """Return how many jobs that have not ended these agents have been given."""
    job = EdgeAgentJob
    rows = session.execute(
        select(job.agent_name, func.count())
        .where(job.agent_name.in_(names), job.state.in_(HELD_STATES))
        .group_by(job.agent_name)
    )
    return {name: count for name, count in rows if name is not None}


@dataclass(frozen=True, slots=True)
class Left:
    """What an agent works on while it is away, as far as the server knows."""

    running: int
    lease_seconds: float | None
    """The shortest disconnect lease among these jobs; ``None``: none of them has one."""


def read_left(session: Session, names: Collection[str]) -> dict[str, Left]:
    """Return what these agents have accepted and not ended, by name; who has nothing is left out."""
    job = EdgeAgentJob
    lease = case((job.disconnect_lease_seconds > 0, job.disconnect_lease_seconds))
    rows = session.execute(
        select(job.agent_name, func.count(), func.min(lease))
        .where(job.agent_name.in_(names), job.state.in_([JobState.ACCEPTED.value, JobState.RUNNING.value]))
        .group_by(job.agent_name)
    )
    return {name: Left(running, None if least is None else float(least)) for name, running, least in rows if name}


def read_metrics(session: Session, name: str, *, since: datetime) -> list[EdgeAgentMetric]:
    """Return an agent's measurements, oldest first."""
    metric = EdgeAgentMetric
    return list(
        session.scalars(select(metric).where(metric.agent_name == name, metric.at >= since).order_by(metric.at))
    )


def read_events(session: Session, name: str, *, before: int | None, limit: int) -> list[EdgeAgentEvent]:
    """Return an agent's events, newest first."""
    event = EdgeAgentEvent
    query = select(event).where(event.agent_name == name)
    if before is not None:
        query = query.where(event.id < before)
    return list(session.scalars(query.order_by(event.id.desc()).limit(limit)))


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs are meant; what is ``None`` or empty does not matter."""

    states: Collection[JobState] = ()
    queue: str | None = None
    agent: str | None = None
    """A name, or a pattern with ``*`` and ``?``, for which the database decides whether case matters."""
    dag_id: str | None = None
    ids: Collection[str] = ()
    teams: Teams = None


_JOB_COLUMNS = [
    column
    for column in EdgeAgentJob.__table__.columns
    # Large, and nobody who looks at a list reads it.
    if column.name not in {"workload", "limits", "log_key", "owner", "reported"}
]


def find_jobs(session: Session, wanted: JobFilter, *, limit: int, offset: int) -> tuple[Sequence[Row[Any]], int]:
    """Return a page of jobs, and how many match.

    Queued ones come first, as they are served, if only those are wanted; else the newest come first.
    """
    job = EdgeAgentJob
    where = of_teams(job.team_name, wanted.teams)
    if wanted.states:
        where.append(job.state.in_([state.value for state in wanted.states]))
    if wanted.ids:
        where.append(job.id.in_(wanted.ids))
    if wanted.agent and set(wanted.agent) & set("*?"):
        where.append(job.agent_name.like(_like(wanted.agent), escape="\\"))
    elif wanted.agent:
        where.append(job.agent_name == wanted.agent)
    for column, value in ((job.queue, wanted.queue), (job.dag_id, wanted.dag_id)):
        if value:
            where.append(column == value)
    total = session.scalar(select(func.count()).select_from(job).where(*where)) or 0
    query: Select[Any] = select(*_JOB_COLUMNS).where(*where)
    if set(wanted.states) == {JobState.QUEUED}:
        kind = case(KIND_ORDER, value=job.kind, else_=len(KIND_ORDER))
        query = query.order_by(kind, job.priority_weight.desc(), job.queued_at, job.id)
    else:
        query = query.order_by(job.queued_at.desc(), job.id)
    return session.execute(query.limit(limit).offset(offset)).all(), total


def survey_fleet(session: Session, teams: Teams = None) -> dict[Place, Serving]:
    """Count agents by the queues they serve."""
    agent = EdgeAgent
    rows = session.execute(
        select(
            agent.queues,
            agent.granted_queues,
            agent.team_name,
            agent.state,
            agent.problem,
            agent.slots_total,
            agent.slots_used,
            agent.drain_wanted,
        ).where(*of_teams(agent.team_name, teams))
    )
    return survey(
        (
            permitted(row.queues or (), row.granted_queues),
            row.team_name,
            Server(
                AgentState(row.state),
                row.problem,
                max(row.slots_total - row.slots_used, 0),
                row.slots_total,
                drained=bool(row.drain_wanted),
            ),
        )
        for row in rows
    )


@dataclass(frozen=True, slots=True)
class QueueLoad:
    """What is in a queue."""

    queued: int = 0
    running: int = 0
    oldest_queued_at: datetime | None = None


def read_queues(session: Session, teams: Teams = None) -> dict[Place, QueueLoad]:
    """Return what is in each queue that has jobs which have not ended."""
    job = EdgeAgentJob
    waiting = job.state == JobState.QUEUED.value
    rows = session.execute(
        select(
            job.queue,
            job.team_name,
            func.sum(case((waiting, 1), else_=0)),
            func.sum(case((waiting, 0), else_=1)),
            func.min(case((waiting, job.queued_at))),
        )
        .where(job.state.in_([*WAITING, *AT_WORK]), *of_teams(job.team_name, teams))
        .group_by(job.queue, job.team_name)
    )
    return {
        (queue, team): QueueLoad(int(queued), int(running), oldest) for queue, team, queued, running, oldest in rows
    }


@dataclass(frozen=True, slots=True)
class FleetCount:
    """Agents in one state."""

    state: AgentState
    agents: int
    slots_used: int
    slots_total: int


def count_fleet(session: Session, teams: Teams = None) -> list[FleetCount]:
    """Return how many agents and slots there are in each state."""
    agent = EdgeAgent
    rows = session.execute(
        select(agent.state, func.count(), func.sum(agent.slots_used), func.sum(agent.slots_total))
        .where(*of_teams(agent.team_name, teams))
        .group_by(agent.state)
    )
    return [FleetCount(AgentState(state), count, int(used or 0), int(total or 0)) for state, count, used, total in rows]


def count_finished(session: Session, *, since: datetime, teams: Teams = None) -> dict[str, int]:
    """Return how many jobs have ended since then, by outcome."""
    job = EdgeAgentJob
    rows = session.execute(
        select(job.outcome, func.count())
        .where(job.state == JobState.FINISHED.value, job.finished_at >= since, *of_teams(job.team_name, teams))
        .group_by(job.outcome)
    )
    return {outcome: count for outcome, count in rows if outcome is not None}


def find_troubled(session: Session, *, limit: int, teams: Teams = None) -> tuple[Sequence[Any], int]:
    """Return agents that report a problem or have fallen silent, and how many there are."""
    agent = EdgeAgent
    where = [
        or_(
            agent.state == AgentState.UNKNOWN.value,
            and_(_troubled(), agent.state.not_in([AgentState.OFFLINE.value])),
        ),
        *of_teams(agent.team_name, teams),
    ]
    total = session.scalar(select(func.count()).select_from(agent).where(*where)) or 0
    query = select(agent.name, agent.state, agent.problem, agent.last_contact_at).where(*where).order_by(agent.name)
    return session.execute(query.limit(limit)).all(), total
