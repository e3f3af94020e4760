"""The runner's units by themselves: started by a connection, renewed in place, gone when idle. No agent, no Airflow."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness.waiting import wait_until
from machine.edge import RUNNER, RUNNER_DIR, RUNNER_SOCKET, MakeMachine
from machine.nspawn import NspawnMachine

SOCKET_UNIT = "edge-runner.socket"

# Says what it is told to, and prints what it hears until an event of the wanted kind. A runner that is ready says so in
# its hello.
_TALK = """
import json, socket, sys
path, say, wanted = sys.argv[1:]
s = socket.socket(socket.AF_UNIX)
s.settimeout(100)
s.connect(path)
if say:
    s.sendall(say.encode() + b"\\n")
for line in s.makefile("rb"):
    print(line.decode().strip(), flush=True)
    heard = json.loads(line)
    if heard["ev"] == wanted or (wanted == "ready" and heard.get("ready")):
        break
"""


@pytest.fixture(scope="module")
def machine(make_machine: MakeMachine) -> NspawnMachine:
    machine = make_machine()
    machine.run("systemctl", "start", SOCKET_UNIT)
    return machine


def talk(machine: NspawnMachine, wanted: str, say: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    text = json.dumps(say) if say else ""
    heard = machine.run("python3", "-c", _TALK, RUNNER_SOCKET, text, wanted, user="edge-agent", seconds=120)
    return [json.loads(line) for line in heard.splitlines()]


def test_the_first_connection_starts_it(machine: NspawnMachine) -> None:
    assert machine.show(RUNNER, "ActiveState") == "inactive"
    heard = talk(machine, "ready")
    machine.wait_for_unit(RUNNER, "active", seconds=10)
    assert heard[0]["ev"] == "hello"
    assert heard[0]["pid"] == machine.main_pid(RUNNER)
    assert machine.show(RUNNER, "StatusText") == "ready"


@pytest.mark.parametrize("user", ["nobody", "edge-task"])
def test_nobody_but_the_agent_reaches_it(machine: NspawnMachine, user: str) -> None:
    tried = machine.result("python3", "-c", _TALK, RUNNER_SOCKET, "", "hello", user=user)
    assert "PermissionError" in tried.stderr


def test_its_processes_are_where_they_belong(machine: NspawnMachine) -> None:
    pid = machine.main_pid(RUNNER)
    assert machine.run("stat", "-c", "%U:%G", f"/proc/{pid}").strip() == "edge-task:edge-task"
    assert "airflow-edge.slice" in machine.read(f"/proc/{pid}/cgroup")
    groups = next(line for line in machine.read(f"/proc/{pid}/status").splitlines() if line.startswith("Groups:"))
    assert groups.split()[1:] == [machine.run("id", "-g", "edge-task").strip()]
    assert "NoNewPrivs:\t1" in machine.read(f"/proc/{pid}/status")


def test_renewed_the_unit_has_another_main_process_and_never_stops(machine: NspawnMachine) -> None:
    talk(machine, "ready")
    before, invocation = machine.main_pid(RUNNER), machine.show(RUNNER, "InvocationID")
    talk(machine, "leaving", {"op": "renew"})
    wait_until(
        lambda: machine.main_pid(RUNNER) not in {0, before}, seconds=90, what="systemd to know the new main process"
    )
    # With no job left, the old one is soon gone; the new one answers at the same place.
    wait_until(lambda: machine.result("kill", "-0", str(before)).returncode != 0, seconds=90, what="the old one's end")
    heard = talk(machine, "hello")
    assert heard[0]["pid"] == machine.main_pid(RUNNER) != before
    assert machine.show(RUNNER, "ActiveState") == "active"
    assert machine.show(RUNNER, "InvocationID") == invocation
    assert [text for text in machine.messages("-u", RUNNER) if "reception only permitted" in text] == []


def test_a_stop_ends_all_of_it_and_the_socket_stays(machine: NspawnMachine) -> None:
    talk(machine, "hello")
    machine.run("systemctl", "stop", RUNNER, seconds=90)
    assert machine.show(RUNNER, "Result") == "success"
    assert machine.run("pgrep", "-u", "edge-task", "-l", check=False) == ""
    assert machine.show(SOCKET_UNIT, "ActiveState") == "active"
    talk(machine, "ready")


def test_killed_it_comes_back_with_the_next_connection(machine: NspawnMachine) -> None:
    talk(machine, "ready")
    before = machine.main_pid(RUNNER)
    machine.run("systemctl", "kill", "--kill-who=main", "-s", "KILL", RUNNER)
    machine.wait_for_unit(RUNNER, "failed", seconds=60)
    assert machine.run("pgrep", "-u", "edge-task", "-l", check=False) == ""
    assert talk(machine, "ready")[0]["pid"] != before


def test_idle_it_leaves_by_itself(machine: NspawnMachine) -> None:
    machine.run("systemctl", "stop", RUNNER, seconds=90)
    machine.write("/etc/default/edge-runner", "EDGE_RUNNER_IDLE_SECONDS=1\n")
    talk(machine, "ready")
    machine.wait_for_unit(RUNNER, "inactive", seconds=60)
    assert machine.show(RUNNER, "Result") == "success"
    machine.run("rm", "/etc/default/edge-runner")


def test_without_a_runtime_the_agent_is_told_and_the_socket_survives(machine: NspawnMachine) -> None:
    machine.run("systemctl", "stop", RUNNER, seconds=90)
    machine.write("/etc/default/edge-runner", "EDGE_RUNNER_PYTHON=/opt/none/bin/python\n")
    heard = talk(machine, "problem")
    assert "Task SDK" in heard[-1]["detail"], heard
    machine.wait_for_message("no task runtime there; install airflow-edge-runtime", "-u", RUNNER)
    assert machine.show(SOCKET_UNIT, "ActiveState") == "active"
    machine.run("rm", "/etc/default/edge-runner")
    talk(machine, "ready")


def test_one_that_cannot_start_is_not_started_in_a_frenzy(machine: NspawnMachine) -> None:
    machine.run("systemctl", "stop", RUNNER, seconds=90)
    machine.write(f"/etc/systemd/system/{RUNNER}.d/test.conf", "[Service]\nExecStart=\nExecStart=/bin/false\n")
    machine.run("systemctl", "daemon-reload")
    since = machine.run("date", "+%s.%N").strip()
    tried = machine.result("timeout", "7", "python3", "-c", _TALK, RUNNER_SOCKET, "", "hello", user="edge-agent")
    starts = [text for text in machine.messages("-u", RUNNER, f"--since=@{since}") if text.startswith("Starting")]
    machine.run("rm", f"/etc/systemd/system/{RUNNER}.d/test.conf")
    machine.run("systemctl", "daemon-reload")
    assert tried.stdout == ""
    assert 1 <= len(starts) <= 4, starts
    assert machine.show(SOCKET_UNIT, "ActiveState") == "active"
    talk(machine, "ready")


def test_what_it_leaves_is_not_for_others(machine: NspawnMachine) -> None:
    assert machine.run("find", RUNNER_DIR, "-perm", "/o+rwx", "!", "-type", "l") == ""
