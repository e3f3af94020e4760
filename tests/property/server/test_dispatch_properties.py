from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from airflow_edge_server.domain.dispatch import FreeAgent, QueuedJob, dispatch_key, plan

QUEUES = st.sampled_from(["a", "b", "c"])
TEAMS = st.sampled_from([None, "x"])
T0 = datetime(2026, 1, 1, tzinfo=UTC)


@st.composite
def job_lists(draw: st.DrawFn) -> list[QueuedJob]:
    entries = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["task", "callback"]),
                QUEUES,
                st.integers(1, 4),
                st.integers(-3, 3),
                st.integers(0, 5),
                TEAMS,
            ),
            max_size=25,
        )
    )
    return [
        QueuedJob(f"job-{n}", kind, queue, slots, weight, T0 + timedelta(seconds=age), team)
        for n, (kind, queue, slots, weight, age, team) in enumerate(entries)
    ]


@st.composite
def agent_lists(draw: st.DrawFn) -> list[FreeAgent]:
    entries = draw(st.lists(st.tuples(st.frozensets(QUEUES), st.integers(0, 6), TEAMS, st.integers(0, 3)), max_size=6))
    return [FreeAgent(f"agent-{n}", queues, free, team, turn) for n, (queues, free, team, turn) in enumerate(entries)]


@given(jobs=job_lists(), agents=agent_lists(), most=st.integers(1, 5))
def test_a_plan_is_sound_and_complete(jobs: list[QueuedJob], agents: list[FreeAgent], most: int) -> None:
    assignments = plan(jobs, agents, most_per_agent=most)
    job_of = {job.id: job for job in jobs}
    agent_of = {agent.name: agent for agent in agents}

    assert max(Counter(a.job_id for a in assignments).values(), default=0) <= 1
    used: Counter[str] = Counter()
    given_to: Counter[str] = Counter()
    for assignment in assignments:
        job, agent = job_of[assignment.job_id], agent_of[assignment.agent_name]
        assert job.queue in agent.queues
        assert job.team_name == agent.team_name
        used[agent.name] += job.slots
        given_to[agent.name] += 1
    for agent in agents:
        assert used[agent.name] <= agent.free_slots
        assert given_to[agent.name] <= most

    planned = [job_of[a.job_id] for a in assignments]
    assert planned == sorted(planned, key=dispatch_key)
    taken = {a.job_id for a in assignments}
    for job in jobs:
        if job.id in taken:
            continue
        for agent in agents:
            # What is left over fits nowhere, not even at the end.
            fits = job.queue in agent.queues and job.team_name == agent.team_name
            room = agent.free_slots - used[agent.name] >= job.slots and given_to[agent.name] < most
            assert not (fits and room)


@given(jobs=job_lists(), agents=agent_lists())
def test_no_less_urgent_job_of_the_same_kind_of_place_goes_first(
    jobs: list[QueuedJob], agents: list[FreeAgent]
) -> None:
    taken = {a.job_id for a in plan(jobs, agents, most_per_agent=100)}
    for job in jobs:
        for other in jobs:
            same_place = (job.queue, job.team_name) == (other.queue, other.team_name)
            if same_place and job.slots <= other.slots and dispatch_key(job) < dispatch_key(other):
                assert job.id in taken or other.id not in taken


@given(jobs=job_lists(), agents=agent_lists())
def test_a_plan_does_not_depend_on_the_order_in_which_facts_come(
    jobs: list[QueuedJob], agents: list[FreeAgent]
) -> None:
    straight = plan(jobs, agents, most_per_agent=3)
    assert plan(jobs[::-1], agents[::-1], most_per_agent=3) == straight
