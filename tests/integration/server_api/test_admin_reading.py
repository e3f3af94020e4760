"""What the admin API shows, on each database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import event

from airflow_edge_agent.protocol.frames import Heartbeat, Metrics
from airflow_edge_agent.protocol.jobs import JobState
from airflow_edge_agent.protocol.states import DRAINED_BY, AgentState
from airflow_edge_server import __version__
from airflow_edge_server.admin import models
from airflow_edge_server.store.models import EdgeAgent, EdgeAgentEvent, EdgeAgentMetric
from integration.server_api.kit import Database, FakeAgent

pytestmark = pytest.mark.integration

NOW = datetime.now(UTC)


async def get(client: httpx.AsyncClient, path: str, **params: Any) -> Any:
    answer = await client.get(f"/v1/admin{path}", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def add_agent(database: Database, name: str, **values: Any) -> None:
    given: dict[str, Any] = {
        "state": AgentState.IDLE,
        "queues": ["default"],
        "granted_queues": ["*"],
        "slots_total": 4,
        "versions": {"agent": __version__},
        "last_contact_at": NOW,
        **values,
    }
    with database.sessions() as session:
        session.add(EdgeAgent(name=name, **given))


async def test_nothing_is_done_for_those_who_may_not_look(admin: httpx.AsyncClient) -> None:
    document = await get(admin, "/openapi.json")
    routes = [(method, path) for path, methods in document["paths"].items() for method in methods if path != "/me"]
    assert len(routes) > 7
    for role, status in (("nobody", 403), ("", 401)):
        admin.headers["x-role"] = role
        for method, path in [*routes, ("get", "/openapi.json")]:
            answer = await admin.request(method, f"/v1/admin{path.format(name='press', job_id='x', token_id='x')}")
            assert answer.status_code == status, (method, path)
        me = await admin.get("/v1/admin/me")
        assert me.status_code == 401 if role == "" else me.json()["can_view"] is False


async def test_an_agents_token_opens_nothing_here(admin: httpx.AsyncClient, database: Database) -> None:
    admin.headers["x-role"] = ""
    headers = FakeAgent(admin, "press", database.credential("press")).headers
    assert (await admin.get("/v1/admin/agents", headers=headers)).status_code == 401
    # And nobody's session opens the agents' side.
    answer = await admin.post("/v1/exchange", headers={"x-role": "op"}, content=b"{}")
    assert answer.status_code == 401


async def test_agents_are_filtered_sorted_and_paged(admin: httpx.AsyncClient, database: Database) -> None:
    add_agent(database, "press-1", queues=["plant", "übung"], metrics={"cpu_percent": 20.5})
    add_agent(database, "press-2", queues=["plant 2", "50%"], metrics={"cpu_percent": 90})
    add_agent(database, "Press_3", state=AgentState.UNKNOWN, queues=["plant"])
    add_agent(database, "lathe", state=AgentState.MAINTENANCE_MODE, problem="no runtime", maintenance_wanted=True)

    async def names(**params: Any) -> list[str]:
        page = await get(admin, "/agents", **params)
        assert page["total"] >= len(page["items"])
        return [item["name"] for item in page["items"]]

    assert sorted(await names()) == ["Press_3", "lathe", "press-1", "press-2"]
    assert await names(name="press-?") == ["press-1", "press-2"]
    assert await names(name="press_*") == ["Press_3"]
    assert sorted(await names(queue="plant")) == ["Press_3", "press-1"]
    assert await names(queue="übung") == ["press-1"]
    assert await names(queue="50%") == ["press-2"]
    assert await names(queue="5_%") == []
    assert await names(state=["unknown", "maintenance mode"], order_by="-name") in (
        ["lathe", "Press_3"],
        ["Press_3", "lathe"],
    )
    assert await names(problem=True) == ["lathe"]
    assert (await names(order_by="-cpu_percent"))[:2] == ["press-2", "press-1"]
    assert (await names(order_by="cpu_percent"))[:2] == ["press-1", "press-2"]
    page = await get(admin, "/agents", limit=1, offset=1, name="press-*")
    assert (page["total"], [item["name"] for item in page["items"]]) == (2, ["press-2"])
    for bad in ({"order_by": "secret"}, {"limit": 0}, {"limit": 1001}, {"state": "asleep"}, {"name": "x" * 101}):
        assert (await admin.get("/v1/admin/agents", params=bad)).status_code == 422, bad


async def test_who_was_drained_on_the_host_has_no_problem(
    admin: httpx.AsyncClient, database: Database, agent: FakeAgent
) -> None:
    """It tells by the same field why it takes no jobs, and somebody wants it so."""
    why = f"{DRAINED_BY}alice: takes no new jobs until it is resumed"
    await agent.hello()
    await agent.exchange(agent.status(problem=why))
    add_agent(database, "lathe", problem="no runtime")
    database.add_job()
    seen = await get(admin, "/agents/factory")
    assert (seen["problem"], seen["drained"]) == (None, why)
    assert (await get(admin, "/agents/lathe"))["drained"] is None
    assert [one["name"] for one in (await get(admin, "/overview"))["problems"]] == ["lathe"]
    for troubled, names in ((True, ["lathe"]), (False, ["factory"])):
        assert [one["name"] for one in (await get(admin, "/agents", problem=troubled))["items"]] == names
    (job,) = (await get(admin, "/jobs"))["items"]
    assert job["why"] == "2 agents serve it, 1 drained, 1 with a problem"


async def test_an_agent_is_shown_as_it_is(admin: httpx.AsyncClient, database: Database) -> None:
    add_agent(
        database,
        "press",
        state=AgentState.MAINTENANCE_MODE,
        hostname="host-1",
        carrier="websocket",
        maintenance_wanted=True,
        maintenance_comment="new disk",
        maintenance_by="otto",
        maintenance_since=NOW,
        versions={"agent": "0.0.1", "python": "3.13"},
        metrics={
            "cpu_percent": 12.5,
            "memory_used_bytes": 1,
            "memory_total_bytes": 4,
            "state_disk_used_bytes": 30,
            "state_disk_total_bytes": 40,
            "custom": {"ups": {"charge": 97}},
        },
    )
    database.add_job(agent_name="press", state="running")
    database.add_job(agent_name="press", state="finished", outcome="finished", finished_at=NOW)
    shown = await get(admin, "/agents/press")
    assert shown["state"] == "maintenance mode"
    assert shown["connected"] is True
    assert shown["jobs"] == 1
    assert shown["carrier"] == "websocket"
    assert shown["maintenance"]["comment"] == "new disk"
    assert shown["maintenance"]["wanted"] is True
    assert "0.0.1" in shown["warnings"][0]
    metrics = shown["metrics"]
    assert (metrics["cpu_percent"], metrics["memory_percent"], metrics["disk_percent"]) == (12.5, 25, 75)
    assert metrics["custom"] == {"ups": {"charge": 97}}
    assert (await admin.get("/v1/admin/agents/none")).status_code == 404
    assert (await admin.get("/v1/admin/agents/none/events")).status_code == 404


async def test_history_and_events_are_shown(admin: httpx.AsyncClient, database: Database) -> None:
    add_agent(database, "press")
    minute = NOW.replace(second=0, microsecond=0)
    with database.sessions() as session:
        for ago in (200, 2, 1):
            at = minute - timedelta(minutes=ago)
            session.add(EdgeAgentMetric(agent_name="press", at=at, cpu_percent=ago, memory_used_bytes=2**40))
        for n in range(5):
            session.add(EdgeAgentEvent(agent_name="press", at=NOW, kind="connected", detail=f"{n}"))
    history = await get(admin, "/agents/press/metrics", minutes=60)
    assert [point["cpu_percent"] for point in history["points"]] == [2, 1]
    first = await get(admin, "/agents/press/events", limit=3)
    assert ([item["detail"] for item in first["items"]], first["more"]) == (["4", "3", "2"], True)
    rest = await get(admin, "/agents/press/events", limit=3, before=first["items"][-1]["id"])
    assert ([item["detail"] for item in rest["items"]], rest["more"]) == (["1", "0"], False)


async def test_a_queue_that_nobody_serves_is_told_loudly(admin: httpx.AsyncClient, database: Database) -> None:
    add_agent(database, "press", queues=["plant"], granted_queues=["*"], slots_total=1, slots_used=1)
    database.add_job(queue="plant", queued_at=NOW - timedelta(seconds=90))
    database.add_job(queue="plant", state="running", agent_name="press")
    database.add_job(queue="moon", slots=1)
    queues = {item["name"]: item for item in (await get(admin, "/queues"))["items"]}
    assert next(iter(queues)) == "moon"
    assert queues["moon"]["warning"] == "jobs wait, and no agent serves this queue"
    plant = queues["plant"]
    assert (plant["queued"], plant["running"], plant["agents"], plant["warning"]) == (1, 1, 1, None)
    assert plant["oldest_waiting_seconds"] >= 90
    jobs = (await get(admin, "/jobs", state="queued"))["items"]
    assert {job["queue"]: job["why"] for job in jobs} == {
        "plant": "1 agent serves it, all full",
        "moon": "no agent serves queue moon",
    }
    overview = await get(admin, "/overview")
    assert overview["queues_without_agent"] == ["moon"]
    assert (overview["jobs_queued"], overview["jobs_running"]) == (2, 1)
    assert (overview["slots_used"], overview["slots_total"]) == (1, 1)


async def test_jobs_tell_what_they_used(admin: httpx.AsyncClient, database: Database) -> None:
    usage = {"wall_seconds": 2.5, "cpu_seconds": 1.5, "peak_memory_bytes": 2**31}
    database.add_job(
        state="finished", agent_name="press", outcome="killed", usage=usage, finished_at=NOW, map_index=3, queued_at=NOW
    )
    database.add_job(dag_id="other", queued_at=NOW - timedelta(hours=1))
    for agent in ("press", "pr*", "pres?"):
        assert (await get(admin, "/jobs", agent=agent))["total"] == 1
    assert (await get(admin, "/jobs", agent="pr_ss"))["total"] == (await get(admin, "/jobs", agent="p?"))["total"] == 0
    (job,) = (await get(admin, "/jobs", agent="press"))["items"]
    assert (job["wall_seconds"], job["cpu_seconds"], job["peak_memory_bytes"]) == (2.5, 1.5, 2**31)
    assert (job["dag_id"], job["map_index"], job["outcome"], job["why"]) == ("dag", 3, "killed", None)
    assert "workload" not in job
    assert (await get(admin, "/jobs", dag_id="other"))["total"] == 1
    assert (await get(admin, "/jobs"))["items"][0]["id"] == job["id"]
    assert (await get(admin, "/overview"))["finished_last_hour_by_outcome"] == {"killed": 1}


async def test_a_page_takes_as_many_queries_for_many_agents(admin: httpx.AsyncClient, database: Database) -> None:
    add_agent(database, "a")
    counts = []
    for many in (False, True):
        if many:
            with database.sessions() as session:
                for n in range(300):
                    session.add(
                        EdgeAgent(name=f"b{n}", state="idle", queues=[f"q{n}", "default"], slots_total=2, versions={})
                    )
                    database_state = "queued" if n % 2 else "running"
            for n in range(3):
                database.add_job(queue=f"q{n}", state=database_state)
        told: list[str] = []
        listen = lambda *args, told=told: told.append(args[2])  # noqa: E731
        event.listen(database.engine, "before_cursor_execute", listen)
        for path in ("/agents?limit=1000", "/queues", "/jobs", "/overview"):
            await get(admin, path)
        event.remove(database.engine, "before_cursor_execute", listen)
        counts.append(len(told))
    assert abs(counts[1] - counts[0]) <= 4


async def test_who_is_away_has_left_something_behind(admin: httpx.AsyncClient, database: Database) -> None:
    """Since when, until when it may come back, and what it works on, as far as the server knows."""
    heard = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=2)
    figures = {"results_waiting": 2}
    add_agent(database, "factory", state=AgentState.UNKNOWN, last_contact_at=heard, metrics=figures)
    add_agent(database, "press", state=AgentState.OFFLINE, last_contact_at=heard)
    for lease in (600.0, 1_800.0):
        database.add_job(disconnect_lease_seconds=lease, state=JobState.RUNNING.value, agent_name="factory")
    listed = {one["name"]: one for one in (await get(admin, "/agents"))["items"]}
    shown = await get(admin, "/agents/factory")
    assert listed["factory"]["away"] == shown["away"]
    away = models.AwayView.model_validate(shown["away"])
    # Of the first to be given up.
    assert away == models.AwayView(since=heard, lease_until=heard + timedelta(minutes=10), running=2, results_waiting=2)
    # It has said goodbye and left nothing.
    assert listed["press"]["away"] is None


async def test_results_that_wait_are_told_with_the_heartbeat(admin: httpx.AsyncClient, agent: FakeAgent) -> None:
    await agent.hello()
    beat = Heartbeat(metrics=Metrics(cpu_percent=5), sent_at=datetime.now(UTC), results_waiting=2)
    await agent.exchange(agent.status(), beat)
    seen = await get(admin, "/agents/factory")
    assert (seen["away"], seen["results_waiting"]) == (None, 2)
