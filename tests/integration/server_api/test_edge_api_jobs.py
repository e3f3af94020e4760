"""The life of a job through the agent API."""

from __future__ import annotations

import asyncio
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_edge_agent.protocol.codec import pack_log
from airflow_edge_agent.protocol.frames import (
    Accept,
    AcceptAck,
    Cancel,
    Log,
    LogAck,
    Refuse,
    Result,
    ResultAck,
    Started,
    Usage,
)
from airflow_edge_agent.protocol.jobs import JobState, Outcome
from airflow_edge_agent.protocol.states import AgentState
from airflow_edge_server.store.dispatch import MAX_WORKLOAD_BYTES
from integration.server_api.kit import Database, FakeAgent, MakeAgent, build_app, only, running, until


async def test_a_job_from_queue_to_result(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    job_id = database.add_job(map_index=2, try_number=3, slots=2, workload={"type": "ExecuteTask", "n": [1, None]})
    (offer,) = await agent.offers()
    job = database.job(job_id)
    assert (offer.job_id, offer.fence, offer.slots, offer.kind, offer.queue) == (job_id, 1, 2, "task", "default")
    assert offer.workload == {"type": "ExecuteTask", "n": [1, None]}
    assert offer.token == f"token of {job.ti_id}"
    assert offer.label == "dag.task[2] try 3 of run run"
    assert (job.state, job.agent_name, job.fence) == ("offered", "factory", 1)
    assert job.lease_until is not None

    accept = Accept(job_id=job_id, fence=1)
    for _ in range(2):
        assert await agent.exchange(accept) == [AcceptAck(job_id=job_id, fence=1)]
    assert database.job(job_id).lease_until is None
    for _ in range(2):
        assert await agent.exchange(Started(job_id=job_id, fence=1, pid=7)) == []
    assert await agent.exchange(accept) == [AcceptAck(job_id=job_id, fence=1)]
    assert database.job(job_id).state == JobState.RUNNING

    usage = Usage(wall_seconds=1.5, cpu_seconds=0.25, peak_memory_bytes=1024)
    result = Result(
        job_id=job_id, fence=1, outcome=Outcome.FAILED, exit_code=-9, detail="bo\x00om", log_bytes=5, usage=usage
    )
    for _ in range(2):
        assert await agent.exchange(result) == [ResultAck(job_id=job_id, fence=1)]
    job = database.job(job_id)
    assert (job.state, job.outcome, job.exit_code, job.log_bytes) == ("finished", "failed", -9, 5)
    assert job.detail == "bo\N{REPLACEMENT CHARACTER}om"
    assert job.usage == {"wall_seconds": 1.5, "cpu_seconds": 0.25, "peak_memory_bytes": 1024}
    assert job.finished_at is not None
    assert job.reported is False
    assert await agent.exchange(Started(job_id=job_id, fence=1, pid=7)) == []


async def test_started_and_result_may_come_in_one_batch(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    database.add_job()
    (offer,) = await agent.offers()
    key: dict[str, Any] = {"job_id": offer.job_id, "fence": 1}
    frames = await agent.exchange(
        Accept(**key), Started(**key, pid=1), log(offer.job_id, 0, b"x"), Result(**key, outcome=Outcome.FINISHED)
    )
    assert frames == [AcceptAck(**key), ResultAck(**key), LogAck(job_id=offer.job_id, next_offset=1)]


async def test_callbacks_first_then_priority_then_age(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    now = datetime.now(UTC)
    young = database.add_job(queued_at=now)
    old = database.add_job(queued_at=now - timedelta(seconds=9))
    urgent = database.add_job(priority_weight=5)
    callback = database.add_job(kind="callback", dag_id=None, task_id=None, run_id=None)
    offers = await agent.offers()
    assert [offer.job_id for offer in offers] == [callback, urgent, old, young]
    assert offers[0].kind == "callback"
    assert offers[0].label.startswith("callback ")


async def test_only_jobs_of_its_queues_and_team_are_offered(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    database.add_job(queue="other")
    database.add_job(team_name="blue")
    assert await agent.poll(wait=0.3) == []
    database.set_agent("factory", team_name="blue")
    (offer,) = await agent.offers()
    assert database.job(offer.job_id).team_name == "blue"


@pytest.mark.parametrize(
    "status",
    [{"used": 4}, {"state": AgentState.TERMINATING}, {"problem": "no Task SDK"}, {"state": AgentState.STARTING}],
)
async def test_an_agent_that_cannot_work_gets_no_offer(
    database: Database, agent: FakeAgent, status: dict[str, Any]
) -> None:
    await agent.hello()
    job_id = database.add_job()
    assert await agent.poll(wait=0.3, **status) == []
    assert database.job(job_id).fence == 0


async def test_never_more_than_the_free_slots(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    for _ in range(6):
        database.add_job()
    assert len(await agent.offers(used=1)) == 3
    # By its own word the agent is empty, but the database knows what it has been offered.
    assert len(await agent.offers(used=0)) == 1
    assert await agent.poll(wait=0.3) == []


async def test_a_job_of_many_slots_waits_for_room(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    big = database.add_job(slots=4, priority_weight=9)
    small = database.add_job(slots=1)
    assert [offer.job_id for offer in await agent.offers(used=2)] == [small]
    await agent.exchange(Refuse(job_id=small, fence=1, reason="no"), agent.status(0))
    database.set_job(small, queue="elsewhere")
    assert [offer.job_id for offer in await agent.offers()] == [big]


async def test_room_made_in_the_send_lane_wakes_the_waiting_poll(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    database.add_job()
    poll = asyncio.create_task(agent.poll(used=4, wait=5))
    await until(lambda: database.agent("factory").slots_used == 4)
    await agent.exchange(agent.status(3))
    assert len(await poll) == 1


async def test_an_offer_nobody_accepts_goes_to_another(
    database: Database, agent: FakeAgent, make_agent: MakeAgent
) -> None:
    await agent.hello()
    job_id = database.add_job()
    await agent.offers()
    database.set_job(job_id, lease_until=datetime.now(UTC) - timedelta(seconds=1))
    other = make_agent("other", agent_id=str(uuid.uuid4()))
    await other.hello()
    (offer,) = await other.offers()
    assert (offer.job_id, offer.fence) == (job_id, 2)
    (cancel,) = only(await agent.exchange(Accept(job_id=job_id, fence=1)), Cancel)
    assert (cancel.job_id, cancel.fence) == (job_id, 1)
    assert await other.exchange(Accept(job_id=job_id, fence=2)) == [AcceptAck(job_id=job_id, fence=2)]
    assert database.job(job_id).agent_name == "other"


async def test_a_late_accept_after_the_lease_is_cancelled(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    job_id = database.add_job()
    await agent.offers()
    database.set_job(job_id, lease_until=datetime.now(UTC) - timedelta(seconds=1), queue="elsewhere")
    await agent.poll(wait=0.3)
    assert database.job(job_id).state == JobState.QUEUED
    (cancel,) = only(await agent.exchange(Accept(job_id=job_id, fence=1)), Cancel)
    assert cancel.reason == "the offer is not valid any more"
    assert database.job(job_id).state == JobState.QUEUED


async def test_a_refused_job_goes_back_and_the_agent_is_left_alone_for_a_while(
    database: Database, agent: FakeAgent, make_agent: MakeAgent
) -> None:
    await agent.hello()
    job_id = database.add_job()
    await agent.offers()
    assert await agent.exchange(Refuse(job_id=job_id, fence=1, reason="runtime broken")) == []
    assert (database.job(job_id).state, database.job(job_id).agent_name) == ("queued", None)
    assert await agent.poll(wait=0.3) == []
    other = make_agent("other", agent_id=str(uuid.uuid4()))
    await other.hello()
    assert [offer.fence for offer in await other.offers()] == [2]


@pytest.mark.parametrize("outcome", [Outcome.NOT_STARTED, Outcome.UNAUTHORIZED])
async def test_a_job_of_which_nothing_ran_is_offered_again_fresh(
    database: Database, agent: FakeAgent, outcome: Outcome
) -> None:
    await agent.hello()
    job_id = database.add_job()
    for fence in range(1, 6):
        offer = await agent.take()
        assert offer.fence == fence
        frames = await agent.exchange(
            log(job_id, 0, b"could not"), Result(job_id=job_id, fence=fence, outcome=outcome, detail="no")
        )
        assert ResultAck(job_id=job_id, fence=fence) in frames
        if fence < 5:
            job = database.job(job_id)
            assert (job.state, job.agent_name, job.log_next_offset) == ("queued", None, 0)
            assert (job.offered_at, job.accepted_at, job.started_at, job.outcome) == (None, None, None, None)
            assert database.log(job_id) == b""
    job = database.job(job_id)
    assert (job.state, job.outcome, job.detail) == ("finished", outcome.value, "no")
    assert database.log(job_id) == b"could not"


async def test_a_cancel_reaches_the_waiting_poll_and_is_not_repeated_at_once(
    database: Database, agent: FakeAgent
) -> None:
    await agent.hello()
    job_id = database.add_job()
    await agent.take(start=True)
    poll = asyncio.create_task(agent.poll(used=1))
    await asyncio.sleep(0)
    database.set_job(job_id, cancel_reason="cleared by a user")
    assert await poll == [Cancel(job_id=job_id, fence=1, reason="cleared by a user")]
    assert await agent.poll(used=1, wait=0.4) == []
    await agent.exchange(Result(job_id=job_id, fence=1, outcome=Outcome.KILLED))
    assert database.job(job_id).state == JobState.FINISHED


async def test_a_cancelled_job_that_never_started_does_not_go_back(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    job_id = database.add_job()
    await agent.take()
    database.set_job(job_id, cancel_reason="no")
    await agent.exchange(Result(job_id=job_id, fence=1, outcome=Outcome.NOT_STARTED))
    assert (database.job(job_id).state, database.job(job_id).outcome) == ("finished", "not started")


@pytest.mark.parametrize("offered", [False, True])
async def test_a_cancelled_job_that_nobody_has_is_revoked(
    database: Database,
    agent: FakeAgent,
    offered: bool,  # noqa: FBT001  a parameter
) -> None:
    await agent.hello()
    job_id = database.add_job()
    if offered:
        await agent.offers()
    database.set_job(job_id, cancel_reason="gone")
    for _ in range(20):
        await agent.poll(wait=0.5)
        job = database.job(job_id)
        if job.state == "finished":
            break
    assert (job.state, job.outcome, job.detail) == ("finished", "revoked", "gone")


async def test_the_accept_of_a_cancelled_offer_is_answered_with_the_reason(
    database: Database, agent: FakeAgent
) -> None:
    await agent.hello()
    job_id = database.add_job()
    await agent.offers()
    database.set_job(job_id, cancel_reason="gone")
    frames = await agent.exchange(Accept(job_id=job_id, fence=1))
    assert frames == [Cancel(job_id=job_id, fence=1, reason="gone")]
    assert database.job(job_id).outcome == "revoked"


async def test_frames_about_jobs_of_others_change_nothing(
    database: Database, agent: FakeAgent, make_agent: MakeAgent
) -> None:
    await agent.hello()
    thief = make_agent("thief", agent_id=str(uuid.uuid4()), slots=0)
    await thief.hello()
    queued = database.add_job(queue="nobody")
    taken = database.add_job()
    await agent.take(start=True)
    before = [vars_of(database, job_id) for job_id in (queued, taken)]
    for job_id in (queued, taken):
        for fence in (1, 2):
            key: dict[str, Any] = {"job_id": job_id, "fence": fence}
            only(await thief.exchange(Accept(**key)), Cancel)
            only(await thief.exchange(Started(**key, pid=1)), Cancel)
            assert await thief.exchange(Refuse(**key, reason="x")) == []
            assert await thief.exchange(Result(**key, outcome=Outcome.FINISHED)) == [ResultAck(**key)]
        assert await thief.exchange(log(job_id, 5, b"evil")) == [LogAck(job_id=job_id, next_offset=9)]
    assert [vars_of(database, job_id) for job_id in (queued, taken)] == before
    assert database.log(taken) == b""


async def test_frames_of_another_fence_change_nothing(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    job_id = database.add_job(fence=3)
    await agent.take()
    before = vars_of(database, job_id)
    for fence in (3, 5):
        key: dict[str, Any] = {"job_id": job_id, "fence": fence}
        only(await agent.exchange(Accept(**key)), Cancel)
        # An older start is what the agent said before it was given a new fence.
        assert len(only(await agent.exchange(Started(**key, pid=1)), Cancel)) == (fence > 4)
        assert await agent.exchange(Result(**key, outcome=Outcome.FINISHED)) == [ResultAck(**key)]
    assert vars_of(database, job_id) == before


async def test_a_start_without_accept_is_cancelled(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    job_id = database.add_job()
    await agent.offers()
    only(await agent.exchange(Started(job_id=job_id, fence=1, pid=1)), Cancel)
    result = Result(job_id=job_id, fence=1, outcome=Outcome.FINISHED)
    assert await agent.exchange(result) == [ResultAck(job_id=job_id, fence=1)]
    assert database.job(job_id).state == JobState.OFFERED


async def test_a_job_the_server_ended_is_cancelled_when_it_is_heard_of(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    job_id = database.add_job()
    await agent.take()
    database.set_job(job_id, state="finished", outcome="lost", detail="out of contact")
    (cancel,) = only(await agent.exchange(Started(job_id=job_id, fence=1, pid=1)), Cancel)
    assert cancel.reason == "out of contact"
    (cancel,) = only(await agent.exchange(Accept(job_id=job_id, fence=1)), Cancel)


def log(job_id: str, offset: int, data: bytes) -> Log:
    return Log(job_id=job_id, offset=offset, data=pack_log(data))


async def test_log_pieces_are_joined_trimmed_and_gaps_asked_for(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    job_id = database.add_job()
    await agent.take(start=True)

    async def send(*pieces: tuple[int, bytes]) -> int:
        (ack,) = only(await agent.exchange(*[log(job_id, *piece) for piece in pieces]), LogAck)
        return ack.next_offset

    assert await send((0, b"")) == 0
    assert await send((0, b"abc"), (3, b"de")) == 5
    assert await send((0, b"abc")) == 5
    assert await send((3, b"defg")) == 7
    assert await send((9, b"zz")) == 7
    assert await send((2**63 - 1, b"zz")) == 7
    assert await send((7, b"h"), (9, b"no"), (8, b"ij")) == 10
    await agent.exchange(Result(job_id=job_id, fence=1, outcome=Outcome.FINISHED, log_bytes=11))
    assert await send((10, b"k")) == 11
    assert database.log(job_id) == b"abcdefghijk"
    assert database.job(job_id).log_next_offset == 11


async def test_the_same_log_twice_at_once_is_stored_once(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    job_id = database.add_job()
    await agent.take(start=True)
    expected = b""
    for round_number in range(5):
        piece = bytes([65 + round_number]) * 1000
        frame = log(job_id, len(expected), piece)
        expected += piece
        answers = await asyncio.gather(*[agent.exchange(frame) for _ in range(4)])
        assert {only(answer, LogAck)[0].next_offset for answer in answers} == {len(expected)}
    assert database.log(job_id) == expected


async def test_damaged_log_is_skipped(database: Database, agent: FakeAgent, caplog: pytest.LogCaptureFixture) -> None:
    await agent.hello()
    job_id = database.add_job()
    await agent.take(start=True)
    assert await agent.exchange(Log(job_id=job_id, offset=0, data="????")) == []
    assert "log data is not base64 of zlib" in caplog.text
    assert await agent.exchange(log(job_id, 0, b"ok")) == [LogAck(job_id=job_id, next_offset=2)]


async def test_log_of_an_unknown_job_is_dropped(agent: FakeAgent, caplog: pytest.LogCaptureFixture) -> None:
    await agent.hello()
    job_id = str(uuid.uuid4())
    frames = await agent.exchange(log(job_id, 10, b"abc"), log(job_id, 13, b"d"))
    assert frames == [LogAck(job_id=job_id, next_offset=14)]
    assert caplog.text.count(job_id) == 1


async def test_a_workload_too_large_ends_with_the_reason(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    big = database.add_job(workload={"x": "y" * MAX_WORKLOAD_BYTES}, priority_weight=2)
    small = database.add_job()
    assert [offer.job_id for offer in await agent.offers()] == [small]
    job = database.job(big)
    assert (job.state, job.outcome) == ("finished", "not started")
    assert job.detail is not None
    assert "too large" in job.detail


async def test_large_workloads_are_offered_in_answers_that_fit(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    for _ in range(4):
        database.add_job(workload={"x": "y" * (MAX_WORKLOAD_BYTES - 100)})
    counts: list[int] = []
    while sum(counts) < 4:
        counts.append(len(await agent.offers(used=0)))
    assert max(counts) < 4


async def test_without_token_nothing_is_offered_and_one_line_says_why(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    failing = True

    def mint(ti_id: str) -> str:
        if failing:
            raise ValueError("no key to sign with")
        return "token"

    async with running(build_app(database, mint=mint)) as client:
        agent = FakeAgent(client, "factory", database.credential("factory"))
        await agent.hello()
        job_id = database.add_job()
        assert await agent.poll(wait=0.5) == []
        assert caplog.text.count("no key to sign with") == 1
        assert (database.job(job_id).state, database.job(job_id).fence) == ("queued", 0)
        failing = False
        assert len(await agent.offers()) == 1


async def test_an_idle_poll_ends_with_its_time(agent: FakeAgent) -> None:
    await agent.hello()
    started = time.monotonic()
    assert await agent.poll(wait=0.3) == []
    assert 0.3 <= time.monotonic() - started < 2


def vars_of(database: Database, job_id: str) -> dict[str, Any]:
    return {key: value for key, value in vars(database.job(job_id)).items() if not key.startswith("_")}


async def test_the_first_result_stays(database: Database, agent: FakeAgent) -> None:
    """An end is final: what comes later, from whom and with whatever fence, is acknowledged and changes nothing."""
    await agent.hello()
    job_id = database.add_job()
    await agent.take(start=True)
    await agent.exchange(Result(job_id=job_id, fence=1, outcome=Outcome.FAILED, exit_code=3, detail="first"))
    before = vars_of(database, job_id)
    for outcome in Outcome:
        # A log may turn out shorter than was told, not longer.
        second = Result(job_id=job_id, fence=1, outcome=outcome, exit_code=0, detail="second", log_bytes=99)
        assert await agent.exchange(second) == [ResultAck(job_id=job_id, fence=1)]
        assert vars_of(database, job_id) == before


async def test_a_log_that_had_to_be_shortened_after_its_result(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    job_id = database.add_job()
    await agent.take(start=True)
    await agent.exchange(Log(job_id=job_id, offset=0, data=pack_log(b"x" * 50)))
    for told, known in ((1_000, 1_000), (400, 400), (700, 400), (30, 50)):
        result = Result(job_id=job_id, fence=1, outcome=Outcome.FINISHED, log_bytes=told)
        assert await agent.exchange(result) == [ResultAck(job_id=job_id, fence=1)]
        assert database.job(job_id).log_bytes == known


@pytest.mark.parametrize("fence", [1, 3])
async def test_a_result_of_another_fence_does_not_end_the_job(database: Database, agent: FakeAgent, fence: int) -> None:
    await agent.hello()
    job_id = database.add_job(fence=1)
    offer = await agent.take(start=True)
    assert offer.fence == 2
    for outcome in Outcome:
        await agent.exchange(Result(job_id=job_id, fence=fence, outcome=outcome))
        await agent.exchange(Refuse(job_id=job_id, fence=fence, reason="full"))
    job = database.job(job_id)
    assert (job.state, job.agent_name, job.outcome) == (JobState.RUNNING, "factory", None)
