from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow_edge_server.domain.dispatch import Assignment, FreeAgent, QueuedJob, plan

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def job(
    name: str,
    *,
    kind: str = "task",
    queue: str = "q",
    slots: int = 1,
    weight: int = 1,
    age: float = 0,
    team: str | None = None,
) -> QueuedJob:
    return QueuedJob(name, kind, queue, slots, weight, T0 - timedelta(seconds=age), team)


def agent(name: str, free: int, *queues: str, team: str | None = None, turn: int = 0) -> FreeAgent:
    return FreeAgent(name, frozenset(queues or ("q",)), free, team, turn)


def order(jobs: list[QueuedJob], agents: list[FreeAgent], most: int = 100) -> list[Assignment]:
    return plan(jobs, agents, most_per_agent=most)


def test_no_jobs_or_no_agents_give_no_assignments() -> None:
    assert order([], [agent("a", 5)]) == []
    assert order([job("1")], []) == []


def test_callbacks_go_before_tasks_of_any_priority() -> None:
    jobs = [job("task", weight=1_000, age=100), job("callback", kind="callback", weight=1)]
    assert order(jobs, [agent("a", 1)]) == [Assignment("callback", "a")]


def test_higher_priority_goes_first() -> None:
    assert order([job("low", weight=1, age=9), job("high", weight=2)], [agent("a", 1)]) == [Assignment("high", "a")]


def test_older_goes_first_among_equal_priorities() -> None:
    assert order([job("young"), job("old", age=9)], [agent("a", 1)]) == [Assignment("old", "a")]


def test_a_kind_of_the_future_goes_last() -> None:
    assert order([job("new", kind="other", weight=9), job("task")], [agent("a", 1)]) == [Assignment("task", "a")]


def test_a_job_goes_only_to_an_agent_of_its_queue() -> None:
    assert order([job("1", queue="x")], [agent("a", 5, "q"), agent("b", 1, "y", "x")]) == [Assignment("1", "b")]


def test_a_job_goes_only_to_an_agent_of_its_team() -> None:
    agents = [agent("none", 5), agent("blue", 4, team="blue"), agent("red", 3, team="red")]
    assert order([job("1", team="red")], agents) == [Assignment("1", "red")]
    assert order([job("1")], agents[1:]) == []


def test_a_job_that_does_not_fit_lets_smaller_ones_pass() -> None:
    assert order([job("big", slots=3, weight=9), job("small")], [agent("a", 2)]) == [Assignment("small", "a")]


def test_a_full_agent_gets_nothing() -> None:
    assert order([job("1")], [agent("a", 0)]) == []


def test_a_job_without_slots_still_takes_one() -> None:
    assert len(order([job("1", slots=0), job("2", slots=0)], [agent("a", 1)])) == 1


def test_the_agent_with_most_free_slots_is_chosen() -> None:
    assert order([job("1")], [agent("a", 1), agent("b", 3)]) == [Assignment("1", "b")]


def test_jobs_spread_over_equal_agents() -> None:
    got = order([job(str(i), age=9 - i) for i in range(4)], [agent("a", 2), agent("b", 2)])
    assert [a.agent_name for a in got] == ["a", "b", "a", "b"]


def test_among_equals_the_turn_decides() -> None:
    assert order([job("1")], [agent("a", 1, turn=7), agent("b", 1, turn=6)]) == [Assignment("1", "b")]


def test_no_agent_gets_more_than_the_limit_at_once() -> None:
    assert len(order([job(str(i)) for i in range(9)], [agent("a", 9)], most=3)) == 3
