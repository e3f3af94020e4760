"""Several api-servers on one database, and what a real server does with waiting polls."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from airflow_edge_agent.protocol.codec import encode_batch
from airflow_edge_agent.protocol.frames import Accept, AcceptAck, Offer, Result
from airflow_edge_agent.protocol.jobs import JobState, Outcome
from airflow_edge_server.api.hub import Hub
from airflow_edge_server.api.lines import Poll
from airflow_edge_server.store.dispatch import Waiting, dispatch, read_rooms
from airflow_edge_server.store.models import EdgeAgentJob
from integration.server_api.channel_kit import served
from integration.server_api.kit import Database, FakeAgent, build_app, make_database, only, running, until


@pytest.fixture(params=["sqlite", "postgresql", "mysql", "psycopg"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return make_database(request, tmp_path)


async def work(agent: FakeAgent, database: Database, offered: list[tuple[str, int]]) -> None:
    """Take and finish jobs until none is left."""
    while True:
        offers = only(await agent.poll(wait=1), Offer)
        assert sum(offer.slots for offer in offers) <= agent.slots
        offered.extend((offer.job_id, offer.fence) for offer in offers)
        for offer in offers:
            frames = await agent.exchange(Accept(job_id=offer.job_id, fence=offer.fence))
            assert frames == [AcceptAck(job_id=offer.job_id, fence=offer.fence)]
            await agent.exchange(Result(job_id=offer.job_id, fence=offer.fence, outcome=Outcome.FINISHED))
        if not offers and unfinished(database) == 0:
            return


def unfinished(database: Database) -> int:
    with database.sessions() as session:
        return session.query(EdgeAgentJob).filter(EdgeAgentJob.state != JobState.FINISHED).count()


async def test_two_servers_never_offer_a_job_twice(database: Database, database_url: str) -> None:
    jobs = [database.add_job(priority_weight=n % 5) for n in range(60)]
    offered: list[tuple[str, int]] = []
    async with running(build_app(database)) as first, running(build_app(database)) as second:
        agents = []
        for number in range(6):
            client = (first, second)[number % 2]
            agent = FakeAgent(client, f"agent-{number}", database.credential(f"agent-{number}"), slots=3)
            await agent.hello()
            agents.append(agent)
        await asyncio.gather(*[work(agent, database, offered) for agent in agents])
    assert sorted(offered) == sorted((job_id, 1) for job_id in jobs)


async def test_one_agent_at_two_servers_gets_no_more_than_its_slots(database: Database) -> None:
    async with running(build_app(database)) as first, running(build_app(database)) as second:
        agent = FakeAgent(first, "factory", database.credential("factory"), slots=3)
        await agent.hello()
        twin = FakeAgent(second, "factory", agent.credential, slots=3, session_id=agent.session_id)
        for _ in range(3):
            polls = [asyncio.create_task(one.poll(wait=0.6)) for one in (agent, twin)]
            for _ in range(5):
                database.add_job()
            got = [offer for frames in await asyncio.gather(*polls) for offer in only(frames, Offer)]
            assert len(got) <= 3
            for offer in got:
                await agent.exchange(
                    Accept(job_id=offer.job_id, fence=offer.fence),
                    Result(job_id=offer.job_id, fence=offer.fence, outcome=Outcome.FINISHED),
                )


async def test_claims_at_the_same_instant_exclude_each_other(database: Database) -> None:
    """The dispatcher's own call, from many threads at once, for the same waiting agents."""
    async with running(build_app(database)) as client:
        names = [f"agent-{number}" for number in range(4)]
        sessions = {}
        for name in names:
            agent = FakeAgent(client, name, database.credential(name), slots=5)
            await agent.hello()
            await agent.exchange(agent.status())
            sessions[name] = str(agent.session_id)
    jobs = [database.add_job() for _ in range(16)]
    waiting = [Waiting(name, sessions[name]) for name in names]
    with database.sessions() as session:
        rooms = read_rooms(session, names)
    now = database.job(jobs[0]).queued_at

    def claim() -> list[tuple[str, str, int]]:
        found = dispatch(database.open, waiting, rooms, now=now, lease_seconds=30, mint=str)
        return [(name, offer.job_id, offer.fence) for name, offers in found.offers.items() for offer in offers]

    results = await asyncio.gather(*[asyncio.to_thread(claim) for _ in range(6)])
    claimed = [entry for result in results for entry in result]
    while len(claimed) < 16:
        more = await asyncio.to_thread(claim)
        claimed.extend(more)
    assert Counter(job_id for _, job_id, _ in claimed) == Counter(jobs)
    assert max(Counter(name for name, _, _ in claimed).values()) <= 5
    for name, job_id, fence in claimed:
        job = database.job(job_id)
        assert (job.state, job.agent_name, job.fence) == ("offered", name, fence)


def poll_of(hub: Hub) -> Poll:
    line = hub._lines["factory"]
    assert isinstance(line, Poll)
    return line


@asynccontextmanager
async def served_with_client(database: Database) -> AsyncIterator[tuple[httpx.AsyncClient, Hub]]:
    """Serve the app by a real server, and yield a client of it."""
    async with served(build_app(database)) as server, httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        yield client, server.hub


async def test_a_client_that_hangs_up_is_not_offered_anything(database: Database) -> None:
    async with served_with_client(database) as (client, hub):
        agent = FakeAgent(client, "factory", database.credential("factory"))
        await agent.hello()
        poll = asyncio.create_task(agent.poll())
        await until(lambda: "factory" in hub._lines)
        poll.cancel()
        await until(lambda: "factory" not in hub._lines)
        job_id = database.add_job()
        # A look that was under way may have claimed it for the poll that left; then it has come back.
        assert [offer.job_id for offer in await agent.offers()] == [job_id]


async def test_an_offer_claimed_for_a_client_that_hung_up_goes_back(database: Database) -> None:
    async with served_with_client(database) as (client, hub):
        agent = FakeAgent(client, "factory", database.credential("factory"))
        await agent.hello()
        job_id = database.add_job(queue="later")
        poll = asyncio.create_task(agent.poll())
        await until(lambda: "factory" in hub._lines)
        hub.leave(poll_of(hub))
        database.set_job(job_id, state="offered", agent_name="factory", fence=1)
        offer = Offer(
            job_id=job_id,
            fence=1,
            kind="task",
            slots=1,
            queue="later",
            lease_seconds=9,
            label="",
            token="",
            workload={},
        )
        await hub.return_offers([offer])
        job = database.job(job_id)
        assert (job.state, job.agent_name, job.fence) == ("queued", None, 1)
        await poll


SERVER = """
import asyncio, socket, sys
import uvicorn
from integration.server_api.kit import Database, build_app
database = Database(sys.argv[1], fresh=False)
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
server = uvicorn.Server(uvicorn.Config(build_app(database), log_config=None, timeout_graceful_shutdown=60))
asyncio.run(server.serve(sockets=[listener]))
"""


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_server_told_to_stop_does_not_wait_for_polls(tmp_path: Path, number: signal.Signals) -> None:
    url = f"sqlite:///{tmp_path}/metadata.db"
    database = Database(url)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, url, stdout=asyncio.subprocess.PIPE, env=env
    )
    try:
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            agent = FakeAgent(client, "factory", database.credential("factory"), instance_id=str(uuid.uuid4()))
            await agent.hello()
            content = encode_batch([agent.status()], session_id=agent.session_id, wait_seconds=5)
            poll = asyncio.create_task(agent.post(content))
            await until(lambda: database.agent("factory").state == "idle")
            started = time.monotonic()
            process.send_signal(number)
            assert (await poll).json()["frames"] == []
            await asyncio.wait_for(process.wait(), 4)
            assert time.monotonic() - started < 2
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        database.dispose()
