"""The runner's program with the real Task SDK, against a server that speaks the calls a task makes."""

from __future__ import annotations

import json
import os
import stat
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import airflow_edge_agent.runner
from airflow_edge_agent.runner import processes, wire
from airflow_edge_agent.runner.wire import Outcome
from harness.waiting import wait_until
from integration.runner.execution_api import ExecutionApi, execution_api
from unit.runner.runner_client import SECONDS, Client, RunnerProcess, short_folder

pytestmark = pytest.mark.integration

PROGRAM = Path(airflow_edge_agent.runner.__file__).with_name("__main__.py")

DAG = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from airflow.sdk import DAG, task

OUT = Path({out!r})

def notify(**kwargs):
    print("callback", kwargs)
    if kwargs.get("fail"):
        raise ValueError("as asked")

with DAG("plain"):
    @task
    def tell():
        print("hello from the task")
        told = dict(
            modules=[name for name in sys.modules if name.startswith("airflow_edge_agent")],
            path=sys.path, cwd=os.getcwd(), tmpdir=os.environ["TMPDIR"], notify=os.environ.get("NOTIFY_SOCKET"),
        )
        (OUT / "told").write_text(json.dumps(told))
        return 1

    @task
    def fail():
        raise ValueError("as asked")

    @task
    def die():
        os._exit(42)

    @task
    def sleep():
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        (OUT / "sleeping").touch()
        time.sleep(600)

    tell(), fail(), die(), sleep()
"""


@dataclass
class Site:
    runner: RunnerProcess
    client: Client
    api: ExecutionApi
    out: Path

    def start(self, task_id: str, *, server: str | None = None, **faults: int | None) -> tuple[str, str]:
        ti_id = str(uuid.uuid4())
        for call, fault in faults.items():
            self.api.faults[ti_id, call] = fault
        workload: dict[str, Any] = {
            "type": "ExecuteTask",
            "ti": {
                "id": ti_id,
                "dag_version_id": str(uuid.uuid4()),
                "task_id": task_id,
                "dag_id": "plain",
                "run_id": "r",
                "try_number": 1,
                "map_index": -1,
                "pool_slots": 1,
                "priority_weight": 1,
                "queue": "default",
            },
            "dag_rel_path": "plain.py",
            "bundle_info": {"name": "here", "version": None},
            "log_path": "not/to/be/used.log",
        }
        return ti_id, self.client.run(workload, token="header.payload.signature", server=server or self.api.url)

    def result_of(self, task_id: str, *, server: str | None = None, **faults: int | None) -> wire.JobResult:
        return self.client.result(self.start(task_id, server=server, **faults)[1])

    def log_of(self, job_id: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.runner.jobs / job_id / "task.log").read_text().splitlines()]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with short_folder() as base, execution_api() as api:
        bundle = base / "bundle"
        bundle.mkdir()
        (bundle / "plain.py").write_text(DAG.format(out=str(base)))
        local = {
            "name": "here",
            "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
            "kwargs": {"path": str(bundle)},
        }
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(base),
            "NOTIFY_SOCKET": "/nowhere",
            "AIRFLOW_HOME": str(base / "home"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([local]),
            "AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "1",
            "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "5",
        }
        runner = RunnerProcess(base, [sys.executable, "-P", str(PROGRAM)], env, 60)
        try:
            with runner.connect() as client:
                ready = client.next(wire.Ready)
                assert ready.versions.task_sdk.startswith("1.")
                yield Site(runner, client, api, base)
        finally:
            runner.end()


def test_a_task_runs(site: Site) -> None:
    ti_id, job_id = site.start("tell")
    result = site.client.result(job_id)
    assert (result.outcome, result.exit_code, result.detail) == (Outcome.FINISHED, 0, None)
    assert site.api.states(ti_id) == ["success"]
    assert site.api.tokens[ti_id] == {"Bearer header.payload.signature"}
    assert any(line["event"] == "hello from the task" for line in site.log_of(job_id))
    assert 0 < result.cpu_seconds < 5
    folder = site.runner.jobs / job_id
    assert {path.name for path in folder.iterdir()} == {"result.json", "pid.json", "supervisor.log", "task.log"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert not [path for path in folder.iterdir() if "header.payload" in path.read_text()]
    assert {path.name for path in site.runner.jobs.iterdir()} >= {job_id}
    assert not (site.runner.jobs / "not").exists()


def test_a_task_sees_nothing_of_us(site: Site) -> None:
    _, job_id = site.start("tell")
    site.client.result(job_id)
    told = json.loads((site.out / "told").read_text())
    assert told["modules"] == []
    assert not [entry for entry in told["path"] if "airflow_edge_agent" in entry or entry == str(PROGRAM.parent)]
    assert told["cwd"] == told["tmpdir"] == str(site.runner.jobs / job_id / "tmp")
    assert told["notify"] is None


def test_the_end_of_a_task_is_noticed_at_once(site: Site) -> None:
    # The stock supervisor sits out [workers] min_heartbeat_interval, 5 s, in about every second of these.
    assert max(site.result_of("tell").wall_seconds for _ in range(8)) < 4


def test_a_failing_task_is_a_finished_job(site: Site) -> None:
    ti_id, job_id = site.start("fail")
    assert site.client.result(job_id).outcome is Outcome.FINISHED
    assert site.api.states(ti_id) == ["failed"]


def test_a_dying_task_is_a_failed_job(site: Site) -> None:
    ti_id, job_id = site.start("die")
    result = site.client.result(job_id)
    assert (result.outcome, result.exit_code) == (Outcome.FAILED, 42)
    assert result.detail == "the task's process ended with exit code 42; Airflow was told 'failed'"
    assert site.api.states(ti_id) == ["failed"]


@pytest.mark.parametrize("status", [404, 409, 410])
def test_a_start_that_airflow_does_not_want_any_more(site: Site, status: int) -> None:
    ti_id, job_id = site.start("tell", run=status)
    result = site.client.result(job_id)
    assert (result.outcome, result.exit_code) == (Outcome.SUPERSEDED, None)
    assert result.detail == f"Airflow refused the start: {status} invalid_state: no (state: success)"
    assert [call for call, _ in site.api.calls[ti_id]] == ["run"]


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_airflow_does_not_take(site: Site, status: int) -> None:
    result = site.result_of("tell", run=status)
    assert result.outcome is Outcome.UNAUTHORIZED
    assert (result.detail or "").startswith(f"Airflow refused the job's token: {status}")


def test_a_server_that_is_not_there(site: Site) -> None:
    result = site.result_of("tell", server="http://127.0.0.1:9/execution/")
    assert result.outcome is Outcome.NOT_STARTED
    assert result.detail == "could not be started: ConnectError: [Errno 111] Connection refused"


def test_a_start_without_answer_may_have_happened(site: Site) -> None:
    result = site.result_of("tell", run=None)
    assert result.outcome is Outcome.UNDELIVERED
    assert "no answer came" in (result.detail or "")


@pytest.mark.parametrize(
    ("task_id", "fault", "says"),
    [("tell", 500, "500 invalid_state"), ("fail", 500, "500 invalid_state"), ("tell", None, "no answer")],
)
def test_a_state_that_cannot_be_delivered(site: Site, task_id: str, fault: int | None, says: str) -> None:
    result = site.result_of(task_id, state=fault)
    assert result.outcome is Outcome.UNDELIVERED
    assert says in (result.detail or "")


def test_a_state_that_airflow_does_not_want_any_more(site: Site) -> None:
    result = site.result_of("tell", state=409)
    assert result.outcome is Outcome.SUPERSEDED
    assert "answered the task's state with 409" in (result.detail or "")


def test_an_invalid_workload(site: Site) -> None:
    result = site.client.result(site.client.run({"ti": {"id": 1}}))
    assert result.outcome is Outcome.NOT_STARTED
    assert "ValidationError" in (result.detail or "")
    assert "\n" not in (result.detail or "")


def test_a_task_is_ended_with_all_it_has_started(site: Site) -> None:
    _, job_id = site.start("sleep")
    started = site.client.next(wire.Started, job_id)
    wait_until((site.out / "sleeping").exists, seconds=SECONDS, what="the task", poll_seconds=0.05)
    # The task, and the process that has left the session.
    family = wait_until(
        lambda: len(found := processes.family(started.pid)) >= 2 and found, seconds=SECONDS, what="the job's processes"
    )
    assert family
    site.client.signal(job_id, 9)
    assert site.client.result(job_id).outcome is Outcome.KILLED
    left = [processes.look(process.pid) for process in family]
    assert [process for process in left if process is not None and not process.dead] == []


@pytest.mark.parametrize(("fail", "outcome", "code"), [(False, Outcome.FINISHED, 0), (True, Outcome.FAILED, 1)])
def test_a_callback(site: Site, fail: bool, outcome: Outcome, code: int) -> None:  # noqa: FBT001 -- a parameter of the test
    name = "unusual_prefix_0123456789_plain.notify"
    workload = {
        "type": "ExecuteCallback",
        "callback": {
            "id": str(uuid.uuid4()),
            "fetch_method": "import_path",
            "data": {"path": name, "kwargs": {"fail": fail}},
        },
        "dag_rel_path": "plain.py",
        "bundle_info": {"name": "here", "version": None},
        "log_path": "x",
    }
    job_id = site.client.run(workload, kind="callback", server=site.api.url)
    result = site.client.result(job_id)
    assert (result.outcome, result.exit_code) == (outcome, code)
    assert any(str(line["event"]).startswith("callback") for line in site.log_of(job_id))


def test_a_connection_test(site: Site) -> None:
    test_id = str(uuid.uuid4())
    workload = {"type": "TestConnection", "connection_test_id": test_id, "connection_id": "scale", "timeout": 20}
    job_id = site.client.run(workload, kind="connection_test", server=site.api.url)
    result = site.client.result(job_id)
    assert (result.outcome, result.exit_code, result.detail) == (Outcome.FINISHED, 0, None)
    (verdict,) = [body for call, body in site.api.calls[""] if call == test_id]
    assert verdict["state"] == "failed"
    assert "balance" in verdict["result_message"]


def test_a_connection_test_that_nobody_knows_of(site: Site) -> None:
    test_id = str(uuid.uuid4())
    site.api.faults["", "connection"] = 404
    site.api.faults["", test_id] = 404
    workload = {"type": "TestConnection", "connection_test_id": test_id, "connection_id": "scale", "timeout": 20}
    job_id = site.client.run(workload, kind="connection_test", server=site.api.url)
    result = site.client.result(job_id)
    assert result.outcome is Outcome.FAILED
    assert result.detail is not None
    assert "could not report" in result.detail
    site.api.faults.clear()


def test_a_runtime_without_the_sdk_is_told_in_one_line() -> None:
    with short_folder() as base:
        # This Python without its packages is a runtime that has nothing.
        runner = RunnerProcess(base, [sys.executable, "-S", "-P", str(PROGRAM)], {"PATH": os.environ["PATH"]}, 60)
        try:
            with runner.connect() as client:
                detail = client.next(wire.Problem).detail
                client.until_end()
            assert "has no Airflow Task SDK" in detail
            assert "[runner] python" in detail
            assert runner.wait() == 78
            assert runner.log == f"edge-runner: {detail}\n"
        finally:
            runner.end()
