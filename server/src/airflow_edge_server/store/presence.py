"""Signs of life of agents: collected in memory, and written for all of them with one statement.

Only what nothing depends on at once waits here: the time of the last contact, and what a heartbeat tells. Whatever
decides about offers (state, slots, problem) is written by the request that brings it.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import JSON, Interval, String, Update, and_, case, func, insert, literal, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from airflow_edge_agent.protocol.states import CONNECTED_STATES, AgentState
from airflow_edge_server.store.among import among
from airflow_edge_server.store.bulk import given, rows_of, takes_arrays
from airflow_edge_server.store.models import EdgeAgent, EdgeAgentMetric
from airflow_edge_server.store.transaction import Sessions, locked, write

FLUSH_SECONDS = 1.0
"""How long signs of life are collected before they are written."""

_LOST_STATES = [state.value for state in AgentState if state not in CONNECTED_STATES]
_MOST_PER_STATEMENT = 500
_OVERLAP = timedelta(seconds=10)
"""Later than this is no sign of life that another process heard meanwhile, but a clock that was wrong."""
_PATIENCE = timedelta(seconds=5)
"""How long a sign of life stays here because somebody else is at the agent's row."""


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
        self._minutes: dict[str, datetime] = {}
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._signs)

    def note(self, agent_name: str, sign: Sign) -> None:
        """Note a sign of life; what it does not tell stays as noted before."""
        with self._lock:
            before = self._signs.get(agent_name)
            self._signs[agent_name] = sign = sign if before is None else _joined(before, sign)
            self._last[agent_name] = (sign.session_id, sign.at)

    def last_heard(self, agent_name: str, session_id: str) -> datetime | None:
        """Return when this process last heard of a session; ``None``: never, or of a later one since."""
        with self._lock:
            known, at = self._last.get(agent_name, ("", None))
        return at if known == session_id else None

    def flush(self, sessions: Sessions) -> int:
        """Write what was noted; return for how many agents.

        Agents at whose rows somebody else is right now are left for the next time: whoever waits for one of them keeps
        all others waiting, and those are answers to agents.

        :raises sqlalchemy.exc.DBAPIError: when the database fails; everything is kept then.
        """
        with self._lock:
            signs, self._signs = self._signs, {}
        items = sorted(signs.items())
        left = dict(items)
        try:
            for start in range(0, len(items), _MOST_PER_STATEMENT):
                part = dict(items[start : start + _MOST_PER_STATEMENT])
                stored, history = write(sessions, functools.partial(self._store_free, part))
                self._minutes.update((row["agent_name"], row["at"]) for row in history)
                for name in stored:
                    del left[name]
        finally:
            for name, sign in left.items():
                self._put_back(name, sign)
        return len(items) - len(left)

    def _put_back(self, agent_name: str, sign: Sign) -> None:
        with self._lock:
            newer = self._signs.get(agent_name)
            self._signs[agent_name] = sign if newer is None else _joined(sign, newer)

    def _store_free(self, signs: dict[str, Sign], session: Session) -> tuple[AbstractSet[str], list[dict[str, Any]]]:
        """Store what can be without waiting; return of whom nothing is left to store, and the new history."""
        old = max(sign.at for sign in signs.values()) - _PATIENCE
        waited = {name for name, sign in signs.items() if sign.at < old}
        free = _rows(session, sorted(signs.keys() - waited), skip_locked=True)
        taken = _rows(session, sorted(signs.keys() - waited - free), lock=False)
        _rows(session, sorted(waited))
        stored = {name: sign for name, sign in signs.items() if name not in taken}
        history = self._new_minutes(stored)
        if stored:
            _store(session, stored, history)
        return stored.keys(), history

    def _new_minutes(self, signs: dict[str, Sign]) -> list[dict[str, Any]]:
        """Return the rows of history: for each agent the first measurement of each minute."""
        rows = []
        for name, sign in signs.items():
            minute = sign.at.replace(second=0, microsecond=0)
            if sign.metrics is not None and self._minutes.get(name) != minute:
                rows.append({"agent_name": name, "at": minute, **_measured(sign.metrics)})
        return rows


def _joined(before: Sign, sign: Sign) -> Sign:
    """Return a sign of life with what an earlier one of the same session told beside."""
    if before.session_id != sign.session_id:
        return sign
    return Sign(
        sign.session_id,
        max(sign.at, before.at),
        before.metrics if sign.metrics is None else sign.metrics,
        before.versions if sign.versions is None else sign.versions,
        before.state if sign.state is None else sign.state,
    )


def _rows(session: Session, names: list[str], *, lock: bool = True, skip_locked: bool = False) -> set[str]:
    """Lock the rows of agents, in the order in which all do it; return whose there are.

    :param skip_locked: leave out those that somebody else has locked, instead of waiting for them.
    """
    if not names:
        return set()
    query = select(EdgeAgent.name).where(among(session, EdgeAgent.name, names)).order_by(EdgeAgent.name)
    return set(session.scalars(locked(query, session, skip_locked=skip_locked) if lock else query))


def _measured(metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        "cpu_percent": metrics.get("cpu_percent"),
        "load_1_per_core": metrics.get("load_1_per_core"),
        "memory_used_bytes": metrics.get("memory_used_bytes"),
        "memory_total_bytes": metrics.get("memory_total_bytes"),
        "disk_used_bytes": metrics.get("state_disk_used_bytes"),
        "disk_total_bytes": metrics.get("state_disk_total_bytes"),
    }


def _store(session: Session, signs: dict[str, Sign], history: list[dict[str, Any]]) -> None:
    if history:
        _store_history(session, history)
    if takes_arrays(session):
        _store_arrays(session, signs)
        return
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


def _store_arrays(session: Session, signs: dict[str, Sign]) -> None:
    told = signs.values()
    arrays: dict[str, list[Any]] = {
        "new_name": [*signs],
        "new_session_id": [sign.session_id for sign in told],
        "new_last_contact_at": [sign.at for sign in told],
        "new_state": [None if sign.state is None else sign.state.value for sign in told],
        "new_metrics": [None if sign.metrics is None else json.dumps(sign.metrics) for sign in told],
        "new_versions": [None if sign.versions is None else json.dumps(sign.versions) for sign in told],
    }
    session.execute(_by_arrays(), arrays, execution_options={"synchronize_session": False})


@functools.cache
def _by_arrays() -> Update:
    """Return the statement above with arrays: the same text however many agents there are, so made only once."""
    agent = EdgeAgent
    last = agent.last_contact_at
    words = {name: String() for name in ("name", "session_id", "state")}
    new = rows_of({**words, "last_contact_at": last.type, "metrics": JSON(), "versions": JSON()})
    at = new.c.last_contact_at
    values = {
        "last_contact_at": case((and_(last > at, last < at + literal(_OVERLAP, Interval())), last), else_=at),
        "metrics": func.coalesce(given(new, "metrics", JSON()), agent.metrics),
        "versions": func.coalesce(given(new, "versions", JSON()), agent.versions),
        "state": case((agent.state.in_(_LOST_STATES), func.coalesce(new.c.state, agent.state)), else_=agent.state),
    }
    current = and_(agent.name == new.c.name, agent.session_id == new.c.session_id)
    return update(agent).where(current).values(values)


def _store_history(session: Session, rows: list[dict[str, Any]]) -> None:
    """Store measurements, but for minutes of which another process has stored one."""
    dialect = session.get_bind().dialect.name
    # How many jobs ran is known to the agent's own row.
    names = [row["agent_name"] for row in rows]
    found = session.execute(select(EdgeAgent.name, EdgeAgent.slots_used).where(EdgeAgent.name.in_(names)))
    used = {row.name: row.slots_used for row in found}
    values = [{**row, "slots_used": used.get(row["agent_name"])} for row in rows if row["agent_name"] in used]
    if not values:
        return
    if dialect == "postgresql":
        session.execute(postgresql.insert(EdgeAgentMetric).values(values).on_conflict_do_nothing())
    elif dialect == "sqlite":
        session.execute(sqlite.insert(EdgeAgentMetric).values(values).on_conflict_do_nothing())
    else:
        session.execute(insert(EdgeAgentMetric).prefix_with("IGNORE").values(values))
