"""Limits, out of memory, fork bombs and a real reboot, under a kernel that has cgroup v2 with all controllers."""

from __future__ import annotations

import json

import pytest

from harness.waiting import wait_until
from machine.edge import AGENT, RUNNER, Edge

MEBIBYTE = 2**20


@pytest.mark.sample
def test_a_task_has_a_cgroup_with_its_limits(edge: Edge) -> None:
    errand = edge.send("place")
    assert errand.wait() == "success", errand.log()
    place = errand.returned()
    print(place)
    assert place["cgroup"].startswith("/airflow.slice/airflow-edge.slice/edge-runner.service/job-")
    assert place["memory.max"] == str(256 * MEBIBYTE)
    assert place["memory.oom.group"] == "1"
    assert place["pids.max"] == "60"
    assert place["cpu.max"] == "150000 100000"


@pytest.mark.sample
def test_a_task_out_of_memory_is_ended_alone_and_told_why(edge: Edge) -> None:
    bystander = edge.send("hold")
    bystander.wait_began()
    runner = edge.guest.main_pid(RUNNER)
    errand = edge.send("glutton", megabytes=600)
    assert errand.wait() == "failed"
    assert [note[0] for note in errand.notes()] == ["began"]
    wait_until(
        lambda: any("memory" in line.lower() and "256" in line for line in errand.log()),
        seconds=60,
        what="a sentence about memory and its limit in the task's log",
        seen=lambda: errand.log()[-5:],
    )
    assert edge.guest.main_pid(RUNNER) == runner
    assert edge.guest.show(RUNNER, "ActiveState") == "active"
    bystander.check_unharmed()


def test_a_fork_bomb_ends_at_its_limit(edge: Edge) -> None:
    errand = edge.send("rabbits", most=500)
    assert errand.wait() == "success", errand.log()
    assert 0 < errand.returned() < 60
    assert edge.guest.show(AGENT, "ActiveState") == "active"


def test_what_a_task_writes_and_reads_is_counted(edge: Edge) -> None:
    errand = edge.send("scribe", megabytes=8)
    assert errand.wait() == "success", errand.log()
    assert errand.returned() == 8 * MEBIBYTE
    ((usage,),) = edge.site.query(f"SELECT usage FROM edge_agent_job WHERE run_id = '{errand.run_id}'")
    used = json.loads(usage) if isinstance(usage, str) else usage
    print(used)
    # The rest is what the task's own log and its imports take.
    assert 8 * MEBIBYTE <= used["io_write_bytes"] < 16 * MEBIBYTE
    assert 8 * MEBIBYTE <= used["io_read_bytes"] < 80 * MEBIBYTE


def test_nothing_is_left_of_ended_jobs(edge: Edge) -> None:
    group = "/sys/fs/cgroup" + edge.guest.show(RUNNER, "ControlGroup")
    wait_until(
        lambda: "job-" not in edge.guest.run("ls", group, check=False),
        seconds=60,
        what="the cgroups of ended jobs to be gone",
        seen=lambda: edge.guest.run("ls", group, check=False),
    )


def test_a_real_reboot_is_reported_as_such(edge: Edge) -> None:
    errand = edge.send("hold")
    errand.wait_began()
    # Like a power failure: nobody has time to report anything.
    edge.guest.result("sh", "-c", "sync; (sleep 1; echo b > /proc/sysrq-trigger) >/dev/null 2>&1 &")
    assert errand.wait(180) == "failed"
    edge.guest.wait_for_unit(AGENT, "active", seconds=300)
    again = edge.send("hold")
    again.wait_began()
    again.check_unharmed()
    rows = edge.site.query(f"SELECT detail FROM edge_agent_job WHERE run_id = '{errand.run_id}'")
    assert any("reboot" in str(row[0]) for row in rows), rows
