"""What there is to see, as the admin API and the command line show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast

from sqlalchemy.orm import Session

from airflow_edge_agent.protocol.enrolment import permitted
from airflow_edge_agent.protocol.jobs import JobState, Outcome
from airflow_edge_agent.protocol.states import CONNECTED_STATES, IN_MAINTENANCE, AgentState, is_drain
from airflow_edge_server import __version__, compat
from airflow_edge_server.admin import models
from airflow_edge_server.domain.fleet import Serving, percent, queue_warning, why_waiting
from airflow_edge_server.domain.versions import version_warning
from airflow_edge_server.store import fleet
from airflow_edge_server.store.models import EdgeAgent, EdgeAgentMetric

MOST_PROBLEMS = 20


class NotFoundError(LookupError):
    """There is no such thing. The message says which, and how to find one."""


def server_versions() -> models.ServerVersions:
    """Return what software answers."""
    return models.ServerVersions(airflow_edge_server=__version__, airflow=compat.airflow_version())


def list_agents(
    session: Session, wanted: fleet.AgentFilter, *, order_by: str = "name", limit: int = 100, offset: int = 0
) -> models.AgentList:
    """Return a page of agents.

    :param order_by: one of :data:`~airflow_edge_server.store.fleet.AGENT_ORDERS`, after ``-`` from greatest to least.
    """
    key, descending = order_by.removeprefix("-"), order_by.startswith("-")
    agents, total = fleet.find_agents(session, wanted, order_by=key, descending=descending, limit=limit, offset=offset)
    held = fleet.count_held(session, [agent.name for agent in agents])
    away = _away(session, agents)
    items = [models.AgentItem(**_agent(agent, held.get(agent.name, 0), away.get(agent.name))) for agent in agents]
    return models.AgentList(items=items, total=total)


def show_agent(session: Session, name: str, teams: fleet.Teams = None) -> models.AgentDetail:
    """Return one agent.

    :raises NotFoundError: when there is none of that name among those of these teams.
    """
    agent = known_agent(session, name, teams)
    held = fleet.count_held(session, [name])
    return models.AgentDetail(
        **_agent(agent, held.get(name, 0), _away(session, [agent]).get(name)),
        agent_id=agent.agent_id,
        boot_id=agent.boot_id,
        configuration=agent.configuration,
    )


def known_agent(session: Session, name: str, teams: fleet.Teams = None) -> EdgeAgent:
    """Return the row of an agent.

    :raises NotFoundError: when there is none of that name among those of these teams.
    """
    agent = session.get(EdgeAgent, name)
    if agent is None or not is_of(agent.team_name, teams):
        raise NotFoundError(f"there is no agent called {name!r}")
    return agent


def is_of(team: str | None, teams: fleet.Teams) -> bool:
    """Tell whether what belongs to this team is among what is of these teams or of none."""
    return teams is None or team is None or team in teams


def _away(session: Session, agents: Sequence[EdgeAgent]) -> dict[str, models.AwayView]:
    """Return what is known of those that are not connected and still matter, by name."""
    heard = {agent.name: agent.last_contact_at for agent in agents if AgentState(agent.state) not in CONNECTED_STATES}
    left = fleet.read_left(session, heard) if heard else {}
    found = {}
    for agent in agents:
        since = heard.get(agent.name)
        work = left.get(agent.name, fleet.Left(0, None))
        waiting = _waiting(agent)
        if since is None or not (work.running or waiting or agent.state == AgentState.UNKNOWN):
            continue
        lease = None if work.lease_seconds is None else since + timedelta(seconds=work.lease_seconds)
        found[agent.name] = models.AwayView(
            since=since, lease_until=lease, running=work.running, results_waiting=waiting
        )
    return found


def _waiting(agent: EdgeAgent) -> int | None:
    told = (agent.metrics or {}).get("results_waiting")
    return told if isinstance(told, int) else None


def _agent(agent: EdgeAgent, held: int, away: models.AwayView | None) -> dict[str, Any]:
    state = AgentState(agent.state)
    served = permitted(agent.queues or (), agent.granted_queues)
    versions = {key: str(value) for key, value in (agent.versions or {}).items() if value}
    return {
        "name": agent.name,
        "team": agent.team_name,
        "state": state,
        "connected": state in CONNECTED_STATES,
        "problem": None if is_drain(agent.problem) else agent.problem,
        "drained": agent.problem if is_drain(agent.problem) else None,
        "warnings": _warnings(versions),
        "queues": served,
        "refused_queues": sorted(set(agent.queues or ()) - set(served)),
        "granted_queues": agent.granted_queues,
        "enrolled_at": agent.enrolled_at,
        "revoked_at": agent.revoked_at,
        "slots_used": agent.slots_used,
        "slots_total": agent.slots_total,
        "jobs": held,
        "last_contact_at": agent.last_contact_at,
        "connected_at": agent.connected_at,
        "first_seen_at": agent.first_seen_at,
        "hostname": agent.hostname,
        "versions": versions,
        "metrics": _metrics(agent.metrics or {}),
        "maintenance": _maintenance(agent, state),
        "away": away,
        "results_waiting": _waiting(agent),
        "carrier": _carrier(agent, state),
        "overrides": models.Overrides(
            slots=agent.slots_wanted,
            queues_added=agent.queues_added or [],
            queues_removed=agent.queues_removed or [],
            drain=bool(agent.drain_wanted),
        ),
    }


def _warnings(versions: Mapping[str, str]) -> list[str]:
    warning = version_warning(versions, compat.airflow_version())
    warnings = [] if warning is None else [warning]
    found = versions.get("agent")
    if found is not None and found != __version__:
        warnings.append(f"it is airflow-edge-agent {found}, the server airflow-edge-server {__version__}")
    return warnings


def _metrics(metrics: Mapping[str, Any]) -> models.HostMetrics:
    figures = {
        key: metrics.get(key)
        for key in (
            "cpu_percent",
            "load_1_per_core",
            "memory_used_bytes",
            "memory_total_bytes",
            "cpu_count",
            "uptime_seconds",
            "agent_memory_bytes",
        )
    }
    used, total = metrics.get("state_disk_used_bytes"), metrics.get("state_disk_total_bytes")
    return models.HostMetrics(
        **figures,
        memory_percent=percent(figures["memory_used_bytes"], figures["memory_total_bytes"]),
        disk_used_bytes=used,
        disk_total_bytes=total,
        disk_percent=percent(used, total),
        custom=metrics.get("custom") or {},
    )


def _maintenance(agent: EdgeAgent, state: AgentState) -> models.MaintenanceView | None:
    if not agent.maintenance_wanted and state not in IN_MAINTENANCE and state is not AgentState.MAINTENANCE_EXIT:
        return None
    return models.MaintenanceView(
        wanted=bool(agent.maintenance_wanted),
        comment=agent.maintenance_comment,
        by=agent.maintenance_by,
        since=agent.maintenance_since,
        until=agent.maintenance_until,
    )


def _carrier(agent: EdgeAgent, state: AgentState) -> Literal["websocket", "http"] | None:
    if state not in CONNECTED_STATES or agent.carrier is None:
        return None
    return cast("Literal['websocket', 'http']", agent.carrier)


def metrics_history(session: Session, name: str, *, minutes: int, teams: fleet.Teams = None) -> models.MetricsHistory:
    """Return the measurements of an agent's host.

    :raises NotFoundError: when there is no agent of that name among those of these teams.
    """
    known_agent(session, name, teams)
    rows = fleet.read_metrics(session, name, since=datetime.now(UTC) - timedelta(minutes=minutes))
    return models.MetricsHistory(name=name, minutes=minutes, points=[_point(row) for row in rows])


def _point(row: EdgeAgentMetric) -> models.MetricsPoint:
    return models.MetricsPoint(
        at=row.at,
        cpu_percent=row.cpu_percent,
        load_1_per_core=row.load_1_per_core,
        memory_used_bytes=row.memory_used_bytes,
        memory_total_bytes=row.memory_total_bytes,
        memory_percent=percent(row.memory_used_bytes, row.memory_total_bytes),
        disk_used_bytes=row.disk_used_bytes,
        disk_total_bytes=row.disk_total_bytes,
        disk_percent=percent(row.disk_used_bytes, row.disk_total_bytes),
        slots_used=row.slots_used,
    )


def list_events(
    session: Session, name: str, *, before: int | None = None, limit: int = 100, teams: fleet.Teams = None
) -> models.EventList:
    """Return what happened to an agent.

    :raises NotFoundError: when there is no agent of that name among those of these teams.
    """
    known_agent(session, name, teams)
    rows = fleet.read_events(session, name, before=before, limit=limit + 1)
    items = [
        models.EventItem(id=row.id, at=row.at, kind=row.kind, detail=row.detail, by=row.by) for row in rows[:limit]
    ]
    return models.EventList(items=items, more=len(rows) > limit)


def list_jobs(session: Session, wanted: fleet.JobFilter, *, limit: int = 100, offset: int = 0) -> models.JobList:
    """Return a page of jobs; of those that wait, why."""
    rows, total = fleet.find_jobs(session, wanted, limit=limit, offset=offset)
    waiting = any(row.state == JobState.QUEUED for row in rows)
    places = fleet.survey_fleet(session, wanted.teams) if waiting else {}
    now = datetime.now(UTC)
    return models.JobList(items=[_job(row, places, now) for row in rows], total=total)


def _job(row: Any, places: Mapping[Any, Serving], now: datetime) -> models.JobItem:
    queued = row.state == JobState.QUEUED
    usage = row.usage or {}
    wall = usage.get("wall_seconds")
    if wall is None and row.started_at is not None:
        wall = ((row.finished_at or now) - row.started_at).total_seconds()
    return models.JobItem(
        id=row.id,
        kind=row.kind,
        state=JobState(row.state),
        queue=row.queue,
        team=row.team_name,
        slots=row.slots,
        priority_weight=row.priority_weight,
        agent=row.agent_name,
        dag_id=row.dag_id,
        run_id=row.run_id,
        task_id=row.task_id,
        map_index=row.map_index,
        try_number=row.try_number,
        queued_at=row.queued_at,
        offered_at=row.offered_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        outcome=None if row.outcome is None else Outcome(row.outcome),
        exit_code=row.exit_code,
        detail=row.detail,
        cancel_reason=row.cancel_reason,
        wall_seconds=wall,
        cpu_seconds=usage.get("cpu_seconds"),
        peak_memory_bytes=usage.get("peak_memory_bytes"),
        why=why_waiting(row.queue, row.team_name, row.slots, places) if queued else None,
    )


def list_queues(session: Session, teams: fleet.Teams = None) -> models.QueueList:
    """Return the queues that have jobs or are served."""
    places = fleet.survey_fleet(session, teams)
    loads = fleet.read_queues(session, teams)
    now = datetime.now(UTC)
    items = []
    for place in sorted({*places, *loads}, key=lambda place: (place[0], place[1] or "")):
        load, serving = loads.get(place, fleet.QueueLoad()), places.get(place)
        oldest = load.oldest_queued_at
        items.append(
            models.QueueItem(
                name=place[0],
                team=place[1],
                queued=load.queued,
                running=load.running,
                oldest_queued_at=oldest,
                oldest_waiting_seconds=None if oldest is None else max((now - oldest).total_seconds(), 0.0),
                agents=0 if serving is None else serving.agents,
                agents_ready=0 if serving is None else serving.ready,
                free_slots=0 if serving is None else serving.free_slots,
                warning=queue_warning(load.queued, serving),
            )
        )
    items.sort(key=lambda item: item.warning is None)
    return models.QueueList(items=items)


def overview(session: Session, teams: fleet.Teams = None) -> models.Overview:
    """Return the fleet at a glance."""
    now = datetime.now(UTC)
    counts = fleet.count_fleet(session, teams)
    connected = [count for count in counts if count.state in CONNECTED_STATES]
    places = fleet.survey_fleet(session, teams)
    loads = fleet.read_queues(session, teams)
    oldest = [load.oldest_queued_at for load in loads.values() if load.oldest_queued_at is not None]
    finished = fleet.count_finished(session, since=now - timedelta(hours=1), teams=teams)
    troubled, troubled_total = fleet.find_troubled(session, limit=MOST_PROBLEMS, teams=teams)
    return models.Overview(
        at=now,
        agents=sum(count.agents for count in counts),
        agents_connected=sum(count.agents for count in connected),
        agents_by_state={count.state: count.agents for count in counts},
        slots_used=sum(count.slots_used for count in connected),
        slots_total=sum(count.slots_total for count in connected),
        jobs_queued=sum(load.queued for load in loads.values()),
        jobs_running=sum(load.running for load in loads.values()),
        oldest_queued_at=min(oldest, default=None),
        finished_last_hour=sum(finished.values()),
        finished_last_hour_by_outcome={Outcome(outcome): count for outcome, count in finished.items()},
        problems=[
            models.Trouble(name=row.name, state=AgentState(row.state), problem=_trouble(row)) for row in troubled
        ],
        problems_total=troubled_total,
        queues_without_agent=sorted(
            {
                place[0]
                for place, load in loads.items()
                if load.queued and (place not in places or not places[place].agents)
            }
        ),
    )


def _trouble(row: Any) -> str:
    if row.state != AgentState.UNKNOWN:
        return str(row.problem)
    heard = "ever" if row.last_contact_at is None else f"since {row.last_contact_at.isoformat(timespec='seconds')}"
    return f"not heard of {heard}"
