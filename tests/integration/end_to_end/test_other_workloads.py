"""What Airflow hands to executors beside tasks: callbacks of missed deadlines, and tests of connections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.agent import AgentProcess
from harness.postgres import Postgres
from harness.processes import Keeper
from harness.site import AirflowSite
from harness.waiting import wait_until
from integration.end_to_end.conftest import DAGS, ENVIRONMENT

StartAgent = Callable[..., AgentProcess]

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def site(postgres_server: Postgres, keeper: Keeper, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowSite]:
    """An Airflow that lets connections be tested, which is not its default."""
    site = AirflowSite(
        tmp_path_factory.mktemp("site-others"),
        keeper=keeper,
        environment=ENVIRONMENT,
        bundles={"probes": DAGS},
        database_url=postgres_server.create_database(),
        settings={"AIRFLOW__CORE__TEST_CONNECTION": "Enabled"},
    )
    with site:
        site.start()
        for dag_id in ("late", "late_and_broken"):
            site.api.wait_for_dag(dag_id)
        yield site


def job_of(site: AirflowSite, kind: str) -> tuple[str, str, str | None, str | None]:
    rows = site.query(
        f"SELECT id, state, outcome, agent_name FROM edge_agent_job WHERE kind = '{kind}' ORDER BY queued_at DESC"
    )
    job_id, state, outcome, agent = rows[0] if rows else ("", "", None, None)
    return str(job_id), str(state), outcome, agent


def wait_for_job(site: AirflowSite, kind: str) -> tuple[str, str | None, str | None]:
    wait_until(lambda: job_of(site, kind)[1] == "finished", seconds=60, what=f"the {kind}'s end")
    job_id, _, outcome, agent = job_of(site, kind)
    return job_id, outcome, agent


def callback_state(site: AirflowSite, job_id: str) -> str:
    ((ti_id,),) = site.query(f"SELECT ti_id FROM edge_agent_job WHERE id = '{job_id}'")
    ((state,),) = site.query(f"SELECT state FROM callback WHERE id = '{ti_id}'")
    return str(state).lower()


def stored_log(site: AirflowSite, job_id: str) -> str:
    rows = site.query(f"SELECT data FROM edge_agent_log WHERE job_id = '{job_id}' ORDER BY \"offset\"")
    return b"".join(bytes(row[0]) for row in rows).decode()


@pytest.mark.parametrize(("dag_id", "state"), [("late", "success"), ("late_and_broken", "failed")])
def test_the_callback_of_a_missed_deadline_runs_on_an_agent(
    site: AirflowSite, start_agent: StartAgent, tmp_path: Path, dag_id: str, state: str
) -> None:
    # One slot, and the task holds it: another agent does it.
    first = start_agent(concurrency=1)
    run = site.api.trigger_dag(dag_id, conf={"dir": str(tmp_path)})
    site.api.wait_for_state(dag_id, run, "waits", "running")
    second = start_agent(concurrency=1)
    job_id, _, agent = wait_for_job(site, "callback")
    assert agent == second.name
    wait_until(lambda: callback_state(site, job_id) == state, seconds=30, what=f"the callback to be {state}")
    if state == "success":
        (call,) = (tmp_path / "calls").read_text().splitlines()
        assert call.startswith("hello ")
        wait_until(lambda: "the deadline was missed: hello" in stored_log(site, job_id), seconds=15, what="its log")
    else:
        wait_until(lambda: "this callback always fails" in stored_log(site, job_id), seconds=15, what="its log")
    (tmp_path / "go").touch()
    assert site.api.wait_for_run(dag_id, run) == "success"
    for one in (first, second):
        assert one.stop() == 0
        assert "Traceback" not in one.log_text()


@pytest.mark.parametrize("there", [True, False])
def test_a_connection_is_tested_from_the_agents_side(
    site: AirflowSite, start_agent: StartAgent, tmp_path: Path, *, there: bool
) -> None:
    agent = start_agent(queues=["default", "factory"])
    folder = tmp_path / "here"
    if there:
        folder.mkdir()
    body = {
        "connection_id": f"files-{there}",
        "conn_type": "fs",
        "extra": f'{{"path": "{folder}"}}',
        "queue": "factory",
    }
    asked = site.api.request("POST", "/api/v2/connections/enqueue-test", json=body).json()
    headers = {"Airflow-Connection-Test-Token": asked["token"]}

    def answer() -> dict[str, str] | None:
        said: dict[str, str] = site.api.request("GET", "/api/v2/connections/enqueue-test", headers=headers).json()
        return said if said["state"] in {"success", "failed"} else None

    said = wait_until(answer, seconds=60, what="the answer")
    assert said is not None
    assert (said["state"] == "success", str(folder) in said["result_message"]) == (there, True)
    _, _, tester = wait_for_job(site, "connection_test")
    assert tester == agent.name
    wait_until(lambda: not list((agent.state_dir / "jobs").iterdir()), seconds=15, what="the agent's job folders")
    assert agent.stop() == 0
    assert "Traceback" not in agent.log_text()
