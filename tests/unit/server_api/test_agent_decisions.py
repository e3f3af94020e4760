from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from airflow_edge_agent.protocol.states import AgentState
from airflow_edge_server.domain.agents import (
    Wish,
    maintenance_at_hello,
    maintenance_order,
    state_at_goodbye,
    state_at_hello,
    takes_jobs,
    wish_after_decision,
    wish_after_status,
)
from airflow_edge_server.domain.identity import Claimant, Incumbent, may_be_its_past, refusal

S = AgentState
ME = Claimant("agent-1", "boot-1", "host-1")


def incumbent(
    *,
    agent_id: str = "agent-2",
    boot_id: str = "boot-2",
    session: str | None = "s",
    state: AgentState = S.RUNNING,
    silent: float | None = 1,
) -> Incumbent:
    return Incumbent(agent_id, boot_id, "host-2", session, state, silent)


def verdict(held: Incumbent | None, heartbeat: float = 25) -> str | None:
    return refusal("factory", held, ME, heartbeat_seconds=heartbeat)


def test_a_new_name_is_given() -> None:
    assert verdict(None) is None


def test_a_name_without_session_is_given() -> None:
    assert verdict(incumbent(session=None)) is None


def test_the_same_agent_on_the_same_boot_takes_over_at_once() -> None:
    assert verdict(incumbent(agent_id="agent-1", boot_id="boot-1", silent=0)) is None


@pytest.mark.parametrize("held", [incumbent(agent_id="agent-1"), incumbent(boot_id="boot-1"), incumbent()])
def test_another_one_is_refused_and_both_are_named(held: Incumbent) -> None:
    message = verdict(held)
    assert message is not None
    for word in ("factory", "host-1", "host-2", "agent-1", "boot-1", str(held.agent_id), str(held.boot_id)):
        assert word in message


@pytest.mark.parametrize("state", [S.OFFLINE, S.OFFLINE_MAINTENANCE, S.UNKNOWN])
def test_the_name_of_an_absent_agent_is_given(state: AgentState) -> None:
    assert verdict(incumbent(state=state)) is None


def test_the_name_of_a_silent_agent_is_given_after_heartbeat_and_grace() -> None:
    assert verdict(incumbent(silent=34.9)) is not None
    assert verdict(incumbent(silent=35.1)) is None
    assert verdict(incumbent(silent=None)) is None


@pytest.mark.parametrize(
    ("held", "given"),
    [
        (Incumbent("agent-1", "boot-0", "host-1", "s", S.RUNNING, 1), True),
        (Incumbent("agent-1", "boot-0", "host-2", "s", S.RUNNING, 1), False),
        (Incumbent("agent-2", "boot-0", "host-1", "s", S.RUNNING, 1), False),
        (Incumbent("agent-1", None, "host-1", "s", S.RUNNING, 1), False),
    ],
)
def test_only_ones_own_past_that_is_over_gives_the_name_free(held: Incumbent, *, given: bool) -> None:
    for alive, free in ((False, given), (True, False), (None, False)):
        said = refusal("factory", held, ME, heartbeat_seconds=25, incumbent_alive=alive)
        assert (said is None) == free
    assert may_be_its_past(held, ME) == given


def hello(known: AgentState, claimed: AgentState, *, same: bool = False, wanted: bool | None = None) -> AgentState:
    return state_at_hello(known, claimed, same_instance=same, wanted=wanted)


@pytest.mark.parametrize("known", list(S))
def test_every_state_allows_a_hello(known: AgentState) -> None:
    assert hello(known, S.STARTING) in {S.STARTING, S.MAINTENANCE_REQUEST}


def test_a_reconnecting_daemon_is_what_it_says() -> None:
    assert hello(S.UNKNOWN, S.RUNNING, same=True) is S.RUNNING
    assert hello(S.UNKNOWN, S.OFFLINE, same=True) is S.STARTING


def test_maintenance_survives_a_restart_on_either_side() -> None:
    assert hello(S.OFFLINE_MAINTENANCE, S.STARTING) is S.MAINTENANCE_REQUEST
    assert hello(S.OFFLINE, S.MAINTENANCE_MODE) is S.MAINTENANCE_MODE


def test_maintenance_taken_back_while_offline_is_over() -> None:
    assert hello(S.OFFLINE_MAINTENANCE, S.STARTING, wanted=False) is S.STARTING


@pytest.mark.parametrize(
    ("known", "claimed", "after"),
    [
        (S.TERMINATING, S.OFFLINE, S.OFFLINE),
        (S.RUNNING, S.TERMINATING, S.OFFLINE),
        (S.MAINTENANCE_MODE, S.OFFLINE, S.OFFLINE_MAINTENANCE),
        (S.IDLE, S.OFFLINE_MAINTENANCE, S.OFFLINE_MAINTENANCE),
    ],
)
def test_goodbye_leads_offline(known: AgentState, claimed: AgentState, after: AgentState) -> None:
    assert state_at_goodbye(known, claimed) is after


def test_the_welcome_speaks_of_maintenance_only_with_reason() -> None:
    assert maintenance_at_hello(S.STARTING, wanted=None) is None
    assert maintenance_at_hello(S.MAINTENANCE_REQUEST, wanted=None) is True
    assert maintenance_at_hello(S.MAINTENANCE_REQUEST, wanted=False) is False
    assert maintenance_at_hello(S.STARTING, wanted=True) is True


@pytest.mark.parametrize("state", [S.IDLE, S.RUNNING, S.STARTING, S.MAINTENANCE_EXIT])
def test_a_working_agent_is_told_to_go_into_maintenance(state: AgentState) -> None:
    assert maintenance_order(state, wanted=True) is True
    assert maintenance_order(state, wanted=False) is None
    assert maintenance_order(state, wanted=None) is None


@pytest.mark.parametrize("state", [S.MAINTENANCE_REQUEST, S.MAINTENANCE_PENDING, S.MAINTENANCE_MODE])
def test_an_agent_in_maintenance_is_told_to_leave_it(state: AgentState) -> None:
    assert maintenance_order(state, wanted=False) is False
    assert maintenance_order(state, wanted=True) is None


@pytest.mark.parametrize("state", [S.TERMINATING, S.SHUTDOWN_REQUEST])
def test_an_agent_that_stops_is_left_alone(state: AgentState) -> None:
    assert maintenance_order(state, wanted=True) is None


def test_the_wish_to_leave_maintenance_is_fulfilled_once() -> None:
    assert wish_after_status(S.MAINTENANCE_MODE, wanted=False) is False
    assert wish_after_status(S.MAINTENANCE_EXIT, wanted=False) is None
    assert wish_after_status(S.IDLE, wanted=True) is True


def test_only_idle_and_running_agents_without_problem_take_jobs() -> None:
    assert {state for state in S if takes_jobs(state, None)} == {S.IDLE, S.RUNNING}
    assert not takes_jobs(S.IDLE, "no Task SDK")


NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def decided(known: Wish, since: datetime, *, on: bool = True, now: datetime = NOON + 2 * HOUR) -> Wish:
    return wish_after_decision(known, on=on, comment="disk", by="alice@press", since=since, now=now)


def test_a_decision_at_the_agent_counts_and_leaves_the_agent_to_decide() -> None:
    assert decided(Wish(wanted=None, comment=None, by=None, since=None), NOON) == Wish(
        wanted=None, comment="disk", by="alice@press", since=NOON
    )
    assert decided(Wish(wanted=True, comment="x", by="admin", since=NOON - HOUR), NOON, on=False) == Wish(
        wanted=None, comment=None, by="alice@press", since=NOON
    )
    assert decided(Wish(wanted=False, comment=None, by="admin", since=NOON - HOUR), NOON).wanted is None


def test_an_administrators_wish_outlives_the_same_wish_at_the_agent() -> None:
    assert decided(Wish(wanted=True, comment="x", by="admin", since=NOON - HOUR), NOON).wanted is True


def test_the_later_of_two_decisions_counts() -> None:
    known = Wish(wanted=True, comment="x", by="admin", since=NOON + HOUR)
    assert decided(known, NOON, on=False) is known


@pytest.mark.parametrize("since", [NOON + 100 * HOUR, datetime.max.replace(tzinfo=timezone(-HOUR))])
def test_a_clock_that_is_ahead_does_not_make_a_decision_last(since: datetime) -> None:
    assert decided(Wish(wanted=None, comment=None, by=None, since=None), since).since == NOON + 2 * HOUR
