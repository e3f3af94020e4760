"""Signs of life of agents: collected in memory, and written for all of them with one statement.

Only what nothing depends on at once waits here: the time of the last contact, and what a heartbeat tells. Whatever
decides about offers (state, slots, problem) is written by the request that brings it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, case, literal, or_, update
from sqlalchemy.orm import Session

from airflow_edge_agent.protocol.states import CONNECTED_STATES, AgentState
from airflow_edge_server.store.models import EdgeAgent
from airflow_edge_server.store.transaction import Sessions, write

FLUSH_SECONDS = 1.0
"""How long signs of life are collected before they are written."""

_LOST_STATES = [state.value for state in AgentState if state not in CONNECTED_STATES]
_MOST_PER_STATEMENT = 500
_OVERLAP = timedelta(seconds=10)
"""Later than this is no sign of life that another process heard meanwhile, but a clock that was wrong."""


@dataclass(slots=True)
class Sign:
    """What was heard of one session of an agent since the last flush."""

    session_id: str
    at: datetime
    metrics: dict[str, Any] | None = None
    versions: dict[str, Any] | None = None
    state: AgentState | None = None
    """What the agent says it is. Written only over a state that says it is gone."""


class Presence:
    """The signs of life that one process has not written yet. Safe to use from several threads."""

    def __init__(self) -> None:
        self._signs: dict[str, Sign] = {}
        self._last: dict[str, tuple[str, datetime]] = {}
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._signs)

    def note(self, agent_name: str, sign: Sign) -> None:
        """Note a sign of life; what it does not tell stays as noted before."""
        with self._lock:
            before = self._signs.get(agent_name)
            if before is not None and before.session_id == sign.session_id:
                sign = Sign(
                    sign.session_id,
                    max(sign.at, before.at),
                    before.metrics if sign.metrics is None else sign.metrics,
                    before.versions if sign.versions is None else sign.versions,
                    before.state if sign.state is None else sign.state,
                )
            self._signs[agent_name] = sign
            self._last[agent_name] = (sign.session_id, sign.at)

    def last_heard(self, agent_name: str, session_id: str) -> datetime | None:
        """Return when this process last heard of a session; ``None``: never, or of a later one since."""
        with self._lock:
            known, at = self._last.get(agent_name, ("", None))
        return at if known == session_id else None

    def flush(self, sessions: Sessions) -> int:
        """Write what was noted; return for how many agents.

        :raises sqlalchemy.exc.DBAPIError: when the database fails; everything is kept then.
        """
        with self._lock:
            signs, self._signs = self._signs, {}
        items = sorted(signs.items())
        try:
            for start in range(0, len(items), _MOST_PER_STATEMENT):
                part = dict(items[start : start + _MOST_PER_STATEMENT])
                write(sessions, lambda session, part=part: _store(session, part))  # type: ignore[misc]  # a default
        except BaseException:
            with self._lock:
                self._signs = signs | self._signs
            raise
        return len(items)


def _store(session: Session, signs: dict[str, Sign]) -> None:
    agent = EdgeAgent
    last = agent.last_contact_at
    at = case({name: literal(sign.at, last.type) for name, sign in signs.items()}, value=agent.name)
    until = case({name: literal(sign.at + _OVERLAP, last.type) for name, sign in signs.items()}, value=agent.name)
    # What another process heard a moment later, and has written before, stays.
    values: dict[str, Any] = {"last_contact_at": case((and_(last > at, last < until), last), else_=at)}
    for column in (agent.metrics, agent.versions):
        told = {
            name: literal(value, column.type)
            for name, sign in signs.items()
            if (value := getattr(sign, column.key)) is not None
        }
        if told:
            values[column.key] = case(told, value=agent.name, else_=column)
    states = {name: sign.state.value for name, sign in signs.items() if sign.state is not None}
    if states:
        # Silence made somebody take it for lost. It was not.
        back = case(states, value=agent.name, else_=agent.state)
        values["state"] = case((agent.state.in_(_LOST_STATES), back), else_=agent.state)
    current = or_(*(and_(agent.name == name, agent.session_id == sign.session_id) for name, sign in signs.items()))
    session.execute(update(agent).where(current).values(**values).execution_options(synchronize_session=False))
