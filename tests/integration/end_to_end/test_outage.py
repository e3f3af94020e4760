"""A link that is cut while tasks run, on a real Airflow: within the disconnect lease, and beyond it.

All clocks are shortened: Airflow fails a task after 25 s without heartbeat, where it would be 300 s.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from faults.proxy import FaultProxy
from harness.agent import AgentProcess
from harness.processes import Keeper
from harness.site import AirflowSite
from harness.waiting import wait_until
from integration.end_to_end.conftest import DAGS, ENVIRONMENT

pytestmark = pytest.mark.integration

HEARTBEAT_TIMEOUT_SECONDS = 25
"""The server sends a heartbeat for a task after up to 20.5 s: see the settings."""
OUTAGE_SECONDS = 40
SETTINGS = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(HEARTBEAT_TIMEOUT_SECONDS),
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
    # A token of Airflow's would not outlive the outage either.
    "AIRFLOW__EXECUTION_API__JWT_EXPIRATION_TIME": "20",
    "AIRFLOW__EDGE_AGENT__HEARTBEAT_INTERVAL": "0.5",
    "AIRFLOW__EDGE_AGENT__AGENT_TIMEOUT": "5",
    "AIRFLOW__EDGE_AGENT__DISCONNECT_GRACE": "5",
    "AIRFLOW__EDGE_AGENT__DISCONNECT_LEASE": "300",
    "AIRFLOW__EDGE_AGENT__DISCONNECT_LEASES": "short: 10",
}


@pytest.fixture(scope="module")
def outage_site(keeper: Keeper, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowSite]:
    root = tmp_path_factory.mktemp("site-outage")
    bundles = {"probes": DAGS}
    with AirflowSite(root, keeper=keeper, environment=ENVIRONMENT, bundles=bundles, settings=SETTINGS) as site:
        site.start()
        for dag_id in ("outage", "long_outage", "silent_outage"):
            site.api.wait_for_dag(dag_id)
        yield site


def start(
    site: AirflowSite, proxy: FaultProxy, keeper: Keeper, folder: Path, *, name: str, queue: str = "default"
) -> AgentProcess:
    agent = AgentProcess(
        folder / name,
        keeper=keeper,
        environment=ENVIRONMENT,
        runtime=ENVIRONMENT,
        server_url=proxy.url,
        token=site.create_join_token(name),
        name=name,
        queues=[queue],
        concurrency=8,
        bundles={"probes": DAGS},
        settings={"execution_api": "relay"},
    )
    agent.start()
    agent.wait_for_log("connected")
    return agent


def states(site: AirflowSite, run: str) -> list[str]:
    return sorted(str(ti.state) for ti in site.api.task_instances("outage", run))


def test_tasks_and_their_results_outlive_an_outage(outage_site: AirflowSite, keeper: Keeper, tmp_path: Path) -> None:
    site = outage_site
    with FaultProxy(site.port) as proxy, start(site, proxy, keeper, tmp_path, name="edge-outage") as agent:
        run = site.api.trigger_dag("outage", conf={"dir": str(tmp_path)})
        wait_until(lambda: len(list(tmp_path.glob("began-*"))) == 8, seconds=90, what="8 tasks to run")
        proxy.refuse()
        cut_at = time.monotonic()
        for number in (0, 1):
            (tmp_path / f"go-{number}").touch()
        wait_until(lambda: len(list(tmp_path.glob("ended-*"))) == 2, seconds=60, what="two tasks to end")
        told = re.compile(r"disconnected since [^,]+, lease until [^,]+, 6 tasks running, 2 results waiting")
        wait_until(lambda: told.search(agent.status()), seconds=60, what="the agent to tell of both", seen=agent.status)
        wait_until(
            lambda: time.monotonic() > cut_at + OUTAGE_SECONDS,
            seconds=2 * OUTAGE_SECONDS,
            what="the outage to last longer than Airflow waits for a heartbeat",
        )
        (state,) = site.query("SELECT state FROM edge_agent WHERE name = 'edge-outage'")
        assert state == ("unknown",)
        assert states(site, run) == ["running"] * 8, "Airflow must not have lost patience"
        proxy.heal()
        back_at = time.monotonic()
        wait_until(lambda: states(site, run).count("success") == 2, seconds=60, what="the results to arrive")
        print(f"FIGURE results of the outage after {time.monotonic() - back_at:.1f} s")
        for number in range(2, 8):
            (tmp_path / f"go-{number}").touch()
        assert site.api.wait_for_run("outage", run) == "success"
        tries = {ti.try_number for ti in site.api.task_instances("outage", run)}
        assert tries == {1}
        began = [path.read_text().splitlines() for path in tmp_path.glob("began-*")]
        assert [len(pids) for pids in began] == [1] * 8, "none ran twice"
        outcomes = "SELECT DISTINCT outcome FROM edge_agent_job WHERE dag_id = 'outage'"
        wait_until(lambda: site.query(outcomes) == [("finished",)], seconds=30, what="all jobs to be known as finished")


def kept(agent: AgentProcess) -> int:
    """Count the final states on the agent's disk, its own and those of a runner without a daemon."""
    return len({path.parent.name for path in agent.state_dir.glob("**/final.json")})


def logged(site: AirflowSite, run: str, number: int) -> str:
    (ti,) = (ti for ti in site.api.task_instances("silent_outage", run) if ti.map_index == number)
    return " ".join(str(line) for line in site.api.log(ti))


def test_what_ended_in_an_outage_is_delivered_whatever_ends_meanwhile(
    outage_site: AirflowSite, keeper: Keeper, tmp_path: Path
) -> None:
    site = outage_site
    with FaultProxy(site.port) as proxy, start(site, proxy, keeper, tmp_path, name="edge-spool") as agent:
        run = site.api.trigger_dag("silent_outage", conf={"dir": str(tmp_path)})
        wait_until(lambda: len(list(tmp_path.glob("began-*"))) == 5, seconds=90, what="5 tasks to run")
        proxy.refuse()
        for number in (0, 2):
            (tmp_path / f"go-{number}").touch()
        wait_until(lambda: kept(agent) == 2, seconds=60, what="two final states to be kept")
        agent.wait_for_log("its final state waits for the server")
        agent.kill()
        (tmp_path / "go-1").touch()
        wait_until(lambda: kept(agent) == 3, seconds=60, what="the runner to keep a final state itself")
        agent.start()
        agent.wait_for_log("not connected", after=len(agent.log_text()) // 2)
        # Meanwhile somebody decides about a task that has ended here, and about one that runs.
        for number in (2, 3):
            path = f"/api/v2/dags/silent_outage/dagRuns/{run}/taskInstances/member/{number}"
            site.api.request("PATCH", path, json={"new_state": "failed"})
        runner = agent.runner()
        assert runner is not None
        proxy.heal()

        def found() -> dict[int, str]:
            return {ti.map_index: str(ti.state) for ti in site.api.task_instances("silent_outage", run)}

        expected = {0: "success", 1: "success", 2: "failed", 3: "failed", 4: "running"}
        wait_until(lambda: found() == expected, seconds=60, what="the final states to arrive")
        (tmp_path / "go-4").touch()
        assert site.api.wait_for_run("silent_outage", run) == "failed"
        jobs = "SELECT outcome, map_index FROM edge_agent_job WHERE dag_id = 'silent_outage' ORDER BY map_index"
        outcomes = [("finished", 0), ("finished", 1), ("superseded", 2), ("finished", 4)]

        def settled() -> bool:
            return [row for row in map(tuple, site.query(jobs)) if row[1] != 3] == outcomes

        wait_until(settled, seconds=60, what="the results of the jobs", seen=lambda: site.query(jobs))
        wait_until(lambda: not list((agent.state_dir / "jobs").glob("*-*")), seconds=60, what="all to be delivered")
        assert "ended as 'success'" in logged(site, run, 2)
        assert "has decided otherwise" in logged(site, run, 2)
        told = ("the agent ends this task", "Server indicated the task shouldn't be running anymore")
        assert any(text in logged(site, run, 3) for text in told)
        assert found() == expected | {4: "success"}
        assert [len(path.read_text().splitlines()) for path in tmp_path.glob("began-*")] == [1] * 5, "none ran twice"


def test_after_the_lease_neither_side_lets_it_run_on(outage_site: AirflowSite, keeper: Keeper, tmp_path: Path) -> None:
    site = outage_site
    with (
        FaultProxy(site.port) as proxy,
        start(site, proxy, keeper, tmp_path, name="edge-lease", queue="short") as agent,
    ):
        run = site.api.trigger_dag("long_outage", conf={"dir": str(tmp_path)})
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), seconds=90, what="the task")
        wait_until((tmp_path / "began").exists, seconds=90, what="the other task")
        pid = int((tmp_path / "pid").read_text())
        proxy.refuse()
        (tmp_path / "end").touch()
        wait_until(lambda: kept(agent) == 1, seconds=60, what="a final state to be kept")
        agent.wait_for_log("away for longer than the disconnect lease allows, 15 s", seconds=60)
        wait_until(lambda: not psutil.pid_exists(pid), seconds=30, what="the task's process to end")
        running = site.api.task_instance("long_outage", run, "waits").state
        failed = site.api.wait_for_state("long_outage", run, "waits", "failed", seconds=60)
        assert running in {"running", "failed"}
        # So has one that ended in time: whoever waits for it has been told of its failure, and that stays.
        site.api.wait_for_state("long_outage", run, "ends", "failed", seconds=60)
        details = site.query("SELECT detail FROM edge_agent_job WHERE dag_id = 'long_outage'")
        assert ["longer than its disconnect lease allows" in str(detail) for (detail,) in details] == [True, True]
        proxy.heal()
        wait_until(lambda: not list((agent.state_dir / "jobs").glob("*-*")), seconds=30, what="the job to be settled")
        agent.wait_for_log(
            "the task ended as 'success' while the server was away, but the server has decided otherwise"
        )
        assert kept(agent) == 0
        assert site.api.task_instance("long_outage", run, "ends").state == "failed"
        assert failed.try_number == site.api.task_instance("long_outage", run, "waits").try_number
        assert not (tmp_path / "ended").exists()
