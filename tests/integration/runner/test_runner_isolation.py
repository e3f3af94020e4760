"""What a task can reach of the daemon, the runner and other jobs, with daemon and runner as two users. Needs root."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import airflow_edge_agent.runner
from airflow_edge_agent.adapters.jobstore import DirectoryJobStore
from airflow_edge_agent.runner import processes, wire
from airflow_edge_agent.runner.wire import Outcome
from harness.waiting import wait_until
from integration.runner.execution_api import ExecutionApi, execution_api
from unit.runner.runner_client import SECONDS, Client, RunnerProcess, short_folder

PROGRAM = Path(airflow_edge_agent.runner.__file__).with_name("__main__.py")
AGENT, TASK = 61_001, 61_002
AS_TASK = ["setpriv", f"--reuid={TASK}", f"--regid={TASK}", "--clear-groups"]

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes processes of two other users"),
    pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv of util-linux"),
]

DAG = """
import ctypes, hashlib, json, os, re, socket, time
from pathlib import Path
from airflow.sdk import DAG, task

PLACES = json.loads(Path({places!r}).read_text())

def attempt(what):
    try:
        return ["got", repr(what())[:200]]
    except OSError as error:
        return ["refused", error.strerror]

def memory():
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split()
        begin, end = (int(part, 16) for part in fields[0].split("-"))
        if fields[1].startswith("rw") and not fields[-1].startswith("[v"):
            yield ctypes.string_at(begin, end - begin)

def finds(first, length, digest):
    # Only the first half of what is looked for is here, so that the search does not find itself.
    for piece in memory():
        at = -1
        while (at := piece.find(first.encode(), at + 1)) >= 0:
            rest = piece[at + len(first) : at + len(first) + length]
            if hashlib.sha256(rest).hexdigest() == digest:
                return True
    return False

def connect(path):
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(path)

with DAG("spy"):
    @task
    def hide():
        Path(PLACES["hidden"]).touch()
        time.sleep(600)

    @task
    def spy():
        seen = {{
            "token": attempt(lambda: Path(PLACES["token"]).read_bytes()),
            "control": attempt(lambda: connect(PLACES["control"])),
            "runner socket": None,
        }}
        with socket.socket(socket.AF_UNIX) as one:
            try:
                one.settimeout(20)
                one.connect(PLACES["runner socket"])
                seen["runner socket"] = len(one.recv(100))
            except OSError:
                seen["runner socket"] = 0
        others = {{}}
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid() and os.stat("/proc/" + name).st_uid in (0, PLACES["task"]):
                others[name] = [
                    attempt(lambda: open("/proc/" + name + "/" + file, "rb").read(1)) for file in ("mem", "environ")
                ] + [attempt(lambda: os.listdir("/proc/" + name + "/fd"))]
        files = ["/proc/%d/%s" % (PLACES["agent"], file) for file in ("mem", "environ")]
        others["agent"] = [attempt(lambda: open(file, "rb").read(1)) for file in files]
        seen["others"] = others
        seen["found"] = {{name: finds(*needle) for name, needle in PLACES["needles"].items()}}
        Path(PLACES["seen"]).write_text(json.dumps(seen))

    @task
    def swap():
        log = Path.cwd().parent / "task.log"
        log.unlink()
        log.symlink_to(PLACES["token"])

    hide(), spy(), swap()
"""


def needle(text: str) -> list[Any]:
    half = len(text) // 2
    return [text[:half], len(text) - half, hashlib.sha256(text[half:].encode()).hexdigest()]


@dataclass
class Site:
    base: Path
    places: dict[str, Any]
    runner: RunnerProcess
    client: Client
    api: ExecutionApi
    store: DirectoryJobStore

    def start(self, task_id: str, *, token: str = "header.payload.signature", run_id: str = "r") -> str:
        ti = {
            "id": str(uuid.uuid4()),
            "dag_version_id": str(uuid.uuid4()),
            "task_id": task_id,
            "dag_id": "spy",
            "run_id": run_id,
            "try_number": 1,
            "map_index": -1,
            "pool_slots": 1,
            "priority_weight": 1,
            "queue": "default",
        }
        workload = {"ti": ti, "dag_rel_path": "spy.py", "bundle_info": {"name": "here", "version": None}}
        return self.client.run(workload, token=token, server=self.api.url)


@contextlib.contextmanager
def the_agent(base: Path) -> Iterator[dict[str, Any]]:
    """Something in the daemon's place: a process of its user, its token, and its socket in a private folder."""
    private = base / "agent"
    private.mkdir(mode=0o700)
    token = private / "credential"
    token.write_text("eac_secret")
    token.chmod(0o600)
    (private / "jobs").mkdir(mode=0o700)
    control = socket.socket(socket.AF_UNIX)
    control.bind(str(private / "control.sock"))
    control.listen()
    for path in (private, *private.iterdir()):
        os.chown(path, AGENT, AGENT)
    with subprocess.Popen(["setpriv", f"--reuid={AGENT}", f"--regid={AGENT}", "--clear-groups", "sleep", "600"]) as it:
        try:
            yield {"token": str(token), "control": str(private / "control.sock"), "agent": it.pid}
        finally:
            it.kill()
            control.close()


@pytest.fixture
def site() -> Iterator[Site]:
    can = subprocess.run(
        [*AS_TASK, sys.executable, "-c", "import airflow.sdk"], capture_output=True, cwd="/", check=False
    )
    if can.returncode != 0:
        pytest.skip("this Python cannot be run by other users")
    with short_folder() as base, execution_api() as api, the_agent(base) as places:
        base.chmod(0o711)
        folder = base / "runner"
        bundle = base / "bundle"
        for path, mode in ((folder, 0o2770), (folder / "jobs", 0o2770), (folder / "out", 0o700), (bundle, 0o755)):
            path.mkdir()
            os.chown(path, TASK, AGENT)
            path.chmod(mode)
        places |= {
            "hidden": str(folder / "out" / "hidden"),
            "seen": str(folder / "out" / "seen"),
            "runner socket": str(folder / "r.sock"),
            "task": TASK,
        }
        (bundle / "spy.py").write_text(DAG.format(places=str(folder / "places")))
        local = "airflow.dag_processing.bundles.local.LocalDagBundle"
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder / "out"),
            "USER": "edge-task",
            "AIRFLOW_HOME": str(folder / "out"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(
                [{"name": "here", "classpath": local, "kwargs": {"path": str(bundle)}}]
            ),
            "CONTROL_OF_THE_SEARCH": "must-be-found-" + secrets.token_hex(16),
        }
        places["needles"] = {"control": needle(env["CONTROL_OF_THE_SEARCH"])}
        command = [*AS_TASK, sys.executable, "-P", str(PROGRAM)]
        runner = RunnerProcess(folder, command, env, 60, "--peer-uid", str(AGENT))
        try:
            with runner.connect() as client:
                if not client.next(wire.Hello).ready:
                    client.next(wire.Ready)
                yield Site(base, places, runner, client, api, DirectoryJobStore(base / "agent" / "jobs", folder))
        finally:
            runner.end()


def as_agent(site: Site, read: Callable[[], bytes]) -> bytes:
    """Let the daemon's user read something."""
    source, target = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(AGENT, AGENT, AGENT)
            os.setresuid(AGENT, AGENT, AGENT)
            os.write(target, read())
        finally:
            os._exit(0)
    os.close(target)
    with os.fdopen(source, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    return data


def forget(store: DirectoryJobStore, job_id: str) -> bytes:
    store.forget(job_id)
    return b""


def test_a_task_sees_neither_the_agent_nor_another_job(site: Site) -> None:
    token, run_id = "canary-token-" + secrets.token_hex(24), "canary-run-" + secrets.token_hex(24)
    site.places["needles"] |= {"token": needle(token), "workload": needle(run_id)}
    (site.runner.base / "places").write_text(json.dumps(site.places))
    (site.runner.base / "places").chmod(0o644)
    other = site.start("hide", token=token, run_id=run_id)
    started = site.client.next(wire.Started, other)
    wait_until(Path(site.places["hidden"]).exists, seconds=SECONDS, what="the other job", poll_seconds=0.05)
    job_id = site.start("spy")
    result = site.client.result(job_id)
    assert result.outcome is Outcome.FINISHED, result
    seen = json.loads(Path(site.places["seen"]).read_text())
    assert seen["token"] == ["refused", "Permission denied"]
    assert seen["control"] == ["refused", "Permission denied"]
    assert seen["runner socket"] == 0, "the runner does not speak with its tasks"
    assert seen["found"] == {"control": True, "token": False, "workload": False}
    others = seen["others"]
    runner = site.runner.process.pid
    family = {process.pid for process in processes.family(runner)}
    assert {str(runner), str(started.pid), "agent"} <= set(others)
    assert len(family & {int(pid) for pid in others if pid.isdigit()}) >= 3, "runner, zygote and the other task"
    got = {pid: answers for pid, answers in others.items() if any(kind == "got" for kind, _ in answers)}
    assert got == {}
    site.client.signal(other, 9)
    site.client.result(other)


def test_the_daemon_reads_what_the_runner_wrote_and_nothing_a_task_put_there(site: Site) -> None:
    (site.runner.base / "places").write_text(json.dumps(site.places))
    (site.runner.base / "places").chmod(0o644)
    job_id = site.start("swap")
    result = site.client.result(job_id)
    assert result.outcome is Outcome.FINISHED, result.detail
    folder = site.runner.jobs / job_id
    found = {path.name: path.lstat() for path in folder.iterdir()}
    assert stat.S_ISLNK(found["task.log"].st_mode)
    assert as_agent(site, lambda: site.store.read_log(job_id, 0, 1_000)) == b""
    assert as_agent(site, lambda: str(site.store.log_size(job_id)).encode()) == b"0"
    # By the same name, as a second link: the kernel may keep tasks from making one, this test makes it for them.
    (folder / "task.log").unlink()
    os.link(site.places["token"], folder / "task.log")
    assert as_agent(site, lambda: site.store.read_log(job_id, 0, 1_000)) == b""
    # All else is the daemon's to read and to remove, and no business of others.
    found.pop("task.log")
    assert {(one.st_uid, one.st_gid, stat.S_IMODE(one.st_mode)) for one in found.values()} == {(TASK, AGENT, 0o660)}
    assert as_agent(site, lambda: str(site.store.ended(job_id)).encode()).startswith(b"JobEnded(")
    as_agent(site, lambda: forget(site.store, job_id))
    assert not folder.exists()
