from __future__ import annotations

from typing import Any

import pytest

from airflow_edge_agent.protocol.states import AgentState
from airflow_edge_server.domain.fleet import Server, queue_warning, survey, why_waiting


def fleet(*agents: tuple[AgentState, int, int] | tuple[AgentState, int, int, str], team: str | None = None) -> Any:
    servers = (Server(agent[0], agent[3] if len(agent) > 3 else None, agent[1], agent[2]) for agent in agents)
    return survey((["q"], team, server) for server in servers)


IDLE, FULL = (AgentState.IDLE, 2, 4), (AgentState.RUNNING, 0, 4)
RESTING, GONE = (AgentState.MAINTENANCE_MODE, 4, 4), (AgentState.OFFLINE, 4, 4)
BROKEN = (AgentState.IDLE, 4, 4, "no runtime")


@pytest.mark.parametrize(
    ("agents", "slots", "why"),
    [
        ((), 1, "no agent serves queue q"),
        ((IDLE,), 1, "about to be offered"),
        ((FULL,), 1, "1 agent serves it, all full"),
        ((FULL, FULL, FULL), 1, "3 agents serve it, all full"),
        ((RESTING, RESTING), 1, "2 agents serve it, in maintenance"),
        ((RESTING, GONE), 1, "2 agents serve it, 1 in maintenance, 1 not connected"),
        ((FULL, GONE), 1, "2 agents serve it, 1 full, 1 not connected"),
        ((BROKEN,), 1, "1 agent serves it, with a problem"),
        (((AgentState.STARTING, 4, 4),), 1, "1 agent serves it, starting or stopping"),
        (((AgentState.OFFLINE_MAINTENANCE, 4, 4),), 1, "1 agent serves it, in maintenance"),
        ((IDLE,), 3, "1 agent serves it, none with 3 slots free"),
        ((IDLE,), 5, "it needs 5 slots, and no agent of its queue has more than 4"),
    ],
)
def test_why_a_job_waits(agents: Any, slots: int, why: str) -> None:
    assert why_waiting("q", None, slots, fleet(*agents)) == why


def test_a_team_is_served_by_its_own_agents() -> None:
    places = fleet(IDLE, team="blue")
    assert why_waiting("q", "blue", 1, places) == "about to be offered"
    assert why_waiting("q", "red", 1, places) == "no agent of its team serves queue q"
    assert why_waiting("q", None, 1, places) == "no agent without a team serves queue q"


def test_a_queue_is_warned_of_when_its_jobs_cannot_run() -> None:
    assert queue_warning(0, None) is None
    assert queue_warning(1, None) == "jobs wait, and no agent serves this queue"
    assert queue_warning(1, fleet(FULL)["q", None]) is None
    assert queue_warning(1, fleet(GONE)["q", None]) == "jobs wait, and none of its agents takes any: not connected"


def test_a_drained_agent_is_not_a_broken_one() -> None:
    """Although it tells that it takes no jobs as its problem."""
    drained = Server(AgentState.IDLE, "drained by the server", 4, 4, drained=True)
    places = survey([(["q"], None, drained)])
    assert why_waiting("q", None, 1, places) == "1 agent serves it, drained"
    there = (AgentState.IDLE, 4, 4, "drained by alice: takes no new jobs until it is resumed")
    assert why_waiting("q", None, 1, fleet(there)) == "1 agent serves it, drained"
    assert why_waiting("q", None, 1, fleet(there, BROKEN)) == "2 agents serve it, 1 drained, 1 with a problem"
    assert queue_warning(2, places["q", None]) == "jobs wait, and none of its agents takes any: drained"
