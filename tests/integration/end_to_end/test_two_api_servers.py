"""Two api-server processes on one database, each with an agent of its own: what one is told, the other does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from harness.agent import AgentProcess
from harness.ports import reserve_port
from harness.postgres import Postgres
from harness.processes import Keeper, Managed
from harness.site import START_SECONDS, AirflowSite
from harness.waiting import wait_until
from integration.end_to_end.conftest import DAGS, ENVIRONMENT
from integration.end_to_end.test_end_to_end import notes, wait_for_note

pytestmark = pytest.mark.integration

StartAgent = Callable[..., AgentProcess]


@pytest.fixture(scope="module")
def site(postgres_server: Postgres, keeper: Keeper, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowSite]:
    site = AirflowSite(
        tmp_path_factory.mktemp("site-two"),
        keeper=keeper,
        environment=ENVIRONMENT,
        bundles={"probes": DAGS},
        database_url=postgres_server.create_database(),
        # The first has two processes behind one port: any of them may get any request.
        settings={"AIRFLOW__API__WORKERS": "2"},
    )
    with site:
        site.start()
        for dag_id in ("steps", "crowd"):
            site.api.wait_for_dag(dag_id)
        yield site


@pytest.fixture(scope="module")
def second(site: AirflowSite, keeper: Keeper) -> Iterator[tuple[Managed, str]]:
    """Start a further api-server, and yield it with its URL."""
    port = reserve_port()
    server = keeper.spawn(
        "second api-server",
        [ENVIRONMENT / "bin" / "airflow", "api-server"],
        env=site.env() | {"AIRFLOW__API__PORT": str(port), "AIRFLOW__API__WORKERS": "1"},
        cwd=site.root,
        log=site.logs / "second-api-server.log",
    )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/api/v2/monitor/health").is_success
        except httpx.TransportError:
            return False

    wait_until(answers, seconds=START_SECONDS, what="the second api-server to answer", seen=lambda: server.tail(3))
    yield server, url
    server.stop()


def test_both_servers_share_the_work(
    site: AirflowSite, second: tuple[Managed, str], start_agent: StartAgent, tmp_path: Path
) -> None:
    # The first agent's requests go to either of two processes, and so does its session.
    agents = [
        start_agent("edge-one", concurrency=2, settings={"carrier": "http"}),
        start_agent("edge-two", concurrency=1, settings={"server_url": second[1]}),
    ]
    run = site.api.trigger_dag("crowd", conf={"dir": str(tmp_path)})
    wait_until(lambda: sum(notes(tmp_path).values()) == 3, seconds=120, what="three tasks at once")
    (tmp_path / "go").touch()
    assert site.api.wait_for_run("crowd", run) == "success"
    assert sorted(notes(tmp_path).values()) == [1] * 6
    jobs = site.query(f"SELECT agent_name, fence, outcome FROM edge_agent_job WHERE run_id = '{run}'")
    assert {agent for agent, _, _ in jobs} == {"edge-one", "edge-two"}
    assert {(fence, outcome) for _, fence, outcome in jobs} == {(1, "finished")}
    for agent in agents:
        assert agent.stop() == 0


def test_a_cancel_at_one_server_reaches_the_agent_of_the_other(
    site: AirflowSite, second: tuple[Managed, str], start_agent: StartAgent, tmp_path: Path
) -> None:
    agent = start_agent("edge-two", settings={"server_url": second[1], "drain": {"kill_grace_seconds": 2}})
    run = site.api.trigger_dag("steps", conf={"dir": str(tmp_path)})
    wait_for_note(tmp_path, "began")
    site.api.request("PATCH", f"/api/v2/dags/steps/dagRuns/{run}", json={"state": "failed"})
    asked = time.monotonic()
    agent.wait_for_log("cancelled: ", seconds=10)
    assert time.monotonic() - asked < 3, "a cancel should reach the agent within two seconds"
    assert site.api.wait_for_run("steps", run) == "failed"
    assert agent.stop() == 0


def test_an_agent_whose_server_died_leaves_its_work_to_another(
    site: AirflowSite, second: tuple[Managed, str], start_agent: StartAgent, tmp_path: Path
) -> None:
    """Its server cannot notice any more that it is gone; another process has to."""
    start_agent("edge-two", settings={"server_url": second[1]})
    second[0].kill_tree()
    other = start_agent("edge-one")
    run = site.api.trigger_dag("steps", conf={"dir": str(tmp_path)})
    wait_for_note(tmp_path, "began")
    (tmp_path / "go").touch()
    assert site.api.wait_for_run("steps", run) == "success"
    assert site.query(f"SELECT agent_name, fence FROM edge_agent_job WHERE run_id = '{run}'") == [("edge-one", 1)]
    assert other.stop() == 0
