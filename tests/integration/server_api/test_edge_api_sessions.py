"""Hello, takeover, maintenance, goodbye, and the two lists of jobs."""

from __future__ import annotations

import asyncio
import time
import uuid
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from airflow_edge_agent.protocol.codec import pack_log
from airflow_edge_agent.protocol.frames import (
    Accept,
    AcceptAck,
    Cancel,
    Close,
    Goodbye,
    Heartbeat,
    HeldJob,
    Log,
    LogAck,
    Maintenance,
    MaintenanceAsked,
    Metrics,
    Result,
    ResultAck,
    Started,
    Welcome,
)
from airflow_edge_agent.protocol.jobs import JobState, Outcome
from airflow_edge_agent.protocol.states import AgentState
from airflow_edge_server import __version__
from airflow_edge_server.store.agents import set_maintenance
from integration.server_api.kit import Database, FakeAgent, MakeAgent, build_app, only, running, until


async def test_hello_is_welcomed_and_stored(database: Database, agent: FakeAgent) -> None:
    (welcome,) = only(await agent.hello(), Welcome)
    assert welcome.intervals.heartbeat_seconds == 5
    assert welcome.maintenance is None
    assert abs(welcome.server_time - datetime.now(UTC)) < timedelta(seconds=30)
    row = database.agent("factory")
    assert (row.session_id, row.agent_id, row.boot_id) == (welcome.session_id, agent.agent_id, "boot-1")
    assert (row.state, row.queues, row.slots_total, row.slots_used) == ("starting", ["default"], 4, 0)
    assert row.first_seen_at == row.connected_at == row.last_contact_at


async def test_two_first_hellos_at_once_give_one_session(database: Database, agent: FakeAgent) -> None:
    first, second = await asyncio.gather(agent.hello(), agent.hello())
    sessions = {only(frames, Welcome)[0].session_id for frames in (first, second)}
    assert len(sessions) == 2
    assert database.agent("factory").session_id in sessions


async def test_protocols_that_do_not_fit_are_closed(agent: FakeAgent) -> None:
    (close,) = only(await agent.hello(protocol_min=2, protocol_max=9), Close)
    assert close.code == "protocol_mismatch"
    assert close.message == (
        f"airflow-edge-agent 1 speaks protocol 2 to 9, airflow-edge-server {__version__} speaks 1 to 1: "
        "upgrade airflow-edge-server to 1 or newer"
    )


async def test_an_agent_too_old_is_told_what_to_install(agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_edge_server.store.sessions.PROTOCOL_OLDEST", 2)
    monkeypatch.setattr("airflow_edge_server.store.sessions.PROTOCOL_VERSION", 3)
    (close,) = only(await agent.hello(protocol_min=1, protocol_max=1), Close)
    assert close.message.endswith(f"upgrade airflow-edge-agent to {__version__} or newer")


@pytest.mark.parametrize(("lowest", "highest", "spoken"), [(1, 2, 2), (2, 3, 3), (3, 4, 3), (1, 3, 3), (2, 2, 2)])
async def test_the_newest_revision_both_know_is_spoken(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch, lowest: int, highest: int, spoken: int
) -> None:
    monkeypatch.setattr("airflow_edge_server.store.sessions.PROTOCOL_OLDEST", 2)
    monkeypatch.setattr("airflow_edge_server.store.sessions.PROTOCOL_VERSION", 3)
    (welcome,) = only(await agent.hello(protocol_min=lowest, protocol_max=highest), Welcome)
    assert welcome.protocol == spoken


async def test_the_credential_decides_the_name(agent: FakeAgent) -> None:
    (close,) = only(await agent.hello(name="somebody-else"), Close)
    assert close.code == "name_mismatch"


async def test_without_hello_there_is_no_session(agent: FakeAgent) -> None:
    for session_id in (None, str(uuid.uuid4())):
        (close,) = only(await agent.exchange(agent.status(), session_id=session_id), Close)
        assert close.code == "session_unknown"


async def test_a_clone_is_refused_and_the_first_goes_on(agent: FakeAgent, make_agent: MakeAgent) -> None:
    await agent.hello()
    clone = make_agent(hostname="host-2", boot_id="boot-2", agent_id=agent.agent_id)
    (close,) = only(await clone.hello(), Close)
    assert close.code == "name_in_use"
    assert "host-1" in close.message
    assert "host-2" in close.message
    assert await agent.exchange(agent.status()) == []


async def test_a_silent_agent_loses_its_name(database: Database, agent: FakeAgent, make_agent: MakeAgent) -> None:
    await agent.hello()
    other = make_agent(hostname="host-2", boot_id="boot-2")
    deadline = time.monotonic() + 10
    while True:
        # Signs of life are written some time after they came: the last one may still be on its way.
        database.set_agent("factory", last_contact_at=datetime.now(UTC) - timedelta(seconds=16))
        frames = await other.hello()
        if any(isinstance(frame, Welcome) for frame in frames):
            break
        assert time.monotonic() < deadline, frames
        await asyncio.sleep(0.1)
    (close,) = only(await agent.exchange(agent.status()), Close)
    assert close.code == "superseded"
    assert "host-2" in close.message


async def test_a_restarted_agent_takes_over_and_the_old_poll_ends(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    assert not await agent.poll(wait=0.1)
    old = agent.session_id
    poll = asyncio.create_task(agent.poll(wait=5))
    await until(lambda: database.agent("factory").state == AgentState.IDLE)
    started = time.monotonic()
    agent.instance_id = str(uuid.uuid4())
    only(await agent.hello(), Welcome)
    frames = await poll
    assert time.monotonic() - started < 2
    assert all(isinstance(frame, Close) and frame.code == "superseded" for frame in frames)
    (close,) = only(await agent.exchange(session_id=old), Close)
    assert close.code == "superseded"


async def test_a_hello_that_comes_late_or_twice_changes_nothing(database: Database, agent: FakeAgent) -> None:
    await agent.hello(attempt=1)
    job_id = database.add_job()
    await agent.take(start=True)
    held = HeldJob(job_id=job_id, fence=1, phase="running", log_bytes=0)
    assert isinstance((await agent.hello(held, attempt=3))[0], Welcome)
    session_id = agent.session_id
    # As it was before the job: it lists none.
    for attempt in (2, 3):
        (close,) = only(await agent.hello(attempt=attempt), Close)
        assert close.code == "session_unknown"
    assert database.job(job_id).state == JobState.RUNNING
    assert await agent.exchange(agent.status(1), session_id=session_id) == []
    # An older agent does not number its hellos; a restarted one begins anew.
    assert isinstance((await agent.hello(held))[0], Welcome)
    agent.instance_id = str(uuid.uuid4())
    assert isinstance((await agent.hello(held, attempt=1))[0], Welcome)


async def test_an_agent_that_has_replaced_its_own_session_is_not_told_to_end(agent: FakeAgent) -> None:
    await agent.hello(attempt=1)
    old = agent.session_id
    poll = asyncio.create_task(agent.poll(wait=5))
    await asyncio.wait({poll}, timeout=0.2)
    only(await agent.hello(attempt=2), Welcome)
    for frames in (await poll, await agent.exchange(agent.status(), session_id=old)):
        assert all(isinstance(frame, Close) and frame.code == "session_unknown" for frame in frames)


async def test_a_second_poll_ends_the_first(agent: FakeAgent) -> None:
    await agent.hello()
    first = asyncio.create_task(agent.poll(wait=5))
    second = asyncio.create_task(agent.poll(wait=5))
    done, pending = await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED, timeout=2)
    assert len(done) == 1
    assert done.pop().result() == []
    for task in pending:
        task.cancel()


async def test_status_and_heartbeat_are_stored(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    database.set_agent("factory", last_contact_at=datetime.now(UTC) - timedelta(seconds=9))
    await agent.poll(3, wait=0, state=AgentState.RUNNING, problem="disk full")
    row = database.agent("factory")
    assert (row.state, row.slots_used, row.slots_total, row.problem) == ("running", 3, 4, "disk full")
    assert row.metrics == {"cpu_percent": 1}
    assert row.last_contact_at is not None
    assert datetime.now(UTC) - row.last_contact_at < timedelta(seconds=5)


async def test_goodbye_ends_the_session_and_returns_offers(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    job_id = database.add_job()
    await agent.offers()
    await agent.exchange(Goodbye(state=AgentState.OFFLINE, reason="stopped"))
    row = database.agent("factory")
    assert (row.state, row.session_id, row.slots_used) == ("offline", None, 0)
    assert database.job(job_id).state == JobState.QUEUED
    (close,) = only(await agent.exchange(agent.status()), Close)
    assert close.code == "session_unknown"


async def test_goodbye_in_maintenance_comes_back_in_maintenance(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    await agent.exchange(agent.status(state=AgentState.MAINTENANCE_MODE))
    await agent.exchange(Goodbye(state=AgentState.OFFLINE_MAINTENANCE, reason="stopped"))
    assert database.agent("factory").state == AgentState.OFFLINE_MAINTENANCE
    agent.instance_id = str(uuid.uuid4())
    (welcome,) = only(await agent.hello(), Welcome)
    assert welcome.maintenance is True
    assert database.agent("factory").state == AgentState.MAINTENANCE_REQUEST


async def test_maintenance_reaches_a_waiting_poll_and_stops_offers(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    assert not await agent.poll(wait=0.1)
    poll = asyncio.create_task(agent.poll())
    database.set_agent("factory", maintenance_wanted=True, maintenance_comment="new disk")
    assert only(await poll, Maintenance) == [Maintenance(on=True, comment="new disk")]
    database.add_job()
    assert await agent.poll(wait=0.5, state=AgentState.MAINTENANCE_MODE) == []
    database.set_agent("factory", maintenance_wanted=False)
    (frame,) = only(await agent.poll(state=AgentState.MAINTENANCE_MODE), Maintenance)
    assert frame.on is False
    assert len(await agent.offers()) == 1
    assert database.agent("factory").maintenance_wanted is None


async def test_a_maintenance_order_is_not_repeated_at_once(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    database.set_agent("factory", maintenance_wanted=True)
    assert len(await agent.poll()) == 1
    assert await agent.poll(wait=0.4) == []


@pytest.mark.parametrize("phase", ["accepted", "running", "finished"])
async def test_jobs_both_sides_know_are_kept(database: Database, agent: FakeAgent, phase: str) -> None:
    await agent.hello()
    database.add_job()
    offer = await agent.take()
    held = HeldJob(job_id=offer.job_id, fence=1, phase=phase, log_bytes=9)
    frames = (await agent.hello(held))[1:]
    expected: list[object] = [LogAck(job_id=offer.job_id, next_offset=0)]
    if phase != "finished":
        expected.insert(0, AcceptAck(job_id=offer.job_id, fence=1))
    assert frames == expected
    assert database.job(offer.job_id).state == ("running" if phase == "running" else "accepted")


async def test_a_lost_accept_is_made_up_for_by_the_hello(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    job_id = database.add_job()
    await agent.offers()
    frames = await agent.hello(HeldJob(job_id=job_id, fence=1, phase="accepted"))
    assert AcceptAck(job_id=job_id, fence=1) in frames
    assert database.job(job_id).state == JobState.ACCEPTED


async def test_jobs_the_server_does_not_know_are_cancelled(
    database: Database, agent: FakeAgent, make_agent: MakeAgent
) -> None:
    other = make_agent("other")
    await other.hello()
    database.add_job()
    foreign = await other.take(start=True)
    unknown = str(uuid.uuid4())
    held = [HeldJob(job_id=job_id, fence=1, phase="running") for job_id in (foreign.job_id, unknown)]
    frames = only((await agent.hello(*held))[1:], Cancel)
    assert {frame.job_id for frame in frames} == {foreign.job_id, unknown}
    job = database.job(foreign.job_id)
    assert (job.state, job.agent_name) == ("running", "other")


async def test_more_answers_than_fit_follow_with_the_next_poll(agent: FakeAgent) -> None:
    held = [HeldJob(job_id=str(uuid.uuid4()), fence=1, phase="running") for _ in range(300)]
    first = (await agent.hello(*held))[1:]
    second = await agent.poll()
    cancelled = {frame.job_id for frame in only(first + second, Cancel)}
    assert cancelled == {job.job_id for job in held}


async def test_jobs_the_agent_does_not_have_go_back_or_are_lost(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    ids = [database.add_job(priority_weight=weight) for weight in (3, 2, 1)]
    await agent.offers()
    for job_id in ids[1:]:
        await agent.exchange(Accept(job_id=job_id, fence=1))
    await agent.exchange(Started(job_id=ids[2], fence=1, pid=1))
    assert [database.job(job_id).state for job_id in ids] == ["offered", "accepted", "running"]
    agent.instance_id = str(uuid.uuid4())
    only(await agent.hello(), Welcome)
    offered, accepted, running = (database.job(job_id) for job_id in ids)
    for job in (offered, accepted):
        assert (job.state, job.agent_name, job.fence, job.accepted_at) == ("queued", None, 1, None)
    assert (running.state, running.outcome, running.detail) == ("finished", "lost", "agent restarted without it")
    assert running.finished_at is not None


async def test_after_a_reboot_running_jobs_are_lost_for_that_reason(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    database.add_job()
    offer = await agent.take(start=True)
    database.set_agent("factory", last_contact_at=datetime.now(UTC) - timedelta(seconds=60))
    agent.boot_id = "boot-2"
    await agent.hello()
    assert database.job(offer.job_id).detail == "host rebooted"


async def test_a_job_accepted_five_times_and_never_started_ends(database: Database, agent: FakeAgent) -> None:
    job_id = database.add_job()
    for fence in range(1, 6):
        await agent.hello()
        offer = await agent.take()
        assert offer.fence == fence
    await agent.hello()
    job = database.job(job_id)
    assert (job.state, job.outcome) == ("finished", "lost")
    assert job.detail == "offered 5 times and never started"


async def test_a_result_from_before_the_hello_is_still_taken(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    database.add_job()
    offer = await agent.take(start=True)
    await agent.hello(HeldJob(job_id=offer.job_id, fence=1, phase="finished"))
    result = Result(job_id=offer.job_id, fence=1, outcome=Outcome.FINISHED, exit_code=0)
    assert await agent.exchange(result) == [ResultAck(job_id=offer.job_id, fence=1)]
    assert database.job(offer.job_id).state == JobState.FINISHED


async def test_a_session_answers_after_the_server_restarted(database: Database, client: httpx.AsyncClient) -> None:
    agent = FakeAgent(client, "factory", database.credential("factory"))
    await agent.hello()
    async with running(build_app(database)) as second:
        agent.client = second
        database.add_job()
        assert len(await agent.offers()) == 1


async def test_a_status_that_was_overtaken_is_not_believed(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    await agent.exchange(agent.status(2, AgentState.RUNNING, sequence=7))
    for sequence in (6, 1):
        await agent.poll(0, sequence=sequence, wait=0)
        await agent.exchange(agent.status(0, sequence=sequence))
        row = database.agent("factory")
        assert (row.state, row.slots_used, row.status_sequence) == ("running", 2, 7)
    # One that does not count, and one that counts anew, are taken by their word.
    for sequence in (8, 0, 3):
        await agent.exchange(agent.status(sequence % 3, sequence=sequence))
        assert database.agent("factory").slots_used == sequence % 3
    await agent.hello()
    await agent.exchange(agent.status(1, sequence=1))
    assert database.agent("factory").slots_used == 1


@pytest.mark.parametrize("step", ["queued", "offered", "refused"])
async def test_a_job_that_began_after_it_was_given_up_stays_with_its_agent(
    database: Database, agent: FakeAgent, make_agent: MakeAgent, step: str
) -> None:
    """Its agent was cut off between the confirmation and the start, and took its time."""
    other = make_agent("other")
    await agent.hello()
    job_id = database.add_job()
    await agent.take()
    database.set_job(job_id, state="queued", agent_name=None, accepted_at=None, offered_at=None)
    await other.hello()
    if step != "queued":
        (offer,) = await other.offers()
        assert offer.fence == 2
    if step == "refused":
        await other.exchange(Accept(job_id=job_id, fence=2))
        await other.exchange(Started(job_id=job_id, fence=2, pid=1))
        # Another claim is not decided before Airflow has decided.
        (close,) = only(await agent.hello(HeldJob(job_id=job_id, fence=1, phase="running")), Close)
        assert (close.code, "other" in close.message) == ("session_unknown", True)
        assert database.job(job_id).agent_name == "other"
        await other.exchange(Log(job_id=job_id, offset=0, data=pack_log(b"refused\n")))
        await other.exchange(Result(job_id=job_id, fence=2, outcome=Outcome.SUPERSEDED, log_bytes=8))
        database.set_job(job_id, reported=True)
    fence = 2 if step == "queued" else 3
    held = HeldJob(job_id=job_id, fence=1, phase="running")
    expected = [AcceptAck(job_id=job_id, fence=fence, held_fence=1), LogAck(job_id=job_id, next_offset=0)]
    for _ in range(2):
        assert (await agent.hello(held))[1:] == expected
        job = database.job(job_id)
        assert (job.state, job.agent_name, job.fence, job.outcome) == (JobState.RUNNING, "factory", fence, None)
        assert (job.reported, job.finished_at, job.lease_until, database.log(job_id)) == (False, None, None, b"")
    # What it said before it knew changes nothing, nor does the other one.
    assert await agent.exchange(Started(job_id=job_id, fence=1, pid=1)) == []
    if step == "offered":
        only(await other.exchange(Accept(job_id=job_id, fence=2)), Cancel)
    only(await other.exchange(Result(job_id=job_id, fence=2, outcome=Outcome.KILLED)), ResultAck)
    await agent.exchange(Log(job_id=job_id, offset=0, data=pack_log(b"it ran\n")))
    await agent.exchange(Result(job_id=job_id, fence=fence, outcome=Outcome.FINISHED, exit_code=0, log_bytes=7))
    job = database.job(job_id)
    assert (job.state, job.outcome, database.log(job_id)) == (JobState.FINISHED, Outcome.FINISHED, b"it ran\n")


async def test_a_start_that_comes_late_within_a_session_is_asked_about(
    database: Database, agent: FakeAgent, make_agent: MakeAgent
) -> None:
    other = make_agent("other")
    await agent.hello()
    job_id = database.add_job()
    await agent.take()
    database.set_job(job_id, state="queued", agent_name=None, accepted_at=None, offered_at=None)
    await other.hello()
    await other.offers()
    started = Started(job_id=job_id, fence=1, pid=1)
    (close,) = only(await agent.exchange(started), Close)
    assert close.code == "session_unknown"
    # Had it been an old frame, the agent would not list the job now.
    await agent.hello()
    assert (database.job(job_id).state, database.job(job_id).agent_name) == ("offered", "other")


async def test_a_hello_does_not_touch_jobs_of_others(
    database: Database, agent: FakeAgent, make_agent: MakeAgent
) -> None:
    """Listed or not, in whatever phase: only the agent that has a job can keep, finish or lose it by a hello."""
    other = make_agent("other")
    await other.hello()
    database.add_job()
    foreign = await other.take(start=True)
    for phase in ("accepted", "running", "finished"):
        held = HeldJob(job_id=foreign.job_id, fence=1, phase=phase)
        only((await agent.hello(held))[1:], Cancel)
        job = database.job(foreign.job_id)
        assert (job.state, job.agent_name, job.fence) == ("running", "other", 1)
    await agent.hello()
    assert database.job(foreign.job_id).state == JobState.RUNNING


async def test_maintenance_decided_at_the_agent_shows_here_with_who_and_why(
    database: Database, agent: FakeAgent
) -> None:
    await agent.hello()
    since = datetime.now(UTC) - timedelta(minutes=1)
    decision = MaintenanceAsked(on=True, by="alice", since=since, comment="new\x00disk")
    (answer,) = only(await agent.exchange(decision, agent.status(state=AgentState.MAINTENANCE_MODE)), Maintenance)
    assert (answer.on, answer.settled) == (True, since)
    row = database.agent("factory")
    who = f"alice@{agent.hostname}"
    assert (row.state, row.maintenance_wanted, row.maintenance_by) == ("maintenance mode", None, who)
    assert (row.maintenance_since, row.maintenance_comment) == (since, "new\N{REPLACEMENT CHARACTER}disk")


async def test_an_agent_takes_back_what_the_server_wanted(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    with database.sessions() as session:
        set_maintenance(session, "factory", on=True, comment="inventory", by="admin")
    await agent.exchange(agent.status(state=AgentState.MAINTENANCE_MODE))
    decision = MaintenanceAsked(on=False, by="alice", since=datetime.now(UTC))
    (answer,) = only(await agent.exchange(decision, agent.status(state=AgentState.IDLE)), Maintenance)
    assert (answer.on, answer.settled) == (False, decision.since)
    row = database.agent("factory")
    assert (row.state, row.maintenance_wanted, row.maintenance_comment) == ("idle", None, None)


async def test_the_server_keeps_a_later_decision_and_says_so(database: Database, agent: FakeAgent) -> None:
    early = datetime.now(UTC) - timedelta(hours=1)
    await agent.hello()
    with database.sessions() as session:
        set_maintenance(session, "factory", on=True, comment="inventory", by="admin")
    decision = MaintenanceAsked(on=False, by="alice", since=early)
    (answer,) = only(await agent.exchange(decision), Maintenance)
    assert (answer.on, answer.by, answer.comment, answer.settled) == (True, "admin", "inventory", early)
    (welcome,) = only(await agent.hello(), Welcome)
    assert (welcome.maintenance, welcome.maintenance_by, welcome.maintenance_comment) == (True, "admin", "inventory")


async def test_queues_that_change_later_and_figures_of_the_site_are_stored(
    database: Database, agent: FakeAgent
) -> None:
    await agent.hello()
    await agent.exchange(agent.status(queues=["b", "a"]))
    assert database.agent("factory").queues == ["a", "b"]
    beat = Heartbeat(metrics=Metrics(), sent_at=datetime.now(UTC), custom={"ups": {"battery": 97}})
    await agent.exchange(agent.status(queues=["b", "a"]), beat)
    await until(lambda: database.agent("factory").metrics == {"custom": {"ups": {"battery": 97}}})
