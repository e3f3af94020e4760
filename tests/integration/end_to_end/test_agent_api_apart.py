"""What a process of the agent API does for Airflow by itself, where the api-server has none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.agent import AgentProcess
from harness.folder_log import VARIABLE
from harness.ports import reserve_port
from harness.processes import Keeper
from harness.receivers import StatsdReceiver
from harness.site import AirflowSite
from harness.waiting import wait_until
from integration.end_to_end.conftest import DAGS, ENVIRONMENT
from integration.end_to_end.test_behind_nginx import Replica

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

TESTS = Path(__file__).parents[2]


@pytest.fixture
def receiver() -> Iterator[StatsdReceiver]:
    with StatsdReceiver() as receiver:
        yield receiver


@pytest.fixture
def site(receiver: StatsdReceiver, keeper: Keeper, tmp_path: Path) -> Iterator[AirflowSite]:
    settings = {
        # Whatever is seen here is the other process' doing.
        "AIRFLOW__EDGE_AGENT__API_ENABLED": "False",
        "AIRFLOW__EDGE_AGENT__RELAY_TASK_METRICS": "True",
        "AIRFLOW__METRICS__STATSD_ON": "True",
        "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
        "AIRFLOW__METRICS__STATSD_PORT": str(receiver.port),
        "AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED": "True",
        "AIRFLOW__LOGGING__LOGGING_CONFIG_CLASS": "harness.folder_log.LOGGING_CONFIG",
        "PYTHONPATH": str(TESTS),
        VARIABLE: f"file://{tmp_path}/remote",
    }
    site = AirflowSite(
        tmp_path / "site", keeper=keeper, environment=ENVIRONMENT, bundles={"probes": DAGS}, settings=settings
    )
    with site:
        site.start()
        for dag_id in ("steps", "telling"):
            site.api.wait_for_dag(dag_id)
        yield site


@pytest.fixture
def replica(site: AirflowSite) -> Iterator[Replica]:
    replica = Replica(site, "agent-api", port=reserve_port())
    replica.start()
    yield replica
    assert replica.process is not None
    replica.process.stop()


def test_it_relays_metrics_of_tasks_and_hands_their_logs_over(
    site: AirflowSite, replica: Replica, receiver: StatsdReceiver, keeper: Keeper, tmp_path: Path
) -> None:
    with AgentProcess(
        tmp_path / "apart",
        keeper=keeper,
        environment=ENVIRONMENT,
        runtime=ENVIRONMENT,
        server_url=f"http://{replica.address}",
        token=site.create_join_token("apart"),
        name="apart",
        bundles={"probes": DAGS},
        settings={"execution_api": "relay", "metrics": {"relay_statsd": True}},
    ) as agent:
        agent.start()
        agent.wait_for_log("connected")
        (tmp_path / "go").touch()
        runs = {
            "telling": site.api.trigger_dag("telling"),
            "steps": site.api.trigger_dag("steps", conf={"dir": str(tmp_path)}),
        }
        for dag_id, run in runs.items():
            assert site.api.wait_for_run(dag_id, run) == "success"
        wait_until(
            lambda: receiver.last("airflow.press.parts", line="3", agent="apart"),
            seconds=90,
            what="the task's metrics to arrive",
            seen=lambda: sorted({one.name for one in receiver.told}),
        )
        assert receiver.last("airflow.press.parts", line="3", agent="apart") == 5
        run = runs["steps"]
        ((workload,),) = site.query(f"SELECT workload FROM edge_agent_job WHERE run_id = '{run}'")
        remote = tmp_path / "remote" / json.loads(workload)["log_path"]
        wait_until(
            lambda: site.query(f"SELECT hand_over FROM edge_agent_job WHERE run_id = '{run}'") == [("done",)],
            seconds=120,
            what="the log to be handed over",
        )
    told = [line.event for line in site.api.log(site.api.task_instance("steps", run, "stepwise"))]
    assert f"file://{remote}" in told, "it is read from there"
    lines = [line for line in told if line.startswith("line ")]
    assert lines == [(f"line {number} " + "x" * (number % 97)).rstrip() for number in range(200)]
