"""The states of an agent, and the one table that says how they follow each other.

The state names are Airflow's own for edge workers. Both sides use this table: the agent decides its state with it, the
server decides what to show for an agent it has lost.
"""

from __future__ import annotations

from enum import StrEnum


class AgentState(StrEnum):
    """What an agent is doing, as everyone sees it."""

    STARTING = "starting"
    IDLE = "idle"
    RUNNING = "running"
    SHUTDOWN_REQUEST = "shutdown request"
    TERMINATING = "terminating"
    OFFLINE = "offline"
    UNKNOWN = "unknown"
    MAINTENANCE_REQUEST = "maintenance request"
    MAINTENANCE_PENDING = "maintenance pending"
    MAINTENANCE_MODE = "maintenance mode"
    MAINTENANCE_EXIT = "maintenance exit"
    OFFLINE_MAINTENANCE = "offline maintenance"


class AgentEvent(StrEnum):
    """What can happen to an agent."""

    INITIALISED = "initialised"
    """The agent has loaded everything and can take work."""
    BUSY = "busy"
    """It holds at least one job."""
    CLEAR = "clear"
    """It holds no job."""
    MAINTENANCE_ON = "maintenance on"
    """An administrator asks for maintenance, at either end."""
    MAINTENANCE_OFF = "maintenance off"
    SHUTDOWN_ASKED = "shutdown asked"
    """The server asks the agent to shut down."""
    STOP = "stop"
    """The agent was told to stop (a signal, or it obeys a shutdown request)."""
    LOST = "lost"
    """Heartbeats stopped."""
    CONNECTED = "connected"
    """The agent said hello."""


class IllegalTransition(ValueError):
    """An event that the current state does not allow.

    Its message names the state, the event and the events that would be allowed.
    """

    def __init__(self, state: StrEnum, event: StrEnum, allowed: list[str]) -> None:
        self.state = state
        self.event = event
        possible = ", ".join(sorted(allowed)) or "none"
        super().__init__(f"'{event}' cannot happen in state '{state}' (possible: {possible})")


_S = AgentState
_E = AgentEvent

AGENT_TRANSITIONS: dict[tuple[AgentState, AgentEvent], AgentState] = {
    # Start and end of an agent's life.
    (_S.STARTING, _E.INITIALISED): _S.IDLE,
    (_S.STARTING, _E.CONNECTED): _S.STARTING,
    (_S.STARTING, _E.STOP): _S.OFFLINE,
    (_S.STARTING, _E.LOST): _S.UNKNOWN,
    (_S.OFFLINE, _E.CONNECTED): _S.STARTING,
    (_S.UNKNOWN, _E.CONNECTED): _S.STARTING,
    (_S.UNKNOWN, _E.STOP): _S.OFFLINE,
    (_S.OFFLINE_MAINTENANCE, _E.CONNECTED): _S.MAINTENANCE_REQUEST,
    (_S.OFFLINE_MAINTENANCE, _E.MAINTENANCE_OFF): _S.OFFLINE,
    (_S.OFFLINE, _E.MAINTENANCE_ON): _S.OFFLINE_MAINTENANCE,
    (_S.UNKNOWN, _E.MAINTENANCE_ON): _S.OFFLINE_MAINTENANCE,
    # Work.
    (_S.IDLE, _E.BUSY): _S.RUNNING,
    (_S.IDLE, _E.CLEAR): _S.IDLE,
    (_S.RUNNING, _E.BUSY): _S.RUNNING,
    (_S.RUNNING, _E.CLEAR): _S.IDLE,
    # Maintenance.
    (_S.STARTING, _E.MAINTENANCE_ON): _S.MAINTENANCE_REQUEST,
    (_S.IDLE, _E.MAINTENANCE_ON): _S.MAINTENANCE_REQUEST,
    (_S.RUNNING, _E.MAINTENANCE_ON): _S.MAINTENANCE_REQUEST,
    (_S.MAINTENANCE_REQUEST, _E.BUSY): _S.MAINTENANCE_PENDING,
    (_S.MAINTENANCE_REQUEST, _E.CLEAR): _S.MAINTENANCE_MODE,
    (_S.MAINTENANCE_PENDING, _E.BUSY): _S.MAINTENANCE_PENDING,
    (_S.MAINTENANCE_PENDING, _E.CLEAR): _S.MAINTENANCE_MODE,
    (_S.MAINTENANCE_MODE, _E.CLEAR): _S.MAINTENANCE_MODE,
    (_S.MAINTENANCE_MODE, _E.BUSY): _S.MAINTENANCE_PENDING,
    (_S.MAINTENANCE_REQUEST, _E.MAINTENANCE_OFF): _S.MAINTENANCE_EXIT,
    (_S.MAINTENANCE_PENDING, _E.MAINTENANCE_OFF): _S.MAINTENANCE_EXIT,
    (_S.MAINTENANCE_MODE, _E.MAINTENANCE_OFF): _S.MAINTENANCE_EXIT,
    (_S.MAINTENANCE_EXIT, _E.BUSY): _S.RUNNING,
    (_S.MAINTENANCE_EXIT, _E.CLEAR): _S.IDLE,
    (_S.MAINTENANCE_EXIT, _E.MAINTENANCE_ON): _S.MAINTENANCE_REQUEST,
    # Shutdown, asked for by the server or by a signal.
    (_S.IDLE, _E.SHUTDOWN_ASKED): _S.SHUTDOWN_REQUEST,
    (_S.RUNNING, _E.SHUTDOWN_ASKED): _S.SHUTDOWN_REQUEST,
    (_S.SHUTDOWN_REQUEST, _E.STOP): _S.TERMINATING,
    (_S.IDLE, _E.STOP): _S.TERMINATING,
    (_S.RUNNING, _E.STOP): _S.TERMINATING,
    (_S.TERMINATING, _E.BUSY): _S.TERMINATING,
    (_S.TERMINATING, _E.CLEAR): _S.OFFLINE,
    (_S.MAINTENANCE_REQUEST, _E.STOP): _S.OFFLINE_MAINTENANCE,
    (_S.MAINTENANCE_PENDING, _E.STOP): _S.OFFLINE_MAINTENANCE,
    (_S.MAINTENANCE_MODE, _E.STOP): _S.OFFLINE_MAINTENANCE,
    (_S.MAINTENANCE_EXIT, _E.STOP): _S.TERMINATING,
    # Lost, as the server sees it.
    (_S.IDLE, _E.LOST): _S.UNKNOWN,
    (_S.RUNNING, _E.LOST): _S.UNKNOWN,
    (_S.SHUTDOWN_REQUEST, _E.LOST): _S.UNKNOWN,
    (_S.TERMINATING, _E.LOST): _S.UNKNOWN,
    (_S.MAINTENANCE_EXIT, _E.LOST): _S.UNKNOWN,
    (_S.MAINTENANCE_REQUEST, _E.LOST): _S.OFFLINE_MAINTENANCE,
    (_S.MAINTENANCE_PENDING, _E.LOST): _S.OFFLINE_MAINTENANCE,
    (_S.MAINTENANCE_MODE, _E.LOST): _S.OFFLINE_MAINTENANCE,
    # A hello from a state in which the server still believed it connected: the agent restarted.
    (_S.IDLE, _E.CONNECTED): _S.STARTING,
    (_S.RUNNING, _E.CONNECTED): _S.STARTING,
    (_S.SHUTDOWN_REQUEST, _E.CONNECTED): _S.STARTING,
    (_S.TERMINATING, _E.CONNECTED): _S.STARTING,
    (_S.MAINTENANCE_EXIT, _E.CONNECTED): _S.STARTING,
    (_S.MAINTENANCE_REQUEST, _E.CONNECTED): _S.MAINTENANCE_REQUEST,
    (_S.MAINTENANCE_PENDING, _E.CONNECTED): _S.MAINTENANCE_REQUEST,
    (_S.MAINTENANCE_MODE, _E.CONNECTED): _S.MAINTENANCE_REQUEST,
}
"""Every legal transition; a pair that is not a key is illegal."""

TAKES_JOBS = frozenset({_S.IDLE, _S.RUNNING})
"""States in which the server may offer a job."""

CONNECTED_STATES = frozenset(_S) - {_S.OFFLINE, _S.OFFLINE_MAINTENANCE, _S.UNKNOWN}
"""States of an agent that is expected to send heartbeats."""

IN_MAINTENANCE = frozenset(
    {_S.MAINTENANCE_REQUEST, _S.MAINTENANCE_PENDING, _S.MAINTENANCE_MODE, _S.OFFLINE_MAINTENANCE}
)
"""States that survive a restart as maintenance."""


DRAINED_BY = "drained by "
"""How the problem of an agent begins that takes no new jobs because somebody on its host wants it so."""


def is_drain(problem: str | None) -> bool:
    """Tell whether what an agent tells as its problem is that it has been drained on its host."""
    return problem is not None and problem.startswith(DRAINED_BY)


def next_state(state: AgentState, event: AgentEvent) -> AgentState:
    """Return the state that follows.

    :raises IllegalTransition: when the table has no such cell.
    """
    try:
        return AGENT_TRANSITIONS[state, event]
    except KeyError:
        allowed = [str(e) for (s, e) in AGENT_TRANSITIONS if s is state]
        raise IllegalTransition(state, event, allowed) from None


def can(state: AgentState, event: AgentEvent) -> bool:
    """Tell whether the table has that cell."""
    return (state, event) in AGENT_TRANSITIONS
