"""What the admin API changes, on each database."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from airflow_edge_agent.protocol.frames import Accept, AnyFrame, Controls, Heartbeat, Metrics, Offer, Result, Welcome
from airflow_edge_agent.protocol.states import AgentState
from airflow_edge_server.store import controls, purge
from airflow_edge_server.store.models import EdgeAgent, EdgeAgentEvent, EdgeAgentMetric
from integration.server_api.kit import Database, FakeAgent, MakeAgent, add_audit_log, until

pytestmark = pytest.mark.integration


@pytest.fixture
def op(client: httpx.AsyncClient, database: Database) -> httpx.AsyncClient:
    """The client as somebody who may change things, in a browser."""
    add_audit_log(database)
    client.headers["x-role"] = "op"
    return client


def audited(database: Database) -> list[tuple[str, str, dict[str, Any]]]:
    with database.engine.connect() as connection:
        rows = connection.execute(text("SELECT event, owner, extra FROM log ORDER BY id"))
        return [(row.event.removeprefix("edge_agents."), row.owner, json.loads(row.extra)) for row in rows]


async def post(client: httpx.AsyncClient, path: str, status: int = 200, **body: Any) -> Any:
    answer = await client.post(f"/v1/admin{path}", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def events(database: Database, name: str) -> list[tuple[str, str | None, str | None]]:
    with database.sessions() as session:
        rows = session.query(EdgeAgentEvent).filter_by(agent_name=name).order_by(EdgeAgentEvent.id)
        return [(row.kind, row.detail, row.by) for row in rows]


async def shut_out(agent: FakeAgent) -> None:
    """Wait until its token is good for nothing any more: within two seconds."""
    async with asyncio.timeout(2):
        while (await agent.post(b"{}")).status_code != 401:  # noqa: ASYNC110  only asking tells
            await asyncio.sleep(0.05)


async def test_only_who_may_change_changes_something(op: httpx.AsyncClient, agent: FakeAgent) -> None:
    await agent.hello()
    document = (await op.get("/v1/admin/openapi.json")).json()
    changes = [
        (method, path.format(name=agent.name, job_id="x", token_id="x"))
        for path, methods in document["paths"].items()
        for method in methods
        if method != "get"
    ]
    assert len(changes) > 9
    op.headers["x-role"] = "viewer"
    for method, path in changes:
        answer = await op.request(method, f"/v1/admin{path}", headers={"Content-Type": "application/json"})
        assert answer.status_code == 403, (method, path)
        assert "edit pools" in answer.json()["detail"]


async def test_another_sites_page_changes_nothing(op: httpx.AsyncClient, agent: FakeAgent, database: Database) -> None:
    await agent.hello()
    path, body = f"/v1/admin/agents/{agent.name}/drain", b'{"on": true}'
    for headers in (
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json", "Sec-Fetch-Site": "cross-site"},
        {"Content-Type": "application/json", "Sec-Fetch-Site": "same-site"},
    ):
        assert (await op.post(path, content=body, headers=headers)).status_code == 403, headers
    answer = await op.request("DELETE", f"/v1/admin/agents/{agent.name}", headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403
    assert database.agent(agent.name).drain_wanted is None
    headers = {"Content-Type": "application/json", "Sec-Fetch-Site": "same-origin"}
    assert (await op.post(path, content=body, headers=headers)).status_code == 200


async def test_a_body_that_is_too_large_is_not_read(op: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await op.post("/v1/admin/agents/bulk", content=b"[" + b" " * 300_000, headers=headers)
    assert answer.status_code == 413


async def test_maintenance_ends_by_itself_and_tells_who_wanted_it(
    op: httpx.AsyncClient, agent: FakeAgent, database: Database
) -> None:
    await agent.hello()
    done = await post(op, f"/agents/{agent.name}/maintenance", on=True, comment="new disk", for_seconds=3600)
    assert done == {"name": agent.name, "ok": True, "message": "is told to enter maintenance", "code": None}
    shown = (await op.get(f"/v1/admin/agents/{agent.name}")).json()["maintenance"]
    assert (shown["wanted"], shown["comment"], shown["by"]) == (True, "new disk", "otto")
    assert shown["until"] is not None
    verb, who, facts = audited(database)[0]
    assert (verb, who, facts["agent"], facts["comment"]) == ("maintenance_on", "otto", agent.name, "new disk")
    assert facts["from"] == "127.0.0.1"
    with database.sessions() as session:
        assert controls.end_due_maintenance(session, datetime.now(UTC)) == []
        assert controls.end_due_maintenance(session, datetime.now(UTC) + timedelta(hours=2)) == [agent.name]
    assert database.agent(agent.name).maintenance_wanted is False
    assert ("maintenance", "on, new disk", "otto") in [
        (kind, (detail or "").partition(", until")[0], by) for kind, detail, by in events(database, agent.name)
    ]
    await post(op, f"/agents/{agent.name}/maintenance", 422, on=True, for_seconds=-1)
    await post(op, f"/agents/{agent.name}/maintenance", 422, on=True, comment="a\x1b[31m")
    await post(op, f"/agents/{agent.name}/maintenance", 422, on=True, coment="misspelt")


async def test_a_drained_agent_is_offered_nothing(op: httpx.AsyncClient, agent: FakeAgent, database: Database) -> None:
    await agent.hello()
    await post(op, f"/agents/{agent.name}/drain")
    (told,) = await agent.poll()
    assert isinstance(told, Controls)
    assert told.drain
    job_id = database.add_job()
    assert await agent.poll(wait=0.3, controls=told.revision) == []
    jobs = (await op.get("/v1/admin/jobs")).json()["items"]
    assert jobs[0]["why"] == "1 agent serves it, drained"
    await post(op, f"/agents/{agent.name}/drain", on=False)
    frames: list[AnyFrame] = []
    async with asyncio.timeout(20):
        while {frame.type for frame in frames} != {"controls", "offer"}:
            frames += await agent.poll(controls=told.revision, wait=1)
    assert job_id in [frame.job_id for frame in frames if isinstance(frame, Offer)]
    assert [verb for verb, _, _ in audited(database)] == ["drain", "resume"]


async def test_slots_and_queues_are_told_and_last(op: httpx.AsyncClient, agent: FakeAgent, database: Database) -> None:
    agent.queues = ["plant", "lab"]
    await agent.hello(configuration={"concurrency": 4})
    await post(op, f"/agents/{agent.name}/concurrency", slots=2)
    await post(op, f"/agents/{agent.name}/queues", add=["night"], remove=["lab"])
    frames = await agent.poll()
    told = frames[-1]
    assert isinstance(told, Controls)
    assert (told.slots, told.queues_added, told.queues_removed, told.revision) == (2, ["night"], ["lab"], 2)
    # It obeys, and is told no more.
    assert await agent.poll(wait=0.3, controls=2, queues=["night", "plant"]) == []
    # It comes back with what it is configured with, and is taken for what it is to be.
    welcome = (await agent.hello())[0]
    assert isinstance(welcome, Welcome)
    assert welcome.controls == told
    row = database.agent(agent.name)
    assert (row.queues, row.slots_total) == (["night", "plant"], 2)
    shown = (await op.get(f"/v1/admin/agents/{agent.name}")).json()
    assert shown["overrides"] == {"slots": 2, "queues_added": ["night"], "queues_removed": ["lab"], "drain": False}
    await post(op, f"/agents/{agent.name}/queues", reset=True)
    await post(op, f"/agents/{agent.name}/concurrency", slots=None)
    assert database.agent(agent.name).queues_added is None
    await post(op, f"/agents/{agent.name}/queues", 409)
    await post(op, f"/agents/{agent.name}/queues", 409, add=["a"], remove=["a"])
    await post(op, f"/agents/{agent.name}/concurrency", 422, slots=0)
    await post(op, "/agents/none/concurrency", 404, slots=1)


async def test_only_an_agent_that_is_offline_is_removed(
    op: httpx.AsyncClient, agent: FakeAgent, database: Database
) -> None:
    await agent.hello()
    path = f"/v1/admin/agents/{agent.name}"
    answer = await op.delete(path)
    assert answer.status_code == 409
    assert "only an agent that is offline" in answer.json()["detail"]
    database.set_agent(agent.name, state=AgentState.UNKNOWN)
    job_id = database.add_job(agent_name=agent.name, state="running")
    assert (await op.delete(path)).status_code == 409
    database.set_job(job_id, state="finished")
    assert (await op.delete(path)).status_code == 200
    assert (await op.get(path)).status_code == 404
    await shut_out(agent)
    assert [verb for verb, _, _ in audited(database)] == ["delete_agent"]


async def test_a_revoked_agent_is_shut_out(op: httpx.AsyncClient, agent: FakeAgent, database: Database) -> None:
    await agent.hello()
    job_id = database.add_job()
    await agent.take(start=True)
    await post(op, f"/agents/{agent.name}/revoke", running_jobs="cancel")
    await shut_out(agent)
    assert "revoked" in str(database.job(job_id).cancel_reason)
    assert "revoke_agent" in [verb for verb, _, _ in audited(database)]


async def test_many_at_once_and_a_dry_run(op: httpx.AsyncClient, database: Database) -> None:
    with database.sessions() as session:
        session.add_all(EdgeAgent(name=f"a{n}", state="offline", queues=[], versions={}) for n in range(3))
    names = ["a0", "a1", "a2", "none"]
    dry = await post(op, "/agents/bulk", names=names, action="maintenance_on", comment="storm", dry_run=True)
    assert (dry["dry_run"], dry["failed"]) == (True, 1)
    assert audited(database) == []
    assert database.agent("a0").state == "offline"
    done = await post(op, "/agents/bulk", names=names, action="maintenance_on", comment="storm")
    assert dry["results"] == done["results"]
    assert {one["name"]: one["code"] for one in done["results"]} == {
        "a0": None,
        "a1": None,
        "a2": None,
        "none": "not_found",
    }
    assert {database.agent(f"a{n}").state for n in range(3)} == {"offline maintenance"}
    assert len(audited(database)) == 3
    await post(op, "/agents/bulk", 422, names=[], action="drain")
    await post(op, "/agents/bulk", 422, names=["a0"], action="explode")


async def test_a_job_is_cancelled_wherever_it_is(op: httpx.AsyncClient, agent: FakeAgent, database: Database) -> None:
    waiting = database.add_job(queue="moon")
    done = await post(op, f"/jobs/{waiting}/cancel", reason="not needed")
    assert done["name"] == waiting
    job = database.job(waiting)
    assert (job.state, job.outcome, job.detail) == ("finished", "revoked", "cancelled by otto: not needed")
    assert job.reported is False
    await post(op, f"/jobs/{waiting}/cancel", 409)
    await agent.hello()
    running = database.add_job()
    await agent.take(start=True)
    await post(op, f"/jobs/{running}/cancel")
    assert [frame.type for frame in await agent.poll(1)] == ["cancel"]
    await post(op, f"/jobs/{'0' * 8}-0000-0000-0000-{'0' * 12}/cancel", 404)
    assert [verb for verb, _, _ in audited(database)] == ["cancel_job", "cancel_job"]


async def test_join_tokens_are_shown_once(op: httpx.AsyncClient, database: Database) -> None:
    made = await post(op, "/join-tokens", 201, name_pattern="press-*", queues=["plant"], valid_seconds=600, uses=3)
    assert made["token"].startswith(f"eaj_{made['id']}_")
    secret = made["token"].rpartition("_")[2]
    assert set(made["commands"]) == {"deb", "rpm", "manual"}
    assert secret not in json.dumps(made["commands"])
    listed = (await op.get("/v1/admin/join-tokens")).text
    assert made["id"] in listed
    assert secret not in listed
    assert (await op.delete(f"/v1/admin/join-tokens/{made['id']}")).status_code == 200
    assert (await op.get("/v1/admin/join-tokens")).json()["items"][0]["usable"] is False
    assert (await op.delete(f"/v1/admin/join-tokens/{'0' * 16}")).status_code == 404
    await post(op, "/join-tokens", 422, name_pattern="x", queues=[])
    assert secret not in json.dumps(audited(database))


async def test_what_happens_to_an_agent_is_kept_for_a_while(
    op: httpx.AsyncClient, make_agent: MakeAgent, database: Database
) -> None:
    agent = make_agent("press")
    await agent.hello()
    database.add_job(task_id="melt")
    offer = await agent.take(start=True)
    detail = "killed: out of memory, limit 64 MiB"
    await agent.exchange(Result(job_id=offer.job_id, fence=offer.fence, outcome="killed", detail=detail))
    database.set_agent("press", last_contact_at=datetime.now(UTC) - timedelta(seconds=100))
    await make_agent("press", boot_id="boot-2", agent_id=agent.agent_id).hello()
    kinds = [(kind, detail) for kind, detail, _ in events(database, "press")]
    assert kinds[0] == ("connected", "from host host-1, by http")
    assert ("limit", f"dag.melt: {detail}") in kinds
    assert kinds[-1][0] == "reboot"


async def test_history_has_one_row_a_minute_and_is_purged(
    op: httpx.AsyncClient, agent: FakeAgent, database: Database
) -> None:
    await agent.hello()
    for cpu in (10, 20, 30):
        heartbeat = Heartbeat(metrics=Metrics(cpu_percent=cpu, memory_used_bytes=2**40), sent_at=datetime.now(UTC))
        await agent.exchange(agent.status(), heartbeat)
    database.add_job()
    (offer,) = await agent.offers()
    await agent.exchange(Accept(job_id=offer.job_id, fence=offer.fence), heartbeat)
    await until(lambda: bool(_minutes(database)))
    # Two, if the test has seen a minute end.
    assert len(_minutes(database)) <= 2
    with database.sessions() as session:
        assert purge.purge_history(session, metric_days=1, event_days=1).history == 0
        assert purge.purge_history(session, metric_days=0, event_days=0).history >= 2
    assert events(database, agent.name) == []


def _minutes(database: Database) -> list[EdgeAgentMetric]:
    with database.sessions() as session:
        return list(session.query(EdgeAgentMetric))
