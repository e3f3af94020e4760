"""What operators do with edgectl, with a real Airflow at the other end."""

from __future__ import annotations

import getpass
import json
import re
import secrets
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pytest

from airflow_edge_agent.ctl.client import Client
from harness.agent import AgentProcess
from harness.site import AirflowSite
from harness.waiting import wait_until
from integration.end_to_end.conftest import StartAgent
from integration.end_to_end.test_end_to_end import notes

pytestmark = pytest.mark.integration


def ctl(agent: AgentProcess, *arguments: str, code: int | None = 0) -> str:
    done = subprocess.run(
        [Path(sys.prefix) / "bin" / "edgectl", "--config", agent.config, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert code is None or done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done.stdout


def row(site: AirflowSite, agent: AgentProcess, columns: str) -> tuple[Any, ...]:
    (found,) = site.query(f"SELECT {columns} FROM edge_agent WHERE name = '{agent.name}'")
    return tuple(found)


def test_maintenance_from_both_ends(site: AirflowSite, start_agent: StartAgent) -> None:
    agent = start_agent()
    ctl(agent, "status", "--wait", "healthy", "--timeout", "30s")
    ctl(agent, "maintenance", "on", "--comment", "new disk", "--wait")
    wait_until(lambda: row(site, agent, "state")[0] == "maintenance mode", seconds=10, what="the server to show it")
    by, comment = row(site, agent, "maintenance_by, maintenance_comment")
    assert by == f"{getpass.getuser()}@{socket.gethostname()}"
    assert comment == "new disk"
    wait_until(
        lambda: json.loads(ctl(agent, "status", "--json", code=None))["maintenance"]["told_to_server"],
        seconds=10,
        what="the server to confirm it",
    )
    agent.restart(kill=True)
    ctl(agent, "status", "--wait", "maintenance", "--timeout", "30s")
    ctl(agent, "status", "--wait", "connected", "--timeout", "30s")
    assert json.loads(ctl(agent, "status", "--json", code=None))["maintenance"]["comment"] == "new disk"
    # The other end takes it back, and asks for it in turn.
    site.cli("edge-agents", "maintenance", "off", agent.name)
    ctl(agent, "status", "--wait", "idle", "--timeout", "30s")
    wait_until(
        lambda: json.loads(ctl(agent, "status", "--json", code=None))["maintenance"] is None,
        seconds=30,
        what="maintenance to end",
    )
    site.cli("edge-agents", "maintenance", "on", agent.name, "--comment", "inventory")
    ctl(agent, "status", "--wait", "maintenance", "--timeout", "30s")
    found = json.loads(ctl(agent, "status", "--json", code=None))["maintenance"]
    assert (found["comment"], found["asked_at"]) == ("inventory", "server")
    assert found["by"]
    # And here it ends again, for good.
    ctl(agent, "maintenance", "off")
    wait_until(lambda: row(site, agent, "state")[0] == "idle", seconds=10, what="the server to show the end")
    assert row(site, agent, "maintenance_wanted") == (None,)


def test_slots_and_queues_reach_the_server_within_a_second(site: AirflowSite, start_agent: StartAgent) -> None:
    agent = start_agent()
    ctl(agent, "status", "--wait", "healthy", "--timeout", "30s")
    ctl(agent, "concurrency", "9")
    wait_until(lambda: row(site, agent, "slots_total") == (9,), seconds=3, what="the slots to be stored")
    ctl(agent, "queues", "--add", "press shop")
    wait_until(lambda: "press shop" in str(row(site, agent, "queues")[0]), seconds=3, what="the queues to be stored")
    checks = {check["name"]: check for check in json.loads(ctl(agent, "doctor", "--json", code=None))}
    good = ("daemon", "DNS", "TCP", "credential", "clock", "carrier")
    assert [checks[name]["verdict"] for name in good] == ["ok"] * len(good)


def test_a_restart_that_is_announced_leaves_a_running_task_alone(
    site: AirflowSite, start_agent: StartAgent, tmp_path: Path
) -> None:
    agent = start_agent()
    run = site.api.trigger_dag("steps", conf={"dir": str(tmp_path)})
    ctl(agent, "status", "--wait", "running", "--timeout", "60s")
    wait_until(lambda: json.loads(ctl(agent, "jobs", "--json"))[0]["phase"] == "running", seconds=60, what="its start")
    (job,) = json.loads(ctl(agent, "jobs", "--json"))
    assert (job["phase"], job["dag_id"], job["task_id"]) == ("running", "steps", "stepwise")
    isolation = json.loads(ctl(agent, "status", "--json"))["isolation"]
    assert isolation["own_supervisor"] is None
    assert isolation["cgroups"] or isolation["missing"]
    wait_until(
        lambda: "first line" in ctl(agent, "logs", job["job_id"][:8]),
        seconds=90,
        what="the first line",
        seen=lambda: ctl(agent, "logs", job["job_id"]) + ctl(agent, "jobs"),
    )
    ctl(agent, "drain")
    assert "still runs   steps" in ctl(agent, "status")
    ctl(agent, "resume")
    # As the unit's ExecStop does, when systemd says that the stop is part of a restart.
    Client(agent.state_dir / "run" / "control.sock").ask("stopping", kind="restart")
    assert agent.process is not None
    agent.process.signal(signal.SIGTERM)
    assert agent.process.wait(15) == 0
    said = agent.log_text()
    assert "stopping (restart), leaves to the next start 1 running job" in said
    agent.start()
    ctl(agent, "status", "--wait", "connected", "--timeout", "30s")
    (again,) = json.loads(ctl(agent, "jobs", "--json"))
    assert (again["job_id"], again["pid"]) == (job["job_id"], job["pid"])
    follow = subprocess.Popen(
        [Path(sys.prefix) / "bin" / "edgectl", "--config", agent.config, "logs", "-f", job["job_id"]],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert follow.stdout is not None
    assert any("first line" in line for line in follow.stdout), "the log from its beginning"
    # It is followed now: the test decides when the task goes on.
    (tmp_path / "go").touch()
    rest, _ = follow.communicate(timeout=60)
    assert "last line" in rest
    assert site.api.wait_for_run("steps", run, seconds=60) == "success"


def test_no_secret_is_left_anywhere(site: AirflowSite, start_agent: StartAgent, tmp_path: Path) -> None:
    """Plant secrets, use them, fail with them, and search everything that the product has written or shows."""
    planted = {name: f"canary-{name}-{secrets.token_hex(8)}" for name in ("password", "variable", "proxy")}
    site.api.wait_for_dag("canaries")
    connection = {"connection_id": "canary", "conn_type": "http", "password": planted["password"]}
    site.api.request("POST", "/api/v2/connections", json=connection)
    site.api.request("POST", "/api/v2/variables", json={"key": "canary_secret", "value": planted["variable"]})
    proxy = {"HTTPS_PROXY": f"http://user:{planted['proxy']}@127.0.0.1:9", "NO_PROXY": "127.0.0.1,localhost"}
    agent = start_agent(variables=proxy, settings={"log": {"level": "debug"}})
    key = agent.credential_file.read_text().strip().split("_", 2)[2]
    needles = {"the agent's private key": key} | planted | site._secrets

    def found_in(texts: Iterable[tuple[str, bytes]], *, spared: Collection[str] = ()) -> list[str]:
        hits = [
            f"{name} in {place}"
            for place, data in texts
            for name, value in needles.items()
            if name not in spared and value.encode() in data
        ]
        return hits + [f"a token of Airflow in {place}" for place, data in texts if JWT.search(data)]

    run = site.api.trigger_dag("canaries", conf={"dir": str(tmp_path)})
    wait_until((tmp_path / "holds").exists, seconds=90, what="the task to hold its secrets")
    processes = list(site.keeper.processes())
    assert agent.runner() in processes
    assert found_in([(f"argv of {p.pid}", proc(p.pid, "cmdline")) for p in processes]) == []
    ours = [agent.process.pid, agent.runner().pid, *(p.pid for p in agent.job_processes())]  # type: ignore[union-attr]
    # Tasks may need the proxy, too: they are given its address as it is.
    environments = [(f"environment of {pid}", proc(pid, "environ")) for pid in ours]
    assert found_in(environments, spared=["proxy"]) == []
    assert "Max core file size        0" in proc(ours[0], "limits").decode(), "no core dump of the daemon"

    kept = written(agent)
    assert {"agent.log", "identity.json"} <= {Path(place).name for place, _ in kept}
    assert any("/runner/jobs/" in place for place, _ in kept), "the job's own files are there"
    assert found_in(kept) == []

    (tmp_path / "go").touch()
    assert site.api.wait_for_run("canaries", run, seconds=60) == "failed"
    ctl(agent, "doctor", code=None)
    ctl(agent, "status", "--json", code=None)
    ctl(agent, "bugreport", "--output", str(tmp_path / "report.tar.gz"))
    agent.restart(kill=True)
    ctl(agent, "status", "--wait", "connected", "--timeout", "30s")
    with tarfile.open(tmp_path / "report.tar.gz") as report:
        parts = [(f"report: {m.name}", report.extractfile(m).read()) for m in report.getmembers()]  # type: ignore[union-attr]
    assert len(parts) > 3
    assert found_in(parts) == []
    assert found_in(written(agent)) == []
    assert found_in([(str(path), path.read_bytes()) for path in site.logs.rglob("*.log")]) == []
    tables = [name for (name,) in site.query(TABLES[site._database_url.split(":")[0].split("+")[0]])]
    assert "edge_agent_job" in tables
    rows = [(table, b"\n".join(plain(row) for row in site.query(f"SELECT * FROM {table}"))) for table in tables]
    assert any(b"has a password of" in data for table, data in rows if table == "edge_agent_log"), "the log is there"
    assert found_in(rows) == []


def plain(row: Iterable[Any]) -> bytes:
    # psycopg2 hands out bytes as something whose text says nothing of them.
    return repr([bytes(value) if isinstance(value, memoryview) else value for value in row]).encode()


JWT = re.compile(rb"\beyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]+")
TABLES = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'edge_agent%'",
    "postgresql": "SELECT tablename FROM pg_tables WHERE tablename LIKE 'edge_agent%'",
}


def written(agent: AgentProcess) -> list[tuple[str, bytes]]:
    """Read everything in the agent's folder but its credential."""
    found = [path for path in agent.root.rglob("*") if path.is_file() and path != agent.credential_file]
    return [(str(path), path.read_bytes()) for path in found]


def proc(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def test_what_the_server_wants_counts_for_jobs(site: AirflowSite, start_agent: StartAgent, tmp_path: Path) -> None:
    """Drain, slots and queues, as an administrator sets them: the scheduler's jobs go by them."""
    agent = start_agent(concurrency=4)

    def order(*words: str) -> None:
        site.cli("edge-agents", *words, agent.name)

    def began() -> int:
        return sum(notes(tmp_path).values())

    def waiting(run: str) -> Collection[str]:
        listed = json.loads(site.cli("edge-agents", "jobs", "--state", "queued", "--output", "json"))
        return {job["why"] for job in listed if job["run_id"] == run}

    order("drain")
    wait_until(lambda: row(site, agent, "drain_wanted")[0], seconds=10, what="the drain to be stored")
    run = site.api.trigger_dag("crowd", conf={"dir": str(tmp_path)})
    jobs = f"SELECT count(*) FROM edge_agent_job WHERE run_id = '{run}' AND state = "
    wait_until(lambda: site.query(f"{jobs}'queued'") == [(6,)], seconds=60, what="six jobs to wait")
    assert any("drained" in why for why in waiting(run)), waiting(run)
    assert began() == 0

    order("concurrency", "2")
    order("resume")
    wait_until(lambda: began() == 2, seconds=60, what="two to begin")
    wait_until(lambda: any("full" in why for why in waiting(run)), seconds=30, what="it to be full")
    assert (began(), site.query(f"{jobs}'queued'")) == (2, [(4,)])
    order("concurrency", "5")
    wait_until(lambda: began() == 5, seconds=60, what="five to begin")

    order("serve", "--remove", "default")
    wait_until(lambda: row(site, agent, "queues")[0] in ([], "[]"), seconds=30, what="no queue to be served")
    (tmp_path / "go").touch()
    wait_until(lambda: site.query(f"{jobs}'finished'") == [(5,)], seconds=60, what="five to end")
    assert site.query(f"{jobs}'queued'") == [(1,)]
    # Agents of other tests were here, and may count as such that serve the queue when they come back.
    assert any("no agent" in why or "not connected" in why for why in waiting(run)), waiting(run)
    order("serve", "--reset")
    assert site.api.wait_for_run("crowd", run) == "success"
    assert agent.stop() == 0
