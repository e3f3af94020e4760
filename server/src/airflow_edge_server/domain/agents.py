"""What the server decides about an agent's state; while it is connected, the agent's own word counts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from airflow_edge_agent.protocol.states import (
    CONNECTED_STATES,
    IN_MAINTENANCE,
    TAKES_JOBS,
    AgentEvent,
    AgentState,
    can,
    next_state,
)


def state_at_hello(known: AgentState, claimed: AgentState, *, same_instance: bool, wanted: bool | None) -> AgentState:
    """State to show from the hello until the agent's first status.

    A daemon that only reconnects is what it says it is, and so is one that has kept itself in maintenance. Any other
    starts.
    """
    if claimed in CONNECTED_STATES and (same_instance or claimed in IN_MAINTENANCE):
        return claimed
    if wanted is False and can(known, AgentEvent.MAINTENANCE_OFF) and known is AgentState.OFFLINE_MAINTENANCE:
        known = next_state(known, AgentEvent.MAINTENANCE_OFF)
    return next_state(known, AgentEvent.CONNECTED)


def state_at_goodbye(known: AgentState, claimed: AgentState) -> AgentState:
    """State of an agent that has said goodbye: offline, or offline in maintenance."""
    if claimed is AgentState.OFFLINE_MAINTENANCE or known in IN_MAINTENANCE:
        return AgentState.OFFLINE_MAINTENANCE
    return AgentState.OFFLINE


def maintenance_at_hello(state: AgentState, *, wanted: bool | None) -> bool | None:
    """Return what the welcome says about maintenance; ``None``: nothing.

    Without an administrator's wish, an agent that was lost in maintenance comes back in maintenance.
    """
    if wanted is not None:
        return wanted
    return True if state is AgentState.MAINTENANCE_REQUEST else None


def maintenance_order(state: AgentState, *, wanted: bool | None) -> bool | None:
    """Return what a connected agent has to be told now; ``None``: it is as wanted, or cannot obey."""
    if wanted is True and can(state, AgentEvent.MAINTENANCE_ON):
        return True
    if wanted is False and can(state, AgentEvent.MAINTENANCE_OFF):
        return False
    return None


def wish_after_status(state: AgentState, *, wanted: bool | None) -> bool | None:
    """Return the wish that remains when an agent reports its state.

    A wish for maintenance stands until somebody takes it back. The wish to leave it is fulfilled once: otherwise it
    would push the agent out of every later maintenance that somebody starts at the site.
    """
    return None if wanted is False and state not in IN_MAINTENANCE else wanted


@dataclass(frozen=True)
class Wish:
    """What is wanted of an agent about maintenance, and whose decision that was."""

    wanted: bool | None
    """``True`` and ``False``: an administrator of the server wants it so; ``None``: the agent decides."""
    comment: str | None
    by: str | None
    since: datetime | None


def wish_after_decision(known: Wish, *, on: bool, comment: str | None, by: str, since: datetime, now: datetime) -> Wish:
    """Return what counts after somebody at the agent has decided.

    The later decision counts. The clock of an agent that is ahead does not make its decisions last longer.
    """
    try:
        since = min(since.astimezone(UTC), now)
    except OverflowError:  # the first or the last day that there is
        since = now
    if known.since is not None and since < known.since:
        return known
    wanted = True if on and known.wanted else None
    return Wish(wanted, comment if on else None, by, since)


def takes_jobs(state: AgentState, problem: str | None) -> bool:
    """Tell whether an agent may be offered jobs."""
    return state in TAKES_JOBS and problem is None
