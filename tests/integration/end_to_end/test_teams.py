"""Airflow's teams: an executor for each, and agents that get the jobs of their own team alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.agent import AgentProcess
from harness.processes import Keeper
from harness.site import AirflowSite
from harness.teams import BUNDLES, bundle_folders, dag_of, make_site_with_teams, start_with_teams
from harness.waiting import wait_until
from integration.end_to_end.conftest import ENVIRONMENT

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def teams_site(keeper: Keeper, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowSite]:
    root = tmp_path_factory.mktemp("site-teams")
    with make_site_with_teams(root, keeper=keeper, environment=ENVIRONMENT) as site:
        start_with_teams(site)
        yield site


def agent_of(site: AirflowSite, keeper: Keeper, folder: Path, team: str | None) -> AgentProcess:
    name = f"of-{team or 'nobody'}"
    return AgentProcess(
        folder / name,
        keeper=keeper,
        environment=ENVIRONMENT,
        runtime=ENVIRONMENT,
        server_url=site.url,
        token=site.create_join_token(name, *(() if team is None else ("--team", team))),
        name=name,
        concurrency=4,
        bundles=bundle_folders(site),
    )


def test_an_agent_gets_the_jobs_of_its_own_team_alone(teams_site: AirflowSite, keeper: Keeper, tmp_path: Path) -> None:
    site = teams_site
    with (
        agent_of(site, keeper, tmp_path, "red") as red,
        agent_of(site, keeper, tmp_path, None) as nobody,
        agent_of(site, keeper, tmp_path, "blue") as blue,
    ):
        # Blue's agent is not there yet: its jobs wait, although two others serve their queue and are idle.
        for agent in (red, nobody):
            agent.start()
            agent.wait_for_log("connected")
        runs = {name: site.api.trigger_dag(dag_of(name)) for name in BUNDLES}
        for name in ("red", "common"):
            assert site.api.wait_for_run(dag_of(name), runs[name]) == "success"
        waiting = "SELECT count(*) FROM edge_agent_job WHERE team_name = 'blue' AND state = 'queued'"
        wait_until(lambda: site.query(waiting) == [(3,)], seconds=60, what="blue's jobs to wait")
        listed = json.loads(site.cli("edge-agents", "jobs", "--state", "queued", "--output", "json"))
        assert {job["why"] for job in listed} == {"no agent of its team serves queue default"}
        assert "blue" in site.cli("edge-agents", "queues", "--output", "json")
        blue.start()
        assert site.api.wait_for_run(dag_of("blue"), runs["blue"]) == "success"
        done = site.query("SELECT dag_id, team_name, agent_name, count(*) FROM edge_agent_job GROUP BY 1, 2, 3")
        assert sorted(done, key=str) == [
            ("blue_work", "blue", "of-blue", 3),
            ("common_work", None, "of-nobody", 3),
            ("red_work", "red", "of-red", 3),
        ]
        for agent in (red, nobody, blue):
            assert agent.stop() == 0


def test_a_team_that_does_not_exist_is_refused(teams_site: AirflowSite) -> None:
    log = teams_site.logs / "cli.log"
    with pytest.raises(RuntimeError):
        teams_site.cli("edge-agents", "enroll", "--name", "x", "--team", "green")
    assert "there is no team 'green': there are blue, red" in log.read_text()
