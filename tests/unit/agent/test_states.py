"""Every cell of the state tables, the illegal ones included."""

import itertools

import pytest

from airflow_edge_agent.protocol.jobs import JOB_TRANSITIONS, JobEvent, JobState, next_job_state
from airflow_edge_agent.protocol.states import (
    CONNECTED_STATES,
    IN_MAINTENANCE,
    TAKES_JOBS,
    AgentEvent,
    AgentState,
    IllegalTransition,
    can,
    next_state,
)

E = AgentEvent

# Written out again, by hand and by column, so that a slip in the product's table does not repeat itself here.
# Columns:      INITIALISED  BUSY  CLEAR  MAINT_ON  MAINT_OFF  SHUTDOWN_ASKED  STOP  LOST  CONNECTED
EXPECTED = {
    "starting": ["idle", None, None, "maintenance request", None, None, "offline", "unknown", "starting"],
    "idle": [None, "running", "idle", "maintenance request", None, "shutdown request", "terminating", "unknown",
             "starting"],
    "running": [None, "running", "idle", "maintenance request", None, "shutdown request", "terminating", "unknown",
                "starting"],
    "shutdown request": [None, None, None, None, None, None, "terminating", "unknown", "starting"],
    "terminating": [None, "terminating", "offline", None, None, None, None, "unknown", "starting"],
    "offline": [None, None, None, "offline maintenance", None, None, None, None, "starting"],
    "unknown": [None, None, None, "offline maintenance", None, None, "offline", None, "starting"],
    "maintenance request": [None, "maintenance pending", "maintenance mode", None, "maintenance exit", None,
                            "offline maintenance", "offline maintenance", "maintenance request"],
    "maintenance pending": [None, "maintenance pending", "maintenance mode", None, "maintenance exit", None,
                            "offline maintenance", "offline maintenance", "maintenance request"],
    "maintenance mode": [None, "maintenance pending", "maintenance mode", None, "maintenance exit", None,
                         "offline maintenance", "offline maintenance", "maintenance request"],
    "maintenance exit": [None, "running", "idle", "maintenance request", None, None, "terminating", "unknown",
                         "starting"],
    "offline maintenance": [None, None, None, None, "offline", None, None, None, "maintenance request"],
}  # fmt: skip
COLUMNS = [E.INITIALISED, E.BUSY, E.CLEAR, E.MAINTENANCE_ON, E.MAINTENANCE_OFF, E.SHUTDOWN_ASKED, E.STOP, E.LOST,
           E.CONNECTED]  # fmt: skip

AGENT_CELLS = [
    (AgentState(state), event, expected)
    for state, row in EXPECTED.items()
    for event, expected in zip(COLUMNS, row, strict=True)
]


def test_the_expectation_covers_every_state_and_event() -> None:
    assert {(s, e) for s, e, _ in AGENT_CELLS} == set(itertools.product(AgentState, AgentEvent))


@pytest.mark.parametrize(("state", "event", "expected"), AGENT_CELLS)
def test_agent_cell(state: AgentState, event: AgentEvent, expected: str | None) -> None:
    assert can(state, event) == (expected is not None)
    if expected is not None:
        assert next_state(state, event) == expected
        return
    with pytest.raises(IllegalTransition) as caught:
        next_state(state, event)
    assert str(state) in str(caught.value)
    assert str(event) in str(caught.value)


J = JobEvent
# Columns:      OFFER  ACCEPT  REFUSE  LEASE_EXPIRED  START  FINISH  ADOPT  RETURN  END
EXPECTED_JOBS = {
    "queued": ["offered", None, None, None, None, None, "accepted", None, "finished"],
    "offered": [None, "accepted", "queued", "queued", None, None, "accepted", "queued", "finished"],
    "accepted": [None, "accepted", None, None, "running", "finished", "accepted", "queued", "finished"],
    "running": [None, "running", None, None, "running", "finished", None, "queued", "finished"],
    "finished": [None, None, None, None, "finished", "finished", "accepted", None, None],
}
JOB_COLUMNS = [J.OFFER, J.ACCEPT, J.REFUSE, J.LEASE_EXPIRED, J.START, J.FINISH, J.ADOPT, J.RETURN, J.END]
JOB_CELLS = [
    (JobState(state), event, expected)
    for state, row in EXPECTED_JOBS.items()
    for event, expected in zip(JOB_COLUMNS, row, strict=True)
]


def test_the_expectation_covers_every_job_state_and_event() -> None:
    assert {(s, e) for s, e, _ in JOB_CELLS} == set(itertools.product(JobState, JobEvent))


@pytest.mark.parametrize(("state", "event", "expected"), JOB_CELLS)
def test_job_cell(state: JobState, event: JobEvent, expected: str | None) -> None:
    if expected is not None:
        assert next_job_state(state, event) == expected
        return
    with pytest.raises(IllegalTransition) as caught:
        next_job_state(state, event)
    assert (state, event) not in JOB_TRANSITIONS
    assert str(event) in str(caught.value)


def test_maintenance_survives_every_way_out() -> None:
    for state in IN_MAINTENANCE:
        for event in (E.STOP, E.LOST):
            if can(state, event):
                assert next_state(state, event) in IN_MAINTENANCE
    assert next_state(AgentState.OFFLINE_MAINTENANCE, E.CONNECTED) in IN_MAINTENANCE


def test_only_working_states_take_jobs() -> None:
    assert {AgentState.IDLE, AgentState.RUNNING} == TAKES_JOBS
    assert not {AgentState.OFFLINE, AgentState.UNKNOWN, AgentState.OFFLINE_MAINTENANCE} & CONNECTED_STATES
