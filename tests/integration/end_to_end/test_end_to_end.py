"""Dag runs of a real Airflow on real agents, with and without faults."""

from __future__ import annotations

import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from harness.agent import AgentProcess
from harness.rest import TaskInstance
from harness.site import AirflowSite
from harness.waiting import wait_until

StartAgent = Callable[..., AgentProcess]

pytestmark = pytest.mark.integration

both_ways = pytest.mark.parametrize("way", ["relay", "direct"])
"""How tasks reach Airflow: all other tests do it as it is by default."""


def notes(folder: Path) -> Counter[str]:
    """Count what the task bodies wrote, without their process ids."""
    path = folder / "notes"
    if not path.exists():
        return Counter()
    return Counter(line.rsplit(" ", 1)[0] for line in path.read_text().splitlines())


def trigger(site: AirflowSite, dag_id: str, folder: Path, **conf: object) -> str:
    return site.api.trigger_dag(dag_id, conf={"dir": str(folder), **conf})


def stored_log(site: AirflowSite, job_id: str) -> bytes:
    rows = site.query(f"SELECT data FROM edge_agent_log WHERE job_id = '{job_id}' ORDER BY {quoted('offset')}")
    return b"".join(bytes(row[0]) for row in rows)


def quoted(name: str) -> str:
    return f'"{name}"'


def wait_for_note(folder: Path, text: str, seconds: float = 60) -> None:
    wait_until(lambda: any(text in line for line in notes(folder)), seconds=seconds, what=f"the note {text!r}")


def only_job(agent: AgentProcess) -> Path:
    (job,) = (agent.state_dir / "runner" / "jobs").iterdir()
    return job


def log_text(site: AirflowSite, ti: TaskInstance, try_number: int | None = None) -> str:
    return "\n".join(line.event for line in site.api.log(ti, try_number=try_number))


@both_ways
def test_a_dag_with_everything(site: AirflowSite, start_agent: StartAgent, tmp_path: Path, way: str) -> None:
    agent = start_agent(queues=["default"], concurrency=4, settings={"execution_api": way})
    run = trigger(site, "everything", tmp_path)
    assert site.api.wait_for_run("everything", run) == "success"
    assert notes(tmp_path) == Counter(
        {
            "make -1 1 ran": 1,
            "double 0 1 ran": 1,
            "double 1 1 ran": 1,
            "double 2 1 ran": 1,
            "total -1 1 ran": 1,
            "second_try -1 1 ran": 1,
            "second_try -1 2 ran": 1,
        }
    )
    assert site.api.xcom("everything", run, "total") == 12
    assert len((tmp_path / "pokes").read_text().splitlines()) == 2

    shell = log_text(site, site.api.task_instance("everything", run, "shell"))
    assert "from the shell" in shell
    for secret in (agent.credential_file.read_text().strip().split("_", 2)[2], "NOTIFY_SOCKET", "EDGE_AGENT_"):
        assert secret not in shell
    pokes = log_text(site, site.api.task_instance("everything", run, "reschedule"))
    assert pokes.index("poke number 1") < pokes.index("poke number 2")
    retried = site.api.task_instance("everything", run, "second_try")
    assert "the first try fails" in site.api.log_stream(retried, try_number=1).decode()
    assert "the first try fails" not in site.api.log_stream(retried, try_number=2).decode()

    # Everything is delivered, so nothing is kept: not at the agent, and no slot at the server.
    wait_until(lambda: not list((agent.state_dir / "jobs").iterdir()), seconds=15, what="the agent's job folders")
    assert site.query("SELECT count(*) FROM edge_agent_job WHERE state <> 'finished'") == [(0,)]
    assert agent.stop() == 0
    assert "Traceback" not in agent.log_text()


def test_the_log_of_a_running_task_is_there_within_two_seconds(
    site: AirflowSite, start_agent: StartAgent, tmp_path: Path
) -> None:
    start_agent()
    run = trigger(site, "steps", tmp_path)
    wait_for_note(tmp_path, "began")
    began = time.monotonic()
    ti = site.api.wait_for_state("steps", run, "stepwise", "running")
    wait_until(lambda: "first line: grüße, 世界" in log_text(site, ti), seconds=2, what="the first line")
    assert time.monotonic() - began < 4
    (tmp_path / "go").touch()
    assert site.api.wait_for_run("steps", run) == "success"
    lines = [line.event for line in site.api.log(ti) if re.match(r"(first|last )?line", line.event)]
    expected = [f"line {n} " + "x" * (n % 97) for n in range(200)]
    assert [line.rstrip() for line in lines if line.startswith("line")] == [line.rstrip() for line in expected]
    assert lines[-1] == "last line"


def test_an_api_server_restart_loses_nothing(site: AirflowSite, start_agent: StartAgent, tmp_path: Path) -> None:
    agent = start_agent()
    run = trigger(site, "steps", tmp_path)
    wait_for_note(tmp_path, "began")
    job = only_job(agent)
    site.stop_component("api-server", kill=True)
    # The task writes the rest of its log while the server is away; what the agent has on disk is the truth.
    (tmp_path / "go").touch()
    wait_for_note(tmp_path, "ended")
    site.start_component("api-server")
    site.wait_api()
    log = tmp_path / "copy"

    def copied() -> bool:
        if job.joinpath("result.json").exists() or not job.exists():
            return True
        shutil.copyfile(job / "task.log", log)
        return False

    wait_until(copied, seconds=60, what="the job's end")
    assert site.api.wait_for_run("steps", run) == "success"
    wait_until(lambda: not job.exists(), seconds=30, what="the job's delivery")
    assert notes(tmp_path) == Counter({"stepwise -1 1 began": 1, "stepwise -1 1 ended": 1})
    stored = stored_log(site, job.name)
    assert b"last line" in stored
    assert stored.startswith(log.read_bytes())
    assert site.query(f"SELECT outcome, log_bytes FROM edge_agent_job WHERE id = '{job.name}'") == [
        ("finished", len(stored))
    ]


@both_ways
def test_a_killed_agent_takes_its_jobs_over(
    site: AirflowSite, start_agent: StartAgent, tmp_path: Path, way: str
) -> None:
    agent = start_agent(settings={"execution_api": way})
    # A relayed task that returns a value waits with it for the next daemon: test_relay.py.
    run = trigger(site, "steps", tmp_path, no_value=way == "relay")
    wait_for_note(tmp_path, "began")
    job = only_job(agent)
    agent.kill()
    (tmp_path / "go").touch()
    wait_until((job / "result.json").exists, seconds=30, what="the runner's result")
    log = (job / "task.log").read_bytes()
    position = len(agent.log_text())
    agent.start()
    began = time.monotonic()
    agent.wait_for_log("connected", after=position)
    assert time.monotonic() - began < 5
    wait_until(lambda: not job.exists(), seconds=30, what="the job's delivery")
    assert site.api.wait_for_run("steps", run) == "success"
    assert notes(tmp_path) == Counter({"stepwise -1 1 began": 1, "stepwise -1 1 ended": 1})
    assert stored_log(site, job.name) == log


def test_a_killed_agent_reattaches_to_running_tasks(site: AirflowSite, start_agent: StartAgent, tmp_path: Path) -> None:
    agent = start_agent()
    run = trigger(site, "steps", tmp_path)
    wait_for_note(tmp_path, "began")
    position = len(agent.log_text())
    agent.restart(kill=True)
    agent.wait_for_log("still running, taken over", after=position)
    agent.wait_for_log("connected", after=position)
    (tmp_path / "go").touch()
    assert site.api.wait_for_run("steps", run) == "success"
    assert notes(tmp_path) == Counter({"stepwise -1 1 began": 1, "stepwise -1 1 ended": 1})


def test_a_task_that_died_with_its_machine_is_failed_at_once(
    site: AirflowSite, start_agent: StartAgent, tmp_path: Path
) -> None:
    agent = start_agent()
    run = trigger(site, "steps", tmp_path)
    wait_for_note(tmp_path, "began")
    # As a power cut would: everything at once.
    victims = [agent.runner(), *agent.job_processes()]
    agent.kill()
    for process in victims:
        assert process is not None
        process.kill()
    psutil.wait_procs([p for p in victims if p is not None], timeout=10)
    agent.start()
    assert site.api.wait_for_run("steps", run, seconds=30) == "failed"
    ti = site.api.task_instance("steps", run, "stepwise")
    assert ti.state == "failed"
    ((outcome, detail),) = site.query(f"SELECT outcome, detail FROM edge_agent_job WHERE run_id = '{run}'")
    assert outcome == "lost"
    assert "died" in str(detail)
    assert "stepwise -1 1 ended" not in notes(tmp_path)


def test_a_killed_scheduler_adopts_what_runs(site: AirflowSite, start_agent: StartAgent, tmp_path: Path) -> None:
    start_agent()
    run = trigger(site, "steps", tmp_path)
    wait_for_note(tmp_path, "began")
    site.restart_component("scheduler", kill=True)
    (tmp_path / "go").touch()
    assert site.api.wait_for_run("steps", run) == "success"
    assert notes(tmp_path) == Counter({"stepwise -1 1 began": 1, "stepwise -1 1 ended": 1})


def test_slots_bound_what_runs_and_two_agents_share(site: AirflowSite, start_agent: StartAgent, tmp_path: Path) -> None:
    agents = [start_agent("edge-a", concurrency=2), start_agent("edge-b", concurrency=1)]
    run = trigger(site, "crowd", tmp_path)
    wait_until(lambda: sum(notes(tmp_path).values()) == 3, seconds=60, what="three tasks at once")
    held = site.query(
        "SELECT agent_name, count(*) FROM edge_agent_job WHERE state IN ('offered', 'accepted', 'running') "
        "GROUP BY agent_name ORDER BY agent_name",
    )
    assert held == [("edge-a", 2), ("edge-b", 1)]
    (tmp_path / "go").touch()
    assert site.api.wait_for_run("crowd", run) == "success"
    assert sum(notes(tmp_path).values()) == 6
    for agent in agents:
        assert agent.stop() == 0


def test_a_drain_lets_the_running_task_finish(site: AirflowSite, start_agent: StartAgent, tmp_path: Path) -> None:
    agent = start_agent()
    run = trigger(site, "steps", tmp_path)
    wait_for_note(tmp_path, "began")
    assert agent.process is not None
    agent.process.signal(15)
    agent.wait_for_log("waits for 1 running job")
    (tmp_path / "go").touch()
    assert agent.process.wait(60) == 0
    assert site.api.wait_for_run("steps", run) == "success"
    assert site.query(f"SELECT state FROM edge_agent WHERE name = '{agent.name}'") == [("offline",)]


def test_a_second_signal_ends_the_task(site: AirflowSite, start_agent: StartAgent, tmp_path: Path) -> None:
    agent = start_agent(settings={"drain": {"kill_grace_seconds": 3}})
    run = trigger(site, "steps", tmp_path)
    wait_for_note(tmp_path, "began")
    assert agent.process is not None
    agent.process.signal(2)
    agent.wait_for_log("waits for 1 running job")
    agent.process.signal(2)
    assert agent.process.wait(60) == 0
    assert site.api.wait_for_run("steps", run) == "failed"
    assert agent.job_processes() == []


def test_maintenance_from_the_server(site: AirflowSite, start_agent: StartAgent, tmp_path: Path) -> None:
    agent = start_agent()
    site.cli("edge-agents", "maintenance", "on", agent.name, "--comment", "new disk")
    agent.wait_for_log("maintenance on")
    run = trigger(site, "steps", tmp_path)
    wait_until(
        lambda: site.query(f"SELECT state FROM edge_agent_job WHERE run_id = '{run}'") == [("queued",)],
        seconds=30,
        what="the job in the queue",
    )
    assert site.query(f"SELECT state FROM edge_agent WHERE name = '{agent.name}'") == [("maintenance mode",)]
    assert notes(tmp_path) == Counter()
    (tmp_path / "go").touch()
    site.cli("edge-agents", "maintenance", "off", agent.name)
    assert site.api.wait_for_run("steps", run) == "success"


@both_ways
def test_a_revoked_agent_finishes_its_jobs(
    site: AirflowSite, start_agent: StartAgent, tmp_path: Path, way: str
) -> None:
    agent = start_agent(settings={"execution_api": way})
    run = trigger(site, "steps", tmp_path)
    wait_for_note(tmp_path, "began")
    job = only_job(agent)
    site.cli("edge-agents", "revoke", agent.name)
    other = trigger(site, "steps", tmp_path / "other")
    wait_until(
        lambda: site.query(f"SELECT state FROM edge_agent_job WHERE run_id = '{other}'") == [("queued",)],
        seconds=30,
        what="the other job in the queue",
    )
    position = len(agent.log_text())
    agent.restart(kill=True)
    agent.wait_for_log("connected", after=position)
    assert agent.running
    (tmp_path / "go").touch()
    assert site.api.wait_for_run("steps", run) == "success"
    assert site.api.xcom("steps", run, "stepwise") == "done"
    assert agent.process is not None
    assert agent.process.wait(60) == 77
    assert notes(tmp_path) == Counter({"stepwise -1 1 began": 1, "stepwise -1 1 ended": 1})
    assert stored_log(site, job.name).count(b"last line") == 1
    assert site.query(f"SELECT state, agent_name FROM edge_agent_job WHERE run_id = '{other}'") == [("queued", None)]
    site.api.request("PATCH", f"/api/v2/dags/steps/dagRuns/{other}", json={"state": "failed"})


@both_ways
def test_an_agent_that_is_revoked_with_its_jobs(
    site: AirflowSite, start_agent: StartAgent, tmp_path: Path, way: str
) -> None:
    agent = start_agent(settings={"execution_api": way})
    run = trigger(site, "steps", tmp_path)
    wait_for_note(tmp_path, "began")
    site.cli("edge-agents", "revoke", agent.name, "--jobs", "cancel")
    assert agent.process is not None
    assert agent.process.wait(60) == 77
    assert "refuses this agent's credential" in agent.log_text()
    assert "Traceback" not in agent.log_text()
    assert site.api.wait_for_run("steps", run, seconds=60) == "failed"
    assert "stepwise -1 1 ended" not in notes(tmp_path)


def test_a_name_that_is_in_use_is_refused_with_both_sides_named(
    site: AirflowSite, start_agent: StartAgent, tmp_path: Path
) -> None:
    first = start_agent()
    clone = AgentProcess(
        tmp_path / "clone",
        keeper=first.keeper,
        environment=Path(first.program).parent.parent,
        runtime=Path(first.program).parent.parent,
        server_url=site.url,
        token=first.credential_file.read_text().strip(),
        name=first.name,
    )
    with clone:
        clone.start()
        said = clone.wait_for_log(r"asking again for 60 s.*|name_in_use.*").group()
        assert said
        assert first.running
    assert first.running


@pytest.mark.parametrize("how", ["failed", "cleared", "run stopped"])
def test_what_airflow_ends_is_cancelled_on_the_agent(
    site: AirflowSite, start_agent: StartAgent, tmp_path: Path, how: str
) -> None:
    agent = start_agent(settings={"drain": {"kill_grace_seconds": 2}})
    run = trigger(site, "steps", tmp_path)
    wait_for_note(tmp_path, "began")
    job = only_job(agent)
    if how == "failed":
        site.api.request(
            "PATCH", f"/api/v2/dags/steps/dagRuns/{run}/taskInstances/stepwise", json={"new_state": "failed"}
        )
    elif how == "cleared":
        body = {"dry_run": False, "dag_run_id": run, "task_ids": ["stepwise"], "only_failed": False}
        site.api.request("POST", "/api/v2/dags/steps/clearTaskInstances", json=body)
    else:
        site.api.request("PATCH", f"/api/v2/dags/steps/dagRuns/{run}", json={"state": "failed"})
    asked = time.monotonic()
    agent.wait_for_log(f"cancelled: .*{job.name}", seconds=10)
    assert time.monotonic() - asked < 3, "a cancel should reach the agent within two seconds"
    wait_until(lambda: not job.exists(), seconds=30, what="the job's end")
    if how == "cleared":
        (tmp_path / "go").touch()
        assert site.api.wait_for_run("steps", run) == "success"
        assert notes(tmp_path)["stepwise -1 1 ended"] == 0
    else:
        assert site.api.wait_for_run("steps", run) == "failed"
        assert agent.job_processes() == []


@pytest.mark.parametrize("carrier", ["http", "websocket"])
def test_either_carrier_carries_it_all(
    site: AirflowSite, start_agent: StartAgent, tmp_path: Path, carrier: str
) -> None:
    agent = start_agent(settings={"carrier": carrier})
    agent.wait_for_log(f"connected.*carrier={carrier}")
    run = trigger(site, "everything", tmp_path)
    assert site.api.wait_for_run("everything", run) == "success"
    assert sum(notes(tmp_path).values()) == 7
    assert agent.stop() == 0
