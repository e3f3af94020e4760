"""Where Airflow has teams: who belongs to one sees and changes what is of it and of none, and nothing else."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from airflow_edge_agent.protocol.states import AgentState
from airflow_edge_server.store import enrolment
from airflow_edge_server.store.models import EdgeAgent
from integration.server_api.kit import Database, add_audit_log

pytestmark = pytest.mark.integration


@pytest.fixture
def jobs(database: Database) -> dict[str | None, str]:
    """Return a waiting job of each team, whose agents report problems so that all of it is to be seen."""
    add_audit_log(database)
    with database.sessions() as session:
        for team in ("red", "blue", None):
            name = f"of-{team or 'nobody'}"
            session.add(
                EdgeAgent(
                    name=name,
                    team_name=team,
                    state=AgentState.IDLE,
                    queues=[f"queue-{team}"],
                    slots_total=4,
                    problem="no runtime",
                )
            )
            enrolment.create_join_token(session, name_pattern=name, queues=["*"], valid_seconds=60, team=team)
    return {team: database.add_job(team_name=team, queue=f"queue-{team}") for team in ("red", "blue", None)}


@pytest.fixture
def rita(client: httpx.AsyncClient) -> httpx.AsyncClient:
    """The client as an operator of the red team."""
    client.headers["x-role"] = "red"
    return client


async def get(client: httpx.AsyncClient, path: str) -> Any:
    answer = await client.get(f"/v1/admin{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_what_is_of_other_teams_is_not_seen(rita: httpx.AsyncClient, jobs: dict[str | None, str]) -> None:
    agents = await get(rita, "/agents")
    assert (agents["total"], [one["name"] for one in agents["items"]]) == (2, ["of-nobody", "of-red"])
    listed = await get(rita, "/jobs")
    assert listed["total"] == 2
    assert {one["id"] for one in listed["items"]} == {jobs["red"], jobs[None]}
    assert {one["team"] for one in (await get(rita, "/queues"))["items"]} == {"red", None}
    assert {one["team"] for one in (await get(rita, "/join-tokens"))["items"]} == {"red", None}
    glance = await get(rita, "/overview")
    figures = ("agents", "agents_connected", "slots_total", "jobs_queued", "problems_total")
    assert [glance[figure] for figure in figures] == [2, 2, 8, 2, 2]
    assert [one["name"] for one in glance["problems"]] == ["of-nobody", "of-red"]
    assert (await get(rita, "/agents/of-red"))["team"] == "red"
    for path in ("", "/metrics", "/events"):
        assert (await rita.get(f"/v1/admin/agents/of-blue{path}")).status_code == 404, path
    assert (await get(rita, "/agents/of-blue/jobs"))["items"] == []
    assert "blue" not in (await rita.get("/v1/admin/jobs", params={"id": jobs["blue"]})).text
    rita.headers["x-role"] = "op"
    assert (await get(rita, "/agents"))["total"] == 3


async def test_what_is_of_other_teams_is_not_changed(
    rita: httpx.AsyncClient, jobs: dict[str | None, str], database: Database
) -> None:
    for path in ("maintenance", "drain"):
        answer = await rita.post(f"/v1/admin/agents/of-blue/{path}", json={"on": True})
        assert answer.status_code == 404, answer.text
    assert (await rita.delete("/v1/admin/agents/of-blue")).status_code == 404
    order = {"names": ["of-blue", "of-red", "of-nobody"], "action": "drain"}
    done = (await rita.post("/v1/admin/agents/bulk", json=order)).json()
    assert [(one["name"], one["ok"]) for one in done["results"]] == [
        ("of-blue", False),
        ("of-nobody", True),
        ("of-red", True),
    ]
    assert database.agent("of-blue").drain_wanted is None
    assert database.agent("of-red").drain_wanted is True
    assert (await rita.post(f"/v1/admin/jobs/{jobs['blue']}/cancel", json={})).status_code == 404
    assert database.job(jobs["blue"]).state == "queued"
    assert (await rita.post(f"/v1/admin/jobs/{jobs['red']}/cancel", json={})).status_code == 200
    for name, status in (("of-blue", 409), ("of-red", 201), ("of-*", 201)):
        answer = await rita.post("/v1/admin/join-tokens", json={"name_pattern": name, "queues": ["*"]})
        assert answer.status_code == status, "whoever has a token for exactly one name takes it over"
    with database.sessions() as session:
        tokens = {row.team_name: row.id for row in enrolment.list_join_tokens(session)}
    assert (await rita.delete(f"/v1/admin/join-tokens/{tokens['blue']}")).status_code == 404
    assert (await rita.delete(f"/v1/admin/join-tokens/{tokens['red']}")).status_code == 200
