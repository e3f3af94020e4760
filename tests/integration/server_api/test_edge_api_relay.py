"""Calls that agents relay for their jobs: who may, and what comes through. Behind it, an app that says what it got."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from airflow_edge_agent.protocol.frames import Accept, Offer, Result
from airflow_edge_agent.protocol.jobs import JobState, Outcome
from airflow_edge_server.api import relay
from integration.server_api.kit import SETTINGS, Database, FakeAgent, build_app, running

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive)
    body = await request.body()
    got = {
        "method": request.method,
        "path": scope["path"],
        "raw_path": scope["raw_path"].decode(),
        "query": scope["query_string"].decode(),
        "headers": dict(request.headers),
        "body": len(body),
    }
    headers = {
        "Refreshed-API-Token": "a token of Airflow's",
        "Set-Cookie": "session=1",
        "Content-Range": "7",
        "Airflow-API-Version": "2026-01-01",
        "Content-Type": "application/json",
    }
    await Response(json.dumps(got), status_code=409, headers=headers)(scope, receive, send)


@pytest.fixture
async def client(database: Database) -> AsyncIterator[httpx.AsyncClient]:
    app = build_app(database, execution=echo, sign=lambda subject, scope: f"{scope} of {subject}")
    async with running(app) as client:
        yield client


async def accepted(agent: FakeAgent, database: Database, **given: Any) -> Offer:
    job_id = database.add_job(**given)
    await agent.hello(execution_api="relay")
    offers = [frame for frame in await agent.poll() if isinstance(frame, Offer)]
    assert [offer.job_id for offer in offers] == [job_id]
    await agent.exchange(Accept(job_id=job_id, fence=offers[0].fence))
    return offers[0]


async def call(
    agent: FakeAgent, job_id: str, path: str, *, fence: int = 1, method: str = "GET", **options: Any
) -> httpx.Response:
    headers = {**agent.headers, "Edge-Agent-Fence": str(fence), **options.pop("headers", {})}
    url = f"/v1/jobs/{job_id}/execution/{path}"
    return await agent.client.request(method, url, headers=headers, **options)


async def test_an_agent_that_relays_gets_no_token(database: Database, agent: FakeAgent) -> None:
    assert (await accepted(agent, database)).token == ""


async def test_an_agent_that_does_not_gets_one(database: Database, agent: FakeAgent) -> None:
    job_id = database.add_job()
    await agent.hello()
    (offer,) = [frame for frame in await agent.poll() if isinstance(frame, Offer)]
    assert (offer.job_id, offer.token) == (job_id, f"token of {database.job(job_id).ti_id}")


async def test_a_lease_begins_when_the_agent_counts_as_away(database: Database) -> None:
    """So an outage as long as it is configured is bridged, and there is time to come back."""
    settings = replace(SETTINGS, disconnect_lease_seconds=1_800, disconnect_leases={"lab": 60.0, "never": 0.0})
    expected = {"default": 1_875, "lab": 135, "never": 0}
    jobs = {database.add_job(queue=queue): seconds for queue, seconds in expected.items()}
    async with running(build_app(database, settings=settings)) as client:
        agent = FakeAgent(client, "press", database.credential("press"), queues=[*expected], slots=3)
        await agent.hello(execution_api="relay")
        offers = [frame for frame in await agent.poll() if isinstance(frame, Offer)]
    assert {offer.job_id: offer.disconnect_lease_seconds for offer in offers} == jobs
    assert {job_id: database.job(job_id).disconnect_lease_seconds or 0 for job_id in jobs} == jobs


async def test_a_call_goes_through_with_a_token_made_for_it(database: Database, agent: FakeAgent) -> None:
    offer = await accepted(agent, database)
    ti_id = database.job(offer.job_id).ti_id
    answer = await call(
        agent,
        offer.job_id,
        "xcoms/dag/run%3A1/task/a%2Fb?map_index=-1",
        method="POST",
        content=b"x" * 300_000,
        headers={"Airflow-API-Version": "2025-10-27", "Cookie": "x=1", "X-Forwarded-User": "admin"},
    )
    got = answer.json()
    assert answer.status_code == 409, "a status is passed on as it is"
    assert (got["method"], got["path"], got["raw_path"], got["query"], got["body"]) == (
        "POST", "/xcoms/dag/run:1/task/a/b", "/xcoms/dag/run%3A1/task/a%2Fb", "map_index=-1", 300_000,
    )  # fmt: skip
    assert got["headers"]["authorization"] == f"Bearer execution of {ti_id}"
    assert got["headers"]["airflow-api-version"] == "2025-10-27"
    assert not {"cookie", "x-forwarded-user", "edge-agent-fence"} & set(got["headers"])
    assert agent.prover.header().removeprefix("Bearer ") not in answer.text
    assert answer.headers["content-range"] == "7"
    assert answer.headers["edge-agent-relayed"] == "airflow"
    assert not {"refreshed-api-token", "set-cookie"} & set(answer.headers)
    started = await call(agent, offer.job_id, f"task-instances/{ti_id}/run", method="PATCH", content=b"{}")
    assert started.json()["headers"]["authorization"] == f"Bearer workload of {ti_id}"


async def test_a_job_of_another_agent_is_not_to_be_found(database: Database, agent: FakeAgent, make_agent: Any) -> None:
    offer = await accepted(agent, database)
    other = make_agent("other")
    await other.hello()
    answer = await call(other, offer.job_id, "variables/x")
    assert (answer.status_code, answer.headers["edge-agent-relayed"]) == (404, "refused")
    assert (await call(agent, offer.job_id, "variables/x")).status_code == 409
    proof = other.prover.header().removeprefix("Bearer ")
    agent.token = proof[:-4] + ("aaaa" if not proof.endswith("aaaa") else "bbbb")
    assert (await call(agent, offer.job_id, "variables/x")).status_code == 401


async def test_only_the_fence_of_now_counts_and_only_until_the_end(
    database: Database, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "CACHE_SECONDS", 0)
    offer = await accepted(agent, database)
    assert (await call(agent, offer.job_id, "variables/x", fence=2)).status_code == 404
    assert (await call(agent, offer.job_id, "variables/x", headers={"Edge-Agent-Fence": "x"})).status_code == 400
    await agent.exchange(Result(job_id=offer.job_id, fence=1, outcome=Outcome.FINISHED))
    assert database.job(offer.job_id).state == JobState.FINISHED
    assert (await call(agent, offer.job_id, "variables/x")).status_code == 404


async def test_another_task_instance_is_refused(database: Database, agent: FakeAgent) -> None:
    offer = await accepted(agent, database)
    other = database.job(database.add_job()).ti_id
    answer = await call(agent, offer.job_id, f"task-instances/{other}/state", method="PATCH", content=b"{}")
    assert answer.status_code == 403
    assert answer.json()["detail"]["message"] == "that is not this job's own task instance"


async def test_bodies_are_bounded(database: Database, agent: FakeAgent) -> None:
    offer = await accepted(agent, database)
    length = {"Content-Length": str(257 * 1024 * 1024)}
    assert (await call(agent, offer.job_id, "xcoms/d/r/t/k", method="POST", headers=length)).status_code == 413

    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"

    assert (await call(agent, offer.job_id, "xcoms/d/r/t/k", method="POST", content=pieces())).status_code == 411


async def test_the_server_may_insist_on_the_direct_way(database: Database) -> None:
    async with running(build_app(database, settings=replace(SETTINGS, execution_api="direct"))) as client:
        agent = FakeAgent(client, "factory", database.credential("factory"))
        assert (await accepted(agent, database)).token
