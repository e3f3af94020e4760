"""Sessions of agents: hello, what a connected agent says of itself, goodbye."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session, defer

from airflow_edge_agent.protocol import PROTOCOL_OLDEST, PROTOCOL_VERSION
from airflow_edge_agent.protocol.frames import (
    AcceptAck,
    Cancel,
    Close,
    Controls,
    Goodbye,
    Heartbeat,
    Hello,
    LogAck,
    ServerFrame,
    Status,
    Versions,
)
from airflow_edge_agent.protocol.jobs import HELD_STATES, JobEvent, JobState
from airflow_edge_agent.protocol.states import AgentState
from airflow_edge_server.domain.agents import (
    Wish,
    maintenance_at_hello,
    state_at_goodbye,
    state_at_hello,
    wish_after_status,
)
from airflow_edge_server.domain.identity import (
    Claimant,
    Incumbent,
    is_outdated,
    may_be_its_past,
    of_one_instance,
    refusal,
    session_name,
)
from airflow_edge_server.domain.reconcile import Step, reconcile
from airflow_edge_server.store.agents import wish_of
from airflow_edge_server.store.among import among
from airflow_edge_server.store.controls import controls_of, effective_queues
from airflow_edge_server.store.events import Kind, note_event
from airflow_edge_server.store.jobs import JobBook
from airflow_edge_server.store.models import EdgeAgent, EdgeAgentJob
from airflow_edge_server.store.text import clean
from airflow_edge_server.store.transaction import locked


@dataclass(frozen=True, slots=True)
class Opened:
    """A session that a hello has opened."""

    session_id: str
    protocol: int
    maintenance: bool | None
    wish: Wish
    """Whose decision the maintenance was."""
    reconciled: list[ServerFrame]
    """What the agent has to be told about the jobs it listed."""
    took_over: bool
    """Whether another session of that name ended by it."""
    requeued: bool
    controls: Controls | None
    """What is wanted of it otherwise than it is configured."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A hello was refused because its name is in use."""

    close: Close
    rival: str | None
    """Session of the holder, if that may be the same agent before a reboot; worth finding out whether it lives."""


@dataclass(frozen=True, slots=True)
class Over:
    """A session that was found to be over although nobody has ended it."""

    session_id: str
    last_heard: datetime | None
    """When those who found that last heard of it."""


_SAME_MOMENT = timedelta(milliseconds=1)
"""How exactly databases keep times, at the least."""


def find_agent(session: Session, name: str) -> EdgeAgent | None:
    """Return the agent's row, locked: everything an agent does happens one after the other."""
    return session.scalars(locked(select(EdgeAgent).where(EdgeAgent.name == name), session)).one_or_none()


def find_agents(session: Session, names: Sequence[str]) -> dict[str, EdgeAgent]:
    """Return the rows of agents by name, locked in this order."""
    query = select(EdgeAgent).where(among(session, EdgeAgent.name, names)).order_by(EdgeAgent.name)
    # Nobody asks for what it said long ago; it is only replaced.
    query = query.options(defer(EdgeAgent.configuration), defer(EdgeAgent.metrics), defer(EdgeAgent.versions))
    return {agent.name: agent for agent in session.scalars(locked(query, session))}


def session_fault(agent: EdgeAgent | None, session_id: str | None) -> Close | None:
    """Return what ends a request of a session that is not the agent's current one; ``None``: it is."""
    if agent is None or agent.session_id is None or session_id is None:
        return Close(code="session_unknown", message="there is no such session: say hello first")
    if agent.session_id != session_id:
        if of_one_instance(agent.session_id, session_id):
            return Close(code="session_unknown", message="a later hello has replaced this session: say hello again")
        return Close(
            code="superseded",
            message=f"another session of {agent.name!r} has taken over, from host {agent.hostname} "
            f"(agent id {agent.agent_id}, boot id {agent.boot_id})",
        )
    return None


def open_session(
    session: Session,
    hello: Hello,
    *,
    now: datetime,
    heartbeat_seconds: float,
    server_version: str = "",
    over: Over | None = None,
    may_relay: bool = False,
    carrier: str | None = None,
) -> Opened | Taken | Close:
    """Open a session and reconcile the jobs, or say why not.

    :param may_relay: whether the server lets agents relay the Execution API.
    :param over: what was found out about the session that held the name a moment ago.
    :param carrier: ``websocket`` or ``http``.
    """
    protocol = min(hello.protocol_max, PROTOCOL_VERSION)
    if protocol < max(hello.protocol_min, PROTOCOL_OLDEST):
        return Close(code="protocol_mismatch", message=_mismatch(hello, server_version))
    agent = find_agent(session, hello.name)
    incumbent = None if agent is None else _incumbent(agent, now)
    claimant = Claimant(hello.agent_id, clean(hello.boot_id), clean(hello.hostname))
    alive = None if agent is None or over is None else _lives(agent, over)
    reason = refusal(hello.name, incumbent, claimant, heartbeat_seconds=heartbeat_seconds, incumbent_alive=alive)
    if reason is not None:
        past = incumbent is not None and may_be_its_past(incumbent, claimant)
        return Taken(Close(code="name_in_use", message=reason), agent.session_id if agent and past else None)

    if agent is not None and is_outdated(hello.instance_id, hello.attempt, agent.session_id):
        return Close(code="session_unknown", message="this hello came late, or twice: say hello again")

    rebooted = agent is not None and agent.boot_id not in {None, claimant.boot_id}
    book = _book(session, hello, now)
    steps = reconcile(
        hello.name,
        hello.jobs,
        [book.view(row) for row in book.values()],
        rebooted=rebooted,
        revoked=agent is not None and agent.revoked_at is not None,
    )
    rival = next((step for step in steps if step.wait is not None), None)
    if rival is not None:
        message = f"agent {rival.wait} may have begun with job {rival.job_id} meanwhile: say hello again in a moment"
        return Close(code="session_unknown", message=message)

    if agent is None:
        agent = EdgeAgent(name=hello.name, state=AgentState.OFFLINE, first_seen_at=now, metrics={})
        session.add(agent)
    took_over = agent.session_id is not None
    agent.state = state_at_hello(
        AgentState(agent.state),
        hello.state,
        same_instance=agent.instance_id == hello.instance_id,
        wanted=agent.maintenance_wanted,
    )
    agent.problem = None
    agent.agent_id, agent.boot_id, agent.hostname = claimant.agent_id, claimant.boot_id, claimant.hostname
    agent.instance_id = hello.instance_id
    agent.session_id = session_name(hello.instance_id, hello.attempt, uuid.uuid4())
    # What it will say as soon as it has heard the welcome.
    agent.queues = effective_queues(agent, queues_of(hello.queues))
    agent.slots_total = agent.slots_wanted or hello.concurrency
    agent.controls_seen = 0
    agent.carrier = carrier
    agent.configuration = hello.configuration
    agent.execution_api = hello.execution_api if may_relay else "direct"
    agent.slots_used = sum(job.phase != "finished" for job in hello.jobs)
    agent.status_sequence = 0
    agent.versions = versions_of(hello.versions)
    agent.first_seen_at = agent.first_seen_at or now
    agent.connected_at = agent.last_contact_at = now
    # A second hello of the same new name must find this row, or collide with it.
    session.flush()
    _note_arrival(session, agent, carrier, rebooted=rebooted)
    frames = [frame for step in steps for frame in _take_step(book, step)]
    return Opened(
        session_id=agent.session_id,
        protocol=protocol,
        maintenance=maintenance_at_hello(AgentState(agent.state), wanted=agent.maintenance_wanted),
        wish=wish_of(agent),
        reconciled=frames,
        took_over=took_over,
        requeued=book.requeued,
        controls=controls_of(agent),
    )


def _mismatch(hello: Hello, server_version: str) -> str:
    agent_is_older = hello.protocol_max < PROTOCOL_OLDEST
    old, new = (
        ("airflow-edge-agent", server_version) if agent_is_older else ("airflow-edge-server", hello.versions.agent)
    )
    return (
        f"airflow-edge-agent {clean(hello.versions.agent)} speaks protocol {hello.protocol_min} to "
        f"{hello.protocol_max}, airflow-edge-server {server_version} speaks {PROTOCOL_OLDEST} to {PROTOCOL_VERSION}: "
        f"upgrade {old} to {clean(new)} or newer"
    )


def _incumbent(agent: EdgeAgent, now: datetime) -> Incumbent:
    silent = None if agent.last_contact_at is None else (now - agent.last_contact_at).total_seconds()
    return Incumbent(agent.agent_id, agent.boot_id, agent.hostname, agent.session_id, AgentState(agent.state), silent)


def _lives(agent: EdgeAgent, over: Over) -> bool | None:
    """Tell whether the holder of a name lives; ``None``: not known, since another process has heard of it later."""
    if agent.session_id != over.session_id or over.last_heard is None or agent.last_contact_at is None:
        return None
    return None if agent.last_contact_at > over.last_heard + _SAME_MOMENT else False


def _note_arrival(session: Session, agent: EdgeAgent, carrier: str | None, *, rebooted: bool) -> None:
    how = "" if carrier is None else f", by {carrier}"
    if rebooted:
        note_event(session, agent.name, Kind.REBOOT, f"host {agent.hostname} was started anew{how}")
    else:
        note_event(session, agent.name, Kind.CONNECTED, f"from host {agent.hostname}{how}")


def queues_of(queues: Sequence[str]) -> list[str]:
    """Return queues as they are stored."""
    return sorted({clean(queue) for queue in queues})


def metrics_of(frame: Heartbeat) -> dict[str, Any]:
    """Return the figures of a heartbeat as they are stored; the site's own are below ``custom``."""
    metrics = frame.metrics.model_dump(mode="json", exclude_none=True)
    if frame.results_waiting is not None:
        metrics["results_waiting"] = frame.results_waiting
    return metrics | {"custom": frame.custom} if frame.custom else metrics


def versions_of(versions: Versions) -> dict[str, Any]:
    """Return versions as they are stored."""
    return {key: clean(value) for key, value in versions.model_dump(exclude_none=True).items()}


def _book(session: Session, hello: Hello, now: datetime) -> JobBook:
    """Return what the agent holds by its own word, or by ours."""
    job = EdgeAgentJob
    listed = {entry.job_id for entry in hello.jobs}
    mine = (job.agent_name == hello.name) & job.state.in_(HELD_STATES)
    ids = session.scalars(select(job.id).where(or_(mine, job.id.in_(sorted(listed))))).all()
    return JobBook(session, hello.name, now, ids)


def _take_step(book: JobBook, step: Step) -> list[ServerFrame]:
    row = book.get(step.job_id)
    for event in step.events if row is not None else ():
        assert row is not None
        if event is JobEvent.ADOPT:
            book.adopt(row, step.fence)
        else:
            book.apply(row, event, outcome=step.outcome, detail=step.detail)
    frames: list[ServerFrame] = []
    if step.cancel is not None:
        frames.append(Cancel(job_id=step.job_id, fence=step.fence, reason=step.cancel))
    if step.acknowledge:
        frames.append(AcceptAck(job_id=step.job_id, fence=step.fence, held_fence=step.held_fence))
    if step.tell_log_offset and row is not None:
        frames.append(LogAck(job_id=step.job_id, next_offset=row.log_next_offset))
    return frames


def is_as_stored(session: Session, agent_name: str, session_id: str, statuses: Sequence[Status]) -> bool:
    """Tell whether the agent is in this session, and whether what it says of itself is in its row already."""
    agent = EdgeAgent
    row = session.execute(
        select(
            agent.session_id,
            agent.state,
            agent.slots_total,
            agent.slots_used,
            agent.status_sequence,
            agent.problem,
            agent.maintenance_wanted,
            agent.queues,
            agent.controls_seen,
        ).where(agent.name == agent_name)
    ).one_or_none()
    if row is None or row.session_id != session_id:
        return False
    stored = (row.state, row.slots_total, row.slots_used, row.problem)
    return all(
        _is_overtaken(frame, row.status_sequence)
        or (
            (frame.state, frame.slots_total, frame.slots_used, frame.problem) == stored
            and wish_after_status(frame.state, wanted=row.maintenance_wanted) == row.maintenance_wanted
            and (frame.queues is None or queues_of(frame.queues) == row.queues)
            and frame.controls == row.controls_seen
        )
        for frame in statuses
    )


def _is_overtaken(frame: Status, sequence: int) -> bool:
    return 0 < frame.sequence < sequence


def note_status(agent: EdgeAgent, frame: Status) -> None:
    """Store what the agent says about its state and slots, unless it has said something newer already."""
    if _is_overtaken(frame, agent.status_sequence):
        return
    agent.status_sequence = frame.sequence
    agent.state = frame.state
    agent.slots_total = frame.slots_total
    agent.slots_used = frame.slots_used
    agent.problem = None if frame.problem is None else clean(frame.problem)
    agent.maintenance_wanted = wish_after_status(frame.state, wanted=agent.maintenance_wanted)
    agent.controls_seen = frame.controls
    if frame.queues is not None:
        agent.queues = queues_of(frame.queues)


def note_heartbeat(agent: EdgeAgent, frame: Heartbeat, now: datetime) -> None:
    """Store the metrics of a heartbeat."""
    agent.metrics = metrics_of(frame)
    agent.last_contact_at = now
    if frame.versions is not None:
        agent.versions = versions_of(frame.versions)


def close_session(session: Session, agent: EdgeAgent, frame: Goodbye, now: datetime) -> bool:
    """End the agent's session; return whether offers it has not answered went back to their queues.

    Jobs it has accepted stay its own: a runner outlives its daemon, and the next hello tells what became of them.
    """
    job = EdgeAgentJob
    ids = session.scalars(select(job.id).where(job.agent_name == agent.name, job.state == JobState.OFFERED)).all()
    book = JobBook(session, agent.name, now, ids)
    for row in book.values():
        if row.state == JobState.OFFERED and row.agent_name == agent.name:
            book.apply(row, JobEvent.RETURN)
    agent.state = state_at_goodbye(AgentState(agent.state), frame.state)
    agent.slots_used = 0
    agent.session_id = None
    agent.last_contact_at = now
    note_event(session, agent.name, Kind.DISCONNECTED, frame.reason)
    return book.requeued
