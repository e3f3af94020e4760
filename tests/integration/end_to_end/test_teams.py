"""Airflow's teams: an executor for each, and agents that get the jobs of their own team alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.agent import AgentProcess
from harness.processes import Keeper
from harness.site import EDGE_EXECUTOR, AirflowSite
from harness.waiting import wait_until
from integration.end_to_end.conftest import ENVIRONMENT

pytestmark = pytest.mark.integration

TEAMS = ("blue", "red")

DAG = """
from airflow.sdk import dag, task

@dag(dag_id="{name}_work", schedule=None, catchup=False)
def work():
    @task(retries=0)
    def member(number):
        return number
    member.expand(number=[1, 2, 3])

work()
"""


@pytest.fixture(scope="module")
def teams_site(keeper: Keeper, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowSite]:
    """Bundles of two teams, and one that belongs to none."""
    root = tmp_path_factory.mktemp("site-teams")
    bundles = []
    for name in (*TEAMS, "common"):
        folder = root / "dags" / name
        folder.mkdir(parents=True)
        (folder / "work.py").write_text(DAG.format(name=name))
        bundle: dict[str, object] = {
            "name": name,
            "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
            "kwargs": {"path": str(folder)},
        }
        bundles.append(bundle | ({"team_name": name} if name in TEAMS else {}))
    settings = {
        "AIRFLOW__CORE__MULTI_TEAM": "True",
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
    }
    executor = ";".join([EDGE_EXECUTOR, *(f"{team}={EDGE_EXECUTOR}" for team in TEAMS)])
    site = AirflowSite(root, keeper=keeper, environment=ENVIRONMENT, bundles={}, executor=executor, settings=settings)
    with site:
        site.start(["api-server"])
        for team in TEAMS:
            site.cli("teams", "create", team)
        for name in ("scheduler", "dag-processor"):
            site.start_component(name)
        for name in (*TEAMS, "common"):
            site.api.wait_for_dag(f"{name}_work")
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
        bundles={bundle: site.root / "dags" / bundle for bundle in (*TEAMS, "common")},
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
        runs = {name: site.api.trigger_dag(f"{name}_work") for name in (*TEAMS, "common")}
        for name in ("red", "common"):
            assert site.api.wait_for_run(f"{name}_work", runs[name]) == "success"
        waiting = "SELECT count(*) FROM edge_agent_job WHERE team_name = 'blue' AND state = 'queued'"
        wait_until(lambda: site.query(waiting) == [(3,)], seconds=60, what="blue's jobs to wait")
        listed = json.loads(site.cli("edge-agents", "jobs", "--state", "queued", "--output", "json"))
        assert {job["why"] for job in listed} == {"no agent of its team serves queue default"}
        assert "blue" in site.cli("edge-agents", "queues", "--output", "json")
        blue.start()
        assert site.api.wait_for_run("blue_work", runs["blue"]) == "success"
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
