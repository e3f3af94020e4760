"""Agents as rows: listed, put into maintenance, and noticed when they fall silent."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import select, update

from airflow_edge_agent.protocol.frames import NAME_PATTERN, Maintenance, MaintenanceAsked
from airflow_edge_agent.protocol.states import (
    CONNECTED_STATES,
    IN_MAINTENANCE,
    AgentEvent,
    AgentState,
    can,
    next_state,
)
from airflow_edge_server.domain.agents import Wish, wish_after_decision
from airflow_edge_server.store.events import Kind, note_event
from airflow_edge_server.store.models import EdgeAgent
from airflow_edge_server.store.text import clean
from airflow_edge_server.store.wakeup import Topic, announce

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_NAME = re.compile(NAME_PATTERN)


def is_agent_name(name: str) -> bool:
    """Tell whether this may be the name of an agent."""
    return _NAME.fullmatch(name) is not None


def list_agents(session: Session) -> list[EdgeAgent]:
    """Return all agents by name."""
    return list(session.scalars(select(EdgeAgent).order_by(EdgeAgent.name)))


def ensure_agent(session: Session, name: str) -> EdgeAgent:
    """Return the agent's row; one that is new is offline and has never been heard of.

    :raises ValueError: when the name breaks the rules for names.
    """
    if not is_agent_name(name):
        raise ValueError(f"{name!r} is no agent name")
    agent = session.get(EdgeAgent, name)
    if agent is None:
        agent = EdgeAgent(name=name, state=AgentState.OFFLINE.value)
        session.add(agent)
        session.flush()
    return agent


def set_maintenance(
    session: Session,
    name: str,
    *,
    on: bool,
    comment: str | None,
    by: str | None,
    until: datetime | None = None,
) -> EdgeAgent | None:
    """Ask for maintenance of an agent, or for the end of it.

    A connected agent learns it with its next exchange and changes its state itself; the state of one that is not
    connected changes at once, and it comes back in that state.

    :param until: when the server takes the wish for maintenance back by itself.
    :return: the agent; ``None``: there is none of that name.
    """
    agent = session.get(EdgeAgent, name, with_for_update=True)
    if agent is None:
        return None
    state = AgentState(agent.state)
    event = AgentEvent.MAINTENANCE_ON if on else AgentEvent.MAINTENANCE_OFF
    if state not in CONNECTED_STATES and can(state, event):
        agent.state = next_state(state, event).value
    changes = on != (state in IN_MAINTENANCE)
    agent.maintenance_wanted = on
    agent.maintenance_until = until if on else None
    if changes or comment is not None:
        agent.maintenance_comment = comment
        agent.maintenance_by = by
        agent.maintenance_since = datetime.now(UTC)
    session.flush()
    announce(session, Topic.ORDERS)
    return agent


def wish_of(agent: EdgeAgent) -> Wish:
    """Return what is wanted of the agent about maintenance."""
    return Wish(agent.maintenance_wanted, agent.maintenance_comment, agent.maintenance_by, agent.maintenance_since)


def note_decision(session: Session, agent: EdgeAgent, frame: MaintenanceAsked, now: datetime) -> Maintenance:
    """Store what somebody at the agent has decided, unless a later decision was made here; say which counts."""
    by = clean(f"{frame.by}@{agent.hostname}"[:200])
    comment = None if frame.comment is None else clean(frame.comment)
    known = wish_of(agent)
    wish = wish_after_decision(known, on=frame.on, comment=comment, by=by, since=frame.since, now=now)
    agent.maintenance_wanted, agent.maintenance_comment = wish.wanted, wish.comment
    agent.maintenance_by, agent.maintenance_since = wish.by, wish.since
    if wish is not known:
        agent.maintenance_until = None
        switch = "on" if frame.on else "off"
        note_event(session, agent.name, Kind.MAINTENANCE, f"{switch}, {comment}" if comment else switch, by=by)
    on = frame.on if wish is not known or wish.wanted is None else wish.wanted
    return Maintenance(on=on, comment=wish.comment, by=wish.by, since=wish.since, settled=frame.since)


@dataclass(frozen=True)
class SilentAgent:
    """An agent that has just been found silent."""

    name: str
    state: AgentState
    """What it is shown as from now on."""
    last_contact_at: datetime


def sweep_liveness(session: Session, *, timeout_seconds: float) -> list[SilentAgent]:
    """Move agents that have not been heard of for that long out of the connected states.

    Each is changed only if it is still as it was read, so that several schedulers may do this at once and an agent
    that comes back at this moment wins.
    """
    before = datetime.now(UTC) - timedelta(seconds=timeout_seconds)
    rows = session.execute(
        select(EdgeAgent.name, EdgeAgent.state, EdgeAgent.last_contact_at).where(
            EdgeAgent.state.in_([state.value for state in CONNECTED_STATES]), EdgeAgent.last_contact_at < before
        )
    ).all()
    silent = []
    for row in rows:
        state = next_state(AgentState(row.state), AgentEvent.LOST)
        result = session.execute(
            update(EdgeAgent)
            .where(
                EdgeAgent.name == row.name,
                EdgeAgent.state == row.state,
                EdgeAgent.last_contact_at == row.last_contact_at,
            )
            .values(state=state.value)
            .execution_options(synchronize_session=False)
        )
        if getattr(result, "rowcount", 0):
            since = row.last_contact_at.isoformat(timespec="seconds")
            note_event(session, row.name, Kind.LOST, f"not heard of since {since}; it is now '{state}'")
            silent.append(SilentAgent(name=row.name, state=state, last_contact_at=row.last_contact_at))
    return silent
