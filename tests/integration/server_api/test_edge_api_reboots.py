"""Who gets a name that is in use: the same agent after a reboot does, a clone of a living one does not."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import httpx
import pytest
from airflow.models.log import Log as AuditLog
from fastapi import FastAPI
from sqlalchemy import select

from airflow_edge_agent.adapters.http import HttpTransport
from airflow_edge_agent.adapters.network import Network
from airflow_edge_agent.adapters.websocket import WebSocketTransport
from airflow_edge_agent.core.agent import AgentCore
from airflow_edge_agent.core.backoff import Backoff
from airflow_edge_agent.core.policy import Limits
from airflow_edge_agent.protocol import API_PREFIX
from airflow_edge_agent.protocol.frames import Cancel, Close, HeldJob, Result, ServerFrame, Welcome
from airflow_edge_agent.protocol.jobs import JobState, Outcome
from airflow_edge_agent.runtime.link import LinkLoop
from airflow_edge_agent.runtime.pump import Pump
from airflow_edge_server.api.hub import ASK_SECONDS
from airflow_edge_server.api.witness import POLL_GAP_SECONDS, Witness
from fakes import FixedProbe, MemoryJobStore, MemoryRunner
from fakes.frames import make_hello
from integration.server_api.channel_kit import ChannelAgent, Served, served
from integration.server_api.kit import Database, FakeAgent, build_app, only, running, until

A = TypeVar("A", bound=FakeAgent)
AT_ONCE = 1.5
SLACK = 3.0


@pytest.fixture
async def site(database: Database) -> AsyncIterator[Served]:
    async with served(build_app(database)) as site:
        yield site


@pytest.fixture
def dial(database: Database, site: Served) -> Callable[[], ChannelAgent]:
    client: Any = None
    return lambda: ChannelAgent(client, "factory", database.credential("factory"), url=site.url)


@pytest.fixture
async def caller(database: Database, site: Served) -> AsyncIterator[FakeAgent]:
    async with httpx.AsyncClient(base_url=site.url, timeout=30) as client:
        yield FakeAgent(client, "factory", database.credential("factory"))


def rebooted(agent: A, hostname: str = "host-1") -> A:
    """Return the same agent, as it is after a reboot; or a clone of it."""
    other = replace(agent, boot_id=str(uuid.uuid4()), instance_id=str(uuid.uuid4()), hostname=hostname, session_id=None)
    if isinstance(other, ChannelAgent):
        other.heard, other.socket = [], None
    return other


async def knock(agent: FakeAgent) -> tuple[ServerFrame, float]:
    """Say hello; return the first frame of the answer and the seconds that it took."""
    began = time.monotonic()
    frames = await (agent.open() if isinstance(agent, ChannelAgent) else agent.hello())
    return frames[0], time.monotonic() - began


def assert_refused(answer: ServerFrame, *words: str) -> None:
    assert isinstance(answer, Close)
    assert answer.code == "name_in_use"
    assert not [word for word in words if word not in answer.message]


def over(cancel: Cancel) -> Result:
    """What an agent says of a job that it does not have."""
    return Result(job_id=cancel.job_id, fence=cancel.fence, outcome=Outcome.KILLED)


@asynccontextmanager
async def alive(agent: FakeAgent) -> AsyncIterator[None]:
    """Let the agent answer what it is asked."""

    async def live() -> None:
        while True:
            if isinstance(agent, ChannelAgent):
                await agent.send(over(await agent.hear(Cancel, seconds=60)))
            else:
                asked = [frame for frame in await agent.poll(wait=5) if isinstance(frame, Cancel)]
                for cancel in asked:
                    await agent.exchange(over(cancel))

    life = asyncio.create_task(live())
    try:
        yield
        assert not life.done(), life
    finally:
        life.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await life


async def test_a_connection_that_is_reset_gives_the_name_free(
    database: Database, dial: Callable[[], ChannelAgent]
) -> None:
    agent = dial()
    await agent.open()
    await agent.ready()
    job_id = database.add_job()
    await agent.take_one(start=True)
    await until(lambda: database.job(job_id).state == JobState.RUNNING)
    await agent.hang_up()
    answer, seconds = await knock(rebooted(agent))
    assert isinstance(answer, Welcome)
    assert seconds < AT_ONCE
    job = database.job(job_id)
    assert (job.state, job.outcome, job.detail) == ("finished", "lost", "host rebooted")


async def test_a_connection_on_which_nobody_answers_gives_the_name_free(dial: Callable[[], ChannelAgent]) -> None:
    agent = dial()
    await agent.open()
    await agent.ready()
    answer, seconds = await knock(rebooted(agent))
    assert isinstance(answer, Welcome)
    assert ASK_SECONDS <= seconds < ASK_SECONDS + SLACK
    assert await agent.closed() == 4000
    assert [frame.code for frame in agent.heard if isinstance(frame, Close)] == ["superseded"]


@pytest.mark.parametrize("carrier", ["http", "websocket"])
async def test_a_clone_of_a_living_agent_is_refused(
    database: Database, caller: FakeAgent, dial: Callable[[], ChannelAgent], carrier: str
) -> None:
    agent = caller if carrier == "http" else dial()
    await knock(agent)
    session_id = database.agent("factory").session_id
    async with alive(agent):
        # Of either carrier, and again and again.
        for other in (rebooted(caller), rebooted(dial()), rebooted(caller)):
            other.agent_id = agent.agent_id
            answer, seconds = await knock(other)
            assert_refused(answer, "host-1", agent.boot_id, other.boot_id)
            assert seconds < POLL_GAP_SECONDS
            # Its state directory and host name are copied too; what tells them apart is told.
            with database.sessions() as session:
                entries = session.scalars(select(AuditLog.extra).where(AuditLog.event == "edge_agents.copy_refused"))
                told = [str(entry) for entry in entries if other.boot_id in str(entry)]
            assert len(told) == 1
            assert f"boot id {agent.boot_id}" in told[0]
    assert database.agent("factory").session_id == session_id


@pytest.mark.parametrize("transport", [HttpTransport, WebSocketTransport])
async def test_a_real_agent_shows_that_it_lives(
    database: Database, transport: type[HttpTransport | WebSocketTransport]
) -> None:
    app = build_app(database)
    outer = FastAPI(lifespan=app.router.lifespan_context)
    outer.mount(API_PREFIX, app)
    credential = database.credential("factory")
    core = AgentCore(Limits(4, kill_grace_seconds=5, drain_deadline_seconds=0))
    hello = make_hello(name="factory", hostname="host-1")
    pump = Pump(core, store=MemoryJobStore(), runner=MemoryRunner(), boot_id="boot", default_execution_url="http://a/")
    async with served(outer) as site, httpx.AsyncClient(base_url=f"{site.url}{API_PREFIX}", timeout=30) as client:
        way = transport(site.url, FakeAgent(client, "factory", credential).prover, Network())
        link = LinkLoop(pump, way, FixedProbe(), hello=lambda: hello, backoff=Backoff())
        life = asyncio.create_task(link.run())
        await until(lambda: core.connected)
        session_id = database.agent("factory").session_id
        clone = FakeAgent(client, "factory", credential, agent_id=hello.agent_id)
        for _ in range(3):
            answer, seconds = await knock(rebooted(clone))
            assert_refused(answer, "host-1", "boot")
            assert seconds < AT_ONCE
        assert database.agent("factory").session_id == session_id
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
        await way.close()
        # It did not say goodbye.
        assert isinstance((await knock(rebooted(clone)))[0], Welcome)


async def test_the_same_agent_on_another_host_has_to_wait(dial: Callable[[], ChannelAgent]) -> None:
    agent = dial()
    await agent.open()
    await agent.ready()
    await agent.hang_up()
    answer, seconds = await knock(rebooted(agent, "host-2"))
    assert_refused(answer, "host-1", "host-2")
    assert seconds < AT_ONCE


async def test_an_original_that_a_clone_has_replaced_is_refused_and_changes_nothing(
    database: Database, dial: Callable[[], ChannelAgent]
) -> None:
    agent = dial()
    await agent.open()
    await agent.ready()
    job_id = database.add_job()
    offer = await agent.take_one(start=True)
    await until(lambda: database.job(job_id).state == JobState.RUNNING)
    await agent.hang_up()
    clone = rebooted(agent)
    assert isinstance((await knock(clone))[0], Welcome)
    async with alive(clone):
        held = HeldJob(job_id=job_id, fence=offer.fence, phase="running", log_bytes=0)
        (answer,) = await agent.open(held)
        assert_refused(answer, "host-1", agent.boot_id, clone.boot_id)
    job = database.job(job_id)
    assert (job.state, job.outcome, job.fence) == ("finished", "lost", offer.fence)


async def test_a_poll_that_breaks_gives_the_name_free(site: Served, caller: FakeAgent) -> None:
    await caller.hello()
    poll = asyncio.create_task(caller.poll(wait=5))
    await until(lambda: "factory" in site.hub._lines)
    poll.cancel()
    await until(lambda: "factory" not in site.hub._lines)
    answer, seconds = await knock(rebooted(caller))
    assert isinstance(answer, Welcome)
    assert seconds < AT_ONCE


async def test_a_poll_after_whose_answer_nothing_comes_gives_the_name_free(site: Served, caller: FakeAgent) -> None:
    await caller.hello()
    poll = asyncio.create_task(caller.poll(wait=5))
    await until(lambda: "factory" in site.hub._lines)
    answer, seconds = await knock(rebooted(caller))
    assert isinstance(answer, Welcome)
    assert POLL_GAP_SECONDS <= seconds < POLL_GAP_SECONDS + SLACK
    only(await poll, Cancel)


async def test_an_agent_that_has_stopped_polling_loses_its_name(caller: FakeAgent) -> None:
    await caller.hello()
    assert await caller.poll(wait=0.1) == []
    answer, seconds = await knock(rebooted(caller))
    assert isinstance(answer, Welcome)
    assert seconds < POLL_GAP_SECONDS + SLACK
    (close,) = only(await caller.exchange(caller.status()), Close)
    assert close.code == "superseded"


async def test_an_agent_that_polls_elsewhere_keeps_its_name(database: Database) -> None:
    async with running(build_app(database)) as first, running(build_app(database)) as second:
        agent = FakeAgent(first, "factory", database.credential("factory"))
        await agent.hello()
        assert await agent.poll(wait=0.1) == []
        agent.client = second
        heard = database.agent("factory").last_contact_at
        poll = asyncio.create_task(agent.poll(wait=5))
        await until(lambda: database.agent("factory").last_contact_at != heard)
        # For the first one it has been silent for long enough. It must not believe that.
        answer, _ = await knock(rebooted(replace(agent, client=first)))
        assert_refused(answer)
        await poll


async def test_a_session_of_another_server_is_judged_by_the_time(database: Database) -> None:
    async with running(build_app(database)) as first, running(build_app(database)) as second:
        agent = FakeAgent(first, "factory", database.credential("factory"))
        await agent.hello()
        answer, seconds = await knock(rebooted(replace(agent, client=second)))
        assert_refused(answer)
        assert seconds < AT_ONCE


async def test_nobody_is_judged_silent_while_another_session_speaks_for_the_name() -> None:
    witness = Witness()
    witness.heard("factory", "one")
    silent = asyncio.create_task(witness.is_silent("factory", "one", 30))
    await asyncio.sleep(0)
    witness.heard("factory", "two")
    assert await asyncio.wait_for(silent, 5) is False
    assert witness.seconds_left("factory", "one") is None
