"""What somebody ends in Airflow is cancelled on its agent."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pytest

from airflow_edge_agent.protocol.frames import Accept, Cancel, Offer, Started
from airflow_edge_server.domain.tasks import OVERTIME_GRACE_SECONDS
from airflow_edge_server.store.watch import TaskWatch
from integration.server_api.kit import Database, FakeAgent, only


async def begin(database: Database, agent: FakeAgent, *, start: bool = True) -> str:
    """Have the agent run a job; return its id."""
    await agent.hello()
    job_id = database.add_job()
    (offer,) = only(await agent.poll(), Offer)
    await agent.exchange(Accept(job_id=offer.job_id, fence=1))
    if start:
        await agent.exchange(Started(job_id=offer.job_id, fence=1, pid=1))
        database.set_task(job_id, state="running")
    return job_id


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"state": "failed"}, "the task was marked failed"),
        ({"state": "skipped"}, "the task was marked skipped"),
        ({"state": "removed"}, "the task was removed from its Dag"),
        ({"state": "restarting", "id": uuid.uuid4()}, "the task was cleared"),
        (None, "the task instance was deleted"),
    ],
)
async def test_what_was_ended_in_airflow_is_cancelled_at_once(
    database: Database, agent: FakeAgent, values: dict[str, Any] | None, reason: str
) -> None:
    job_id = await begin(database, agent)
    started = time.monotonic()
    if values is None:
        database.delete_task(job_id)
    else:
        database.set_task(job_id, **values)
    assert await agent.poll(used=1) == [Cancel(job_id=job_id, fence=1, reason=reason)]
    # It is promised within two seconds; a machine that tests other things as well may take a little longer.
    assert time.monotonic() - started < 5
    assert database.job(job_id).cancel_reason == reason


async def test_a_job_cleared_before_its_start_is_cancelled(database: Database, agent: FakeAgent) -> None:
    job_id = await begin(database, agent, start=False)
    database.set_task(job_id, id=uuid.uuid4(), state="scheduled")
    assert await agent.poll(used=1) == [Cancel(job_id=job_id, fence=1, reason="the task was cleared")]


@pytest.mark.parametrize(
    "values",
    [
        {"state": "success"},
        {"state": "deferred"},
        {"state": "up_for_reschedule"},
        {"state": None},
        {"state": "up_for_retry", "id": uuid.uuid4()},
        {"state": "running", "id": uuid.uuid4(), "try_number": 2},
    ],
)
async def test_what_the_task_may_have_said_itself_gets_its_overtime(
    database: Database, agent: FakeAgent, values: dict[str, Any]
) -> None:
    job_id = await begin(database, agent)
    now = 100.0
    watch = TaskWatch(database.open, clock=lambda: now)
    database.set_task(job_id, **values)
    assert watch.look(["factory"]) == 0
    now += OVERTIME_GRACE_SECONDS - 1
    assert watch.look(["factory"]) == 0
    now += 2
    assert watch.look(["somebody-else"]) == 0
    assert watch.look(["factory"]) == 0, "the grace begins when it is first seen"
    now += OVERTIME_GRACE_SECONDS
    assert watch.look(["factory"]) == 1
    assert database.job(job_id).cancel_reason
    assert watch.look(["factory"]) == 0


async def test_the_grace_begins_anew_with_another_state(database: Database, agent: FakeAgent) -> None:
    job_id = await begin(database, agent)
    now = 100.0
    watch = TaskWatch(database.open, clock=lambda: now)
    database.set_task(job_id, state="deferred")
    watch.look(["factory"])
    now += 24
    database.set_task(job_id, state="scheduled")
    assert watch.look(["factory"]) == 0
    database.set_task(job_id, state="running")
    now += 30
    assert watch.look(["factory"]) == 0


async def test_callbacks_have_no_task_to_be_watched(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    database.add_job(kind="callback")
    await agent.take(start=True)
    watch = TaskWatch(database.open)
    assert watch._since == {}
    assert watch.look(["factory"]) == 0
    assert watch._since == {}
