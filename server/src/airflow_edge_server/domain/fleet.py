"""What the fleet as a whole looks like: who serves a queue, and why a job still waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from airflow_edge_agent.protocol.states import CONNECTED_STATES, IN_MAINTENANCE, AgentState, is_drain
from airflow_edge_server.domain.agents import takes_jobs

Place = tuple[str, str | None]
"""A queue and a team."""


@dataclass(frozen=True, slots=True)
class Server:
    """An agent, as far as it matters to a job that waits."""

    state: AgentState
    problem: str | None
    free_slots: int
    slots_total: int
    drained: bool = False
    """Whether the server offers it nothing because somebody wants it so."""


@dataclass(slots=True)
class Serving:
    """The agents that serve one queue for one team, counted by what keeps them from taking a job."""

    agents: int = 0
    ready: int = 0
    """Take jobs, whether or not they have room for one more."""
    roomiest: int = 0
    """Most free slots of one that takes jobs."""
    free_slots: int = 0
    """Of all that take jobs."""
    largest: int = 0
    """Most slots, used or not, of one that takes jobs."""
    hindered: Counter[str] = field(default_factory=Counter)
    """The others, by what hinders them."""

    def add(self, server: Server) -> None:
        """Count one more agent."""
        self.agents += 1
        hindrance = _hindrance(server)
        if hindrance is not None:
            self.hindered[hindrance] += 1
            return
        self.ready += 1
        self.free_slots += server.free_slots
        self.roomiest = max(self.roomiest, server.free_slots)
        self.largest = max(self.largest, server.slots_total)


_MAINTENANCE = "in maintenance"
_GONE = "not connected"
_DRAINED = "drained"
_TROUBLED = "with a problem"
_STARTING = "starting or stopping"


def _hindrance(server: Server) -> str | None:
    if takes_jobs(server.state, server.problem) and not server.drained:
        return None
    if server.state not in CONNECTED_STATES:
        return _MAINTENANCE if server.state is AgentState.OFFLINE_MAINTENANCE else _GONE
    if server.state in IN_MAINTENANCE or server.state is AgentState.MAINTENANCE_EXIT:
        return _MAINTENANCE
    if server.drained or is_drain(server.problem):
        return _DRAINED
    return _TROUBLED if server.problem is not None else _STARTING


def survey(servers: Iterable[tuple[Iterable[str], str | None, Server]]) -> dict[Place, Serving]:
    """Count agents by queue and team.

    :param servers: queues, team and the rest of each agent.
    """
    places: dict[Place, Serving] = {}
    for queues, team, server in servers:
        for queue in queues:
            places.setdefault((queue, team), Serving()).add(server)
    return places


def why_waiting(queue: str, team: str | None, slots: int, places: Mapping[Place, Serving]) -> str:
    """Say in a few words why a queued job does not run yet."""
    serving = places.get((queue, team))
    if serving is None:
        if any(place[0] == queue for place in places):
            return f"no agent {'of its team' if team else 'without a team'} serves queue {queue}"
        return f"no agent serves queue {queue}"
    if serving.ready == 0:
        return f"{_count(serving.agents)} it, {_listed(serving)}"
    needed = max(slots, 1)
    if serving.roomiest >= needed:
        return "about to be offered"
    if serving.largest < needed:
        return f"it needs {needed} slots, and no agent of its queue has more than {serving.largest}"
    full = "all full" if serving.ready == serving.agents else f"{serving.ready} full, {_listed(serving)}"
    if needed > 1 and serving.roomiest > 0:
        full = f"none with {needed} slots free"
    return f"{_count(serving.agents)} it, {full}"


def queue_warning(waiting: int, serving: Serving | None) -> str | None:
    """Return what is wrong with a queue in which jobs wait; ``None``: nothing."""
    if not waiting:
        return None
    if serving is None or not serving.agents:
        return "jobs wait, and no agent serves this queue"
    if not serving.ready:
        return f"jobs wait, and none of its agents takes any: {_listed(serving)}"
    return None


def _count(agents: int) -> str:
    return "1 agent serves" if agents == 1 else f"{agents} agents serve"


def _listed(serving: Serving) -> str:
    if len(serving.hindered) == 1:
        ((what, count),) = serving.hindered.items()
        return what if count == serving.agents else f"{count} {what}"
    return ", ".join(f"{count} {what}" for what, count in sorted(serving.hindered.items()))


def percent(used: int | None, total: int | None) -> float | None:
    """Return a share in percent, to one digit; ``None``: not known."""
    return None if used is None or not total else round(100 * used / total, 1)
