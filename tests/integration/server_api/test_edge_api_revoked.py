"""What an agent that was revoked may still do: finish what it holds. And what a stolen copy of it may not."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from airflow_edge_agent.adapters.credential import possession
from airflow_edge_agent.adapters.keys import new_private_key
from airflow_edge_agent.protocol.codec import pack_log
from airflow_edge_agent.protocol.frames import (
    Accept,
    AcceptAck,
    Cancel,
    Close,
    HeldJob,
    Log,
    LogAck,
    NewKey,
    Offer,
    Result,
    ResultAck,
    Rotate,
    Started,
    Welcome,
)
from airflow_edge_agent.protocol.jobs import Outcome
from airflow_edge_server.api import auth, relay
from airflow_edge_server.store import enrolment, finishing, queue
from airflow_edge_server.store.models import EdgeAgentCredential
from integration.server_api.channel_kit import ChannelAgent, served
from integration.server_api.kit import SETTINGS, Database, FakeAgent, MakeAgent, build_app, only, running, until

GRACE_SECONDS = SETTINGS.revoke_grace_seconds


async def fine(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(scope["path"])(scope, receive, send)


@pytest.fixture(autouse=True)
def nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (auth, relay):
        monkeypatch.setattr(module, "CACHE_SECONDS", 0)


@pytest.fixture
async def client(database: Database) -> AsyncIterator[httpx.AsyncClient]:
    async with running(build_app(database, execution=fine, sign=lambda *_: "token")) as client:
        yield client


def revoke(database: Database, *, jobs: Any = "finish") -> None:
    with database.sessions() as session:
        assert enrolment.revoke_agent(session, "factory", jobs=jobs, by="me") is not None


def valid(database: Database) -> list[str]:
    with database.sessions() as session:
        ids = session.scalars(select(EdgeAgentCredential.id).where(EdgeAgentCredential.revoked_at.is_(None)))
        return list(ids)


async def holding(database: Database, agent: FakeAgent) -> Offer:
    """Have the agent run one job, which it relays."""
    job_id = database.add_job()
    await agent.hello(execution_api="relay")
    offer = await agent.take(start=True)
    assert offer.job_id == job_id
    return offer


async def call(agent: FakeAgent, offer: Offer, path: str = "variables/x", method: str = "GET") -> int:
    headers = {**agent.headers, "Edge-Agent-Fence": str(offer.fence)}
    url = f"/v1/jobs/{offer.job_id}/execution/{path}"
    return (await agent.client.request(method, url, headers=headers)).status_code


async def shut_out(agent: FakeAgent) -> bool:
    return (await agent.post(b'{"frames": []}')).status_code == 401


async def test_its_jobs_finish_with_all_that_belongs_to_them(database: Database, agent: FakeAgent) -> None:
    offer = await holding(database, agent)
    revoke(database)
    ti_id = database.job(offer.job_id).ti_id
    assert valid(database) == []
    assert await call(agent, offer, f"task-instances/{ti_id}/heartbeat", "PUT") == 200
    assert await call(agent, offer, "xcoms/dag/run/task/return_value", "POST") == 200
    (log_ack,) = only(await agent.exchange(Log(job_id=offer.job_id, offset=0, data=pack_log(b"one\n"))), LogAck)
    assert log_ack.next_offset == 4
    assert await agent.poll(used=1, wait=0.3) == [], "it is still heard, and told nothing new"
    assert await call(agent, offer, f"task-instances/{ti_id}/state", "PATCH") == 200
    only(
        await agent.exchange(Result(job_id=offer.job_id, fence=offer.fence, outcome=Outcome.FINISHED, log_bytes=8)),
        ResultAck,
    )
    assert await call(agent, offer) == 404, "the job has ended"
    # The rest of the log comes after the result.
    (log_ack,) = only(await agent.exchange(Log(job_id=offer.job_id, offset=4, data=pack_log(b"two\n"))), LogAck)
    assert log_ack.next_offset == 8
    assert await shut_out(agent)
    assert database.log(offer.job_id) == b"one\ntwo\n"
    assert database.job(offer.job_id).outcome == "finished"


async def test_a_standing_connection_ends_with_the_last_job(database: Database) -> None:
    async with served(build_app(database)) as site, httpx.AsyncClient(base_url=site.url) as client:
        agent = ChannelAgent(client, "factory", database.credential("factory"), url=site.url)
        await agent.open()
        first, second = database.add_job(), database.add_job()
        await agent.ready()
        offers = {offer.job_id: offer for offer in [await agent.take_one(start=True), await agent.take_one(start=True)]}
        assert set(offers) == {first, second}
        await until(lambda: database.job(second).state == database.job(first).state == "running")
        revoke(database)
        waiting = database.add_job()
        for number, job_id in enumerate(offers):
            await agent.ready(used=2 - number)
            await agent.send(Result(job_id=job_id, fence=offers[job_id].fence, outcome=Outcome.FINISHED))
            await agent.hear(ResultAck)
        ended = time.monotonic()
        assert await agent.closed() == 1008
        assert time.monotonic() - ended < 2
        assert not [frame for frame in agent.heard if isinstance(frame, Offer | Rotate)]
        assert database.job(waiting).state == "queued"


async def test_without_a_job_it_is_shut_out_at_once(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    revoke(database)
    assert await shut_out(agent)


@pytest.mark.parametrize("jobs", ["cancel", "cancel after all"])
async def test_with_cancel_it_is_shut_out_at_once(database: Database, agent: FakeAgent, jobs: str) -> None:
    offer = await holding(database, agent)
    if jobs == "cancel after all":
        revoke(database)
        assert await call(agent, offer) == 200
    revoke(database, jobs="cancel")
    assert await call(agent, offer) == 401
    assert await shut_out(agent)
    with database.sessions() as session:
        assert [lost.id for lost in queue.end_revoked(session, after_seconds=0)] == [offer.job_id]


async def test_a_stolen_copy_cannot_do_more_than_finish(
    database: Database, agent: FakeAgent, make_agent: MakeAgent
) -> None:
    """All that an agent can ask for, by one that has everything of the revoked one: credential, ids and session."""
    other = make_agent("other", queues=["elsewhere"])
    foreign = database.add_job(queue="elsewhere")
    await other.hello(execution_api="relay")
    taken = await other.take(start=True)
    assert taken.job_id == foreign
    offered = database.add_job()
    await agent.hello(execution_api="relay")
    (unanswered,) = await agent.offers()
    offer = await holding_also(database, agent, seen=offered)
    revoke(database)
    waiting, before = database.add_job(), valid(database)
    # No jobs: neither new ones, nor what was offered before, nor others', nor by claiming them.
    assert await agent.offers(wait=0.5) == []
    (refused,) = only(await agent.exchange(Accept(job_id=offered, fence=unanswered.fence)), Cancel)
    assert (refused.job_id, refused.reason) == (offered, "the agent was revoked: it gets no jobs any more")
    assert (database.job(offered).state, database.job(offered).agent_name) == ("queued", None)
    held = [HeldJob(job_id=offer.job_id, fence=offer.fence, phase="running")]
    claims = [HeldJob(job_id=job_id, fence=1, phase="running") for job_id in (waiting, offered, foreign)]
    welcome, *told = await agent.hello(*held, *claims, execution_api="relay")
    assert isinstance(welcome, Welcome)
    assert {frame.job_id for frame in told if isinstance(frame, Cancel)} == {waiting, offered, foreign}
    assert {frame.job_id for frame in told if isinstance(frame, AcceptAck)} == {offer.job_id}
    states = {job_id: database.job(job_id) for job_id in (waiting, offered, foreign)}
    assert [(job.state, job.agent_name) for job in states.values()] == [
        ("queued", None), ("queued", None), ("running", "other"),
    ]  # fmt: skip
    for job_id, fence in ((waiting, 1), (offered, unanswered.fence), (foreign, taken.fence)):
        assert await call(agent, replace_job(offer, job_id, fence)) == 404
        await agent.exchange(Started(job_id=job_id, fence=fence, pid=1))
        await agent.exchange(Result(job_id=job_id, fence=fence, outcome=Outcome.FINISHED))
    assert [database.job(job_id).outcome for job_id in states] == [None, None, None]
    # Nor another task instance of Airflow's, by a job that it holds.
    strange = database.job(foreign).ti_id
    assert await call(agent, offer, f"task-instances/{strange}/state", "PATCH") == 403
    # No other credential: neither by replacement nor by enrolment.
    public, signature = possession(new_private_key(), agent.credential_id)
    assert await agent.exchange(NewKey(public_key=public, signature=signature)) == []
    body = {"name": "factory", "public_key": public, "signature": signature}
    body |= {"agent_id": agent.agent_id, "boot_id": agent.boot_id, "hostname": agent.hostname}
    assert (await agent.client.post("/v1/enroll", json=body, headers=agent.headers)).status_code == 401
    assert valid(database) == before
    # It still holds what it held, and nothing else.
    assert await call(agent, offer) == 200
    await agent.exchange(Result(job_id=offer.job_id, fence=offer.fence, outcome=Outcome.FINISHED))
    assert await shut_out(agent)


async def holding_also(database: Database, agent: FakeAgent, *, seen: str) -> Offer:
    """Have the agent take one job more than the one that it was offered before."""
    job_id = database.add_job()
    (offer,) = [offer for offer in await agent.offers(used=1) if offer.job_id != seen]
    assert offer.job_id == job_id
    await agent.exchange(Accept(job_id=job_id, fence=offer.fence), Started(job_id=job_id, fence=offer.fence, pid=1))
    return offer


def replace_job(offer: Offer, job_id: str, fence: int) -> Offer:
    return offer.model_copy(update={"job_id": job_id, "fence": fence})


async def test_it_may_come_back_to_its_jobs_but_not_on_another_machine(database: Database, agent: FakeAgent) -> None:
    offer = await holding(database, agent)
    held = HeldJob(job_id=offer.job_id, fence=offer.fence, phase="running")
    revoke(database)
    database.set_agent("factory", last_contact_at=datetime.now(UTC) - timedelta(minutes=5))
    elsewhere = replace(agent, agent_id=str(uuid.uuid4()), instance_id=str(uuid.uuid4()), hostname="host-2")
    (close,) = only(await elsewhere.hello(held, execution_api="relay"), Close)
    assert (close.code, "not the machine" in close.message) == ("name_mismatch", True)
    with database.sessions() as session:
        found = session.get_one(EdgeAgentCredential, agent.credential_id)
        assert (found.agent_id, found.hostname) == (agent.agent_id, agent.hostname)
    # Started again, e.g. by an upgrade of the agent.
    again = replace(agent, instance_id=str(uuid.uuid4()))
    assert isinstance((await again.hello(held, execution_api="relay"))[0], Welcome)
    assert await call(again, offer) == 200
    # Without them there is nothing to come back for.
    assert isinstance((await again.hello(execution_api="relay"))[0], Welcome)
    assert database.job(offer.job_id).outcome == "lost"
    assert await shut_out(agent)


async def test_the_time_for_it_is_bounded(database: Database, agent: FakeAgent) -> None:
    offer = await holding(database, agent)
    revoke(database)
    now = datetime.now(UTC)
    with database.sessions() as session:
        assert finishing.cancel_overdue(session, grace_seconds=GRACE_SECONDS, now=now) == 0
    past = now - timedelta(seconds=GRACE_SECONDS)
    database.set_agent("factory", revoked_at=past)
    with database.sessions() as session:
        session.get_one(EdgeAgentCredential, agent.credential_id).revoked_at = past
    assert await shut_out(agent)
    assert await call(agent, offer) == 401
    with database.sessions() as session:
        assert finishing.cancel_overdue(session, grace_seconds=GRACE_SECONDS, now=now) == 1
        assert [lost.id for lost in queue.end_revoked(session, after_seconds=0)] == [offer.job_id]
    assert database.job(offer.job_id).detail == finishing.OVERDUE


async def test_a_log_that_does_not_come_keeps_nobody_in(
    database: Database, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer = await holding(database, agent)
    revoke(database)
    await agent.exchange(Result(job_id=offer.job_id, fence=offer.fence, outcome=Outcome.FINISHED, log_bytes=8))
    assert not await shut_out(agent)
    monkeypatch.setattr(finishing, "LOG_SECONDS", 0.0)
    assert await shut_out(agent)


async def test_only_the_revocation_opens_this_way(database: Database, agent: FakeAgent) -> None:
    """Credentials that ended otherwise stay shut out, whatever their agent holds."""
    await holding(database, agent)
    database.revoke(agent)
    assert await shut_out(agent), "replaced, while the agent goes on"
    # Nor does its key come back because the agent is revoked later.
    database.credential("factory")
    with database.sessions() as session:
        session.get_one(EdgeAgentCredential, agent.credential_id).revoked_at = datetime.now(UTC) - timedelta(days=1)
    revoke(database)
    assert await shut_out(agent)
    # Nor if it is too old.
    with database.sessions() as session:
        found = session.get_one(EdgeAgentCredential, agent.credential_id)
        found.revoked_at = datetime.now(UTC)
        session.flush()
    assert not await shut_out(agent)
    with database.sessions() as session:
        session.get_one(EdgeAgentCredential, agent.credential_id).expires_at = datetime.now(UTC)
    assert await shut_out(agent)


async def test_who_was_enrolled_again_is_not_held_to_it(database: Database, agent: FakeAgent) -> None:
    offer = await holding(database, agent)
    revoke(database)
    with database.sessions() as session:
        token = enrolment.create_join_token(session, name_pattern="factory", queues=["*"], valid_seconds=60).text
    key = new_private_key()
    public, signature = possession(key, "factory")
    body = {"name": "factory", "public_key": public, "signature": signature}
    body |= {"agent_id": agent.agent_id, "boot_id": agent.boot_id, "hostname": agent.hostname}
    answer = await agent.client.post("/v1/enroll", json=body, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200, json.dumps(answer.json())
    assert await call(agent, offer) == 401, "the old key is worth nothing any more"
