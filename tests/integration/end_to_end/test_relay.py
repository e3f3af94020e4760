"""The Execution API through the agent: everything a task can ask, on a real Airflow with its triggerer."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from harness.agent import AgentProcess
from harness.processes import Keeper
from harness.site import COMPONENTS, AirflowSite
from harness.waiting import wait_until
from integration.end_to_end.conftest import DAGS, ENVIRONMENT
from integration.end_to_end.test_task_runtimes import RUNTIMES

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def relay_site(keeper: Keeper, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowSite]:
    root = tmp_path_factory.mktemp("site-relay")
    with AirflowSite(root, keeper=keeper, environment=ENVIRONMENT, bundles={"probes": DAGS}) as site:
        site.start((*COMPONENTS, "triggerer"))
        for dag_id in ("relayed", "relay_target", "steps"):
            site.api.wait_for_dag(dag_id)
        uri = "postgres://someone:hidden@db.example.com/x"
        site.cli("connections", "add", "relayed_db", "--conn-uri", uri)
        yield site


def make_agent(
    site: AirflowSite, keeper: Keeper, folder: Path, name: str, runtime: Path = ENVIRONMENT, **settings: object
) -> AgentProcess:
    return AgentProcess(
        folder / name,
        keeper=keeper,
        environment=ENVIRONMENT,
        runtime=runtime,
        server_url=site.url,
        token=site.create_join_token(name),
        name=name,
        bundles={"probes": DAGS},
        settings={"execution_api": "relay"} | settings,
    )


@pytest.mark.parametrize("runtime", [ENVIRONMENT, *RUNTIMES], ids=lambda path: path.name)
def test_whatever_a_task_asks_comes_through(
    relay_site: AirflowSite, keeper: Keeper, tmp_path: Path, runtime: Path
) -> None:
    site = relay_site
    # Whoever tried this address would not get through: nothing may reach Airflow but by the agent.
    nowhere = "http://127.0.0.1:9/execution/"
    name = f"relay-{runtime.name.strip('.')}"
    with make_agent(site, keeper, tmp_path, name, runtime, execution_api_url=nowhere) as agent:
        agent.start()
        agent.wait_for_log("connected")
        run = site.api.trigger_dag("relayed", conf={"dir": str(tmp_path)})
        asked = site.api.wait_for_state("relayed", run, "asks_people", {"deferred", "awaiting_input"}, seconds=120)
        answer = {"chosen_options": ["Approve"], "params_input": {}}
        path = f"/api/v2/dags/relayed/dagRuns/{run}/taskInstances/{asked.task_id}/-1/hitlDetails"
        site.api.request("PATCH", path, json=answer)
        assert site.api.wait_for_run("relayed", run, seconds=240) == "success"

        def told(task_id: str) -> object:
            return site.api.xcom("relayed", run, task_id)

        assert told("length") == 5_000_000
        assert told("slices") == [7, 3, 1, 2, 5, 6]
        assert told("xcoms") == {"pulled": {"grüße": [1, 2]}, "missing": None}
        assert told("variables") == {"found": "1", "deleted": "gone"}
        connection = told("connection")
        assert isinstance(connection, dict)
        assert (connection["host"], connection["password"]) == ("db.example.com", True)
        assert told("counts_things") == 3
        runs = told("asks_about_runs")
        assert isinstance(runs, dict)
        assert (runs["state"], runs["tasks"]) == ("running", True)
        assert told("comes_back") == "came back"
        assert told("remembers") in {"{'c': 1} None", "not known here"}
        assert told("defers") == "resumed"
        states = {ti.task_id: ti.state for ti in site.api.task_instances("relayed", run)}
        assert states["never"] == "skipped"
        rendered = site.query(
            f"SELECT rendered_fields FROM rendered_task_instance_fields WHERE run_id = '{run}' AND task_id = 'renders'"
        )
        assert f"echo {run}" in str(rendered)
        assert site.query(f"SELECT state FROM dag_run WHERE run_id = 'by-{run}'") == [("success",)]
        labels = site.query(
            "SELECT rendered_map_index FROM task_instance "
            f"WHERE run_id = '{run}' AND task_id = 'same' AND map_index = 4"
        )
        assert labels == [("number 4",)]
        on_device = [path for path in agent.root.rglob("*") if path.is_file() and path.name != "token"]
        signed = re.compile(rb"eyJ[A-Za-z0-9_-]{20,}\.eyJ")
        assert [path for path in on_device if signed.search(path.read_bytes())] == [], "a token of Airflow's"


def test_a_task_outlives_the_daemon_and_speaks_through_the_next(
    relay_site: AirflowSite, keeper: Keeper, tmp_path: Path
) -> None:
    site = relay_site
    with make_agent(site, keeper, tmp_path, "relay-restart", queues=["default"]) as agent:
        agent.start()
        agent.wait_for_log("connected")
        run = site.api.trigger_dag("steps", conf={"dir": str(tmp_path)})
        wait_until(lambda: "began" in notes(tmp_path), seconds=60, what="the task to begin")
        agent.kill()
        (tmp_path / "go").touch()
        # Its result waits for somebody to take it.
        wait_until(lambda: "ended" in notes(tmp_path), seconds=60, what="the task to end")
        agent.start()
        assert site.api.wait_for_run("steps", run) == "success"
        assert site.api.xcom("steps", run, "stepwise") == "done"
        assert notes(tmp_path).count("began") == 1


def notes(folder: Path) -> str:
    path = folder / "notes"
    return path.read_text() if path.exists() else ""


def test_the_socket_is_for_those_with_a_secret_only(relay_site: AirflowSite, keeper: Keeper, tmp_path: Path) -> None:
    site = relay_site
    with make_agent(site, keeper, tmp_path, "relay-secret") as agent:
        agent.start()
        agent.wait_for_log("connected")
        socket = Path(str(agent.settings["runtime_dir"])) / "execution.sock"
        assert stat.S_ISSOCK(socket.stat().st_mode)
        run = site.api.trigger_dag("steps", conf={"dir": str(tmp_path)})
        wait_until(lambda: "began" in notes(tmp_path), seconds=60, what="the task to begin")
        (job_id,) = [path.name for path in (agent.state_dir / "jobs").iterdir() if path.is_dir()]
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://edge-agent") as client:
            for secret in (
                "",
                "Bearer x",
                f"Bearer {job_id}.{'0' * 64}",
                f"Bearer {agent.credential_file.read_text()}",
            ):
                answer = client.get("/execution/variables/x", headers={"Authorization": secret.strip()})
                assert answer.status_code == 401, secret
        (tmp_path / "go").touch()
        assert site.api.wait_for_run("steps", run) == "success"


def test_the_direct_way_is_still_there(relay_site: AirflowSite, keeper: Keeper, tmp_path: Path) -> None:
    site = relay_site
    with make_agent(site, keeper, tmp_path, "relay-direct", execution_api="direct") as agent:
        agent.start()
        agent.wait_for_log("connected")
        (tmp_path / "go").touch()
        run = site.api.trigger_dag("steps", conf={"dir": str(tmp_path)})
        assert site.api.wait_for_run("steps", run) == "success"
        (way,) = site.query("SELECT execution_api FROM edge_agent WHERE name = 'relay-direct'")
        assert way == ("direct",)


def test_with_a_server_that_does_not_relay_tasks_speak_for_themselves(
    keeper: Keeper, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As is one from before the relay: its offers hold tokens, whatever the agent would like."""
    root = tmp_path_factory.mktemp("site-direct")
    settings = {"AIRFLOW__EDGE_AGENT__EXECUTION_API": "direct"}
    with AirflowSite(root, keeper=keeper, environment=ENVIRONMENT, bundles={"probes": DAGS}, settings=settings) as site:
        site.start()
        site.api.wait_for_dag("steps")
        with make_agent(site, keeper, tmp_path, "relay-refused") as agent:
            agent.start()
            agent.wait_for_log("connected")
            (tmp_path / "go").touch()
            runs = [site.api.trigger_dag("steps", conf={"dir": str(tmp_path)}) for _ in range(2)]
            assert [site.api.wait_for_run("steps", run) for run in runs] == ["success", "success"]
            assert site.api.xcom("steps", runs[0], "stepwise") == "done"
            assert agent.log_text().count("the server does not relay: tasks reach Airflow by themselves") == 1
            (way,) = site.query("SELECT execution_api FROM edge_agent WHERE name = 'relay-refused'")
            assert way == ("direct",)
