"""Start, stop, restart and death of the agent and of the runner, with a task at work."""

from __future__ import annotations

import re
from typing import Any

import pytest

from harness.waiting import wait_until
from machine.edge import AGENT, RUNNER, Edge, MakeEdge

MOST_CPU_SECONDS_TO_READY = 1.0


def test_enable_now_makes_an_agent_that_runs_tasks(make_edge: MakeEdge) -> None:
    edge = make_edge()
    guest = edge.guest
    assert guest.show(AGENT, "ActiveState") == "inactive"
    guest.run("systemctl", "enable", "--now", AGENT)
    assert guest.show(AGENT, "ActiveState") == "active"
    edge.wait_connected()
    assert guest.show(RUNNER, "ActiveState") == "inactive", "an idle site pays for no runner"
    errand = edge.send("hold")
    errand.wait_began()
    # Two units, two users, one slice.
    for unit, user in ((AGENT, "edge-agent"), (RUNNER, "edge-task")):
        assert guest.show(unit, "ActiveState") == "active"
        assert guest.run("stat", "-c", "%U", f"/proc/{guest.main_pid(unit)}").strip() == user
        assert guest.show(unit, "Slice") == "airflow-edge.slice"
    errand.check_unharmed()


def test_ready_takes_little(edge: Edge) -> None:
    edge.guest.run("systemctl", "restart", AGENT)
    took = edge.usage(edge.pid()).cpu_seconds
    print(f"exec to READY: {edge.seconds_to_ready():.2f} s, {took:.2f} s of CPU")
    # A machine that is busy with other things has it wait, which is what `make bench-systemd` is for.
    assert took <= MOST_CPU_SECONDS_TO_READY
    edge.wait_connected()


def test_the_status_line_tells_the_truth(edge: Edge) -> None:
    status = wait_until(
        lambda: text_of(edge) if "connected" in text_of(edge) else "",
        seconds=30,
        what="a status that says 'connected'",
        seen=lambda: text_of(edge),
    )
    assert re.search(r"\b0/4\b", status), status
    errand = edge.send("hold")
    errand.wait_began()
    wait_until(lambda: "1/4" in text_of(edge), seconds=30, what="1/4 in the status", seen=lambda: text_of(edge))
    errand.check_unharmed()


def test_left_idle_it_finds_its_task_runtime_good(edge: Edge) -> None:
    edge.guest.run("systemctl", "restart", AGENT)
    daemon = str(edge.pid())
    # Seconds after the start it tries, locked in as it is, whether the runtime can be loaded.
    wait_until(
        lambda: edge.guest.run("pgrep", "-P", daemon, "-f", "execution_time", check=False),
        seconds=40,
        what="a proof of the runtime",
    )
    wait_until(
        lambda: not edge.guest.run("pgrep", "-P", daemon, "-f", "execution_time", check=False),
        seconds=60,
        what="the end of the proof",
    )
    status = edge.edgectl("status")
    assert (status["health"], status["faults"]) == ("healthy", []), status


def text_of(edge: Edge) -> str:
    return edge.guest.show(AGENT, "StatusText")


def test_a_restart_leaves_the_task_alone(edge: Edge) -> None:
    errand = edge.send("hold")
    task = errand.wait_began()
    before, runner = edge.pid(), edge.guest.main_pid(RUNNER)
    edge.guest.run("systemctl", "restart", AGENT)
    edge.wait_connected()
    assert edge.pid() != before
    assert edge.guest.main_pid(RUNNER) == runner
    assert edge.guest.result("kill", "-0", str(task)).returncode == 0
    errand.wait_for_more_lines()
    errand.check_unharmed()


def test_sigkill_of_the_agent_leaves_the_task_alone(edge: Edge) -> None:
    errand = edge.send("hold")
    errand.wait_began()
    before = edge.invocation()
    edge.guest.run("systemctl", "kill", "--kill-who=main", "-s", "KILL", AGENT)
    wait_until(lambda: edge.invocation() not in {"", before}, seconds=30, what="systemd to start the agent again")
    edge.guest.wait_for_unit(AGENT, "active")
    edge.wait_connected()
    errand.wait_for_more_lines()
    errand.check_unharmed()


def test_stop_waits_for_the_task_and_says_so(edge: Edge) -> None:
    errand = edge.send("hold")
    errand.wait_began()
    edge.guest.run("systemctl", "stop", "--no-block", AGENT)
    edge.guest.wait_for_unit(AGENT, "deactivating")
    wait_until(
        lambda: "waits for 1" in text_of(edge),
        seconds=30,
        what="a status that says what it waits for",
        seen=lambda: text_of(edge),
    )
    errand.wait_for_more_lines()
    errand.go()
    edge.guest.wait_for_unit(AGENT, "inactive")
    assert edge.guest.show(AGENT, "Result") == "success"
    assert edge.guest.show(AGENT, "ExecMainStatus") == "0"
    # All of it is at the server: nothing but the agent could have brought it there.
    errand.check_unharmed()
    edge.guest.run("systemctl", "start", AGENT)
    edge.wait_connected()


def test_sigkill_of_the_runner_is_reported_and_the_next_task_gets_a_new_one(edge: Edge) -> None:
    errand = edge.send("hold")
    task = errand.wait_began()
    daemon = edge.pid()
    edge.guest.run("systemctl", "kill", "--kill-who=main", "-s", "KILL", RUNNER)
    assert errand.wait(90) == "failed"
    wait_until(
        lambda: edge.guest.result("kill", "-0", str(task)).returncode != 0, seconds=30, what="the task to be gone"
    )
    assert edge.pid() == daemon
    edge.guest.run("systemctl", "is-active", "edge-runner.socket")
    again = edge.send("hold")
    again.wait_began()
    again.check_unharmed()


@pytest.mark.parametrize("conf", [{}, {"deaf": True}], ids=["heeds SIGTERM", "ignores SIGTERM"])
def test_stopping_the_runner_ends_its_tasks(edge: Edge, conf: dict[str, Any]) -> None:
    errand = edge.send("hold", **conf)
    task = errand.wait_began()
    edge.guest.run("systemctl", "stop", RUNNER, seconds=90)
    assert edge.guest.result("kill", "-0", str(task)).returncode != 0
    assert edge.guest.show(RUNNER, "Result") == "success"
    assert errand.wait(90) == "failed"
    assert [note[0] for note in errand.notes()] == ["began"]
    detail = str(edge.site.query(f"SELECT detail FROM edge_agent_job WHERE run_id = '{errand.run_id}'"))
    assert "the runner was told to stop" in detail, detail
    # Without a job there is no reason to start it again.
    edge.guest.run("edgectl", "status")
    assert edge.guest.show(RUNNER, "ActiveState") == "inactive"
