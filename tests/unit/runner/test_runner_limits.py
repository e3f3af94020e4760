from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_edge_agent.runner.limits import GroupUsage, Limits, describe_oom, tell, tell_oom, tell_unenforced

MIB = 2**20


def test_from_the_wire_and_back() -> None:
    data = {"memory_max_bytes": 512 * MIB, "cpu_quota_percent": 150.5, "pids_max": 9, "io_weight": 1, "future": True}
    limits = Limits.from_dict(data)
    del data["future"]
    assert limits.as_dict() == data
    assert Limits.from_dict(None) == Limits.from_dict({}) == Limits()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "limits: not a JSON object"),
        ({"pids_max": "9"}, "limits: pids_max is no number"),
        ({"pids_max": 9.5}, "limits: pids_max is no number"),
        ({"pids_max": True}, "limits: pids_max is no number"),
        ({"pids_max": 0}, "limits: pids_max is not between 1 and 4194304"),
        ({"cpu_quota_percent": float("nan")}, "limits: cpu_quota_percent is not between 1 and 10000000"),
        ({"io_weight": 10_001}, "limits: io_weight is not between 1 and 10000"),
    ],
)
def test_bad_limits(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"^limits: ") as caught:
        Limits.from_dict(data)
    assert str(caught.value) == message


def killed(**more: Any) -> GroupUsage:
    return GroupUsage(oom_kills=2, at_own_limit=True, peak_memory_bytes=round(511.8 * MIB), **more)


def test_the_sentence() -> None:
    limits = Limits(memory_max_bytes=512 * MIB)
    assert describe_oom(killed(), limits) == "killed: out of memory, limit 512 MiB, peak 511.8 MiB"
    assert describe_oom(GroupUsage(oom_kills=1, at_own_limit=True), limits) == "killed: out of memory, limit 512 MiB"
    assert describe_oom(GroupUsage(peak_memory_bytes=1), limits) is None
    host = describe_oom(GroupUsage(oom_kills=1, peak_memory_bytes=3 * MIB), limits)
    assert host == "killed: out of memory on this host or in the agent's slice, not at a limit of the job, peak 3 MiB"


@pytest.mark.parametrize(
    ("before", "lines"),
    [("", 1), ('{"event": "whole"}\n', 2), ('{"event": "cut', 2)],
)
def test_the_log_is_told_on_a_line_of_its_own(tmp_path: Path, before: str, lines: int) -> None:
    log = tmp_path / "task.log"
    if before:
        log.write_text(before)
    sentence = tell_oom(log, killed(), Limits(memory_max_bytes=512 * MIB))
    written = log.read_text()
    assert written.endswith("\n")
    assert len(written.splitlines()) == lines
    line = json.loads(written.splitlines()[-1])
    assert line["event"] == sentence == "killed: out of memory, limit 512 MiB, peak 511.8 MiB"
    assert line["level"] == "error"
    assert datetime.now(UTC) - datetime.fromisoformat(line["timestamp"]) < timedelta(minutes=1)


def test_nothing_to_tell(tmp_path: Path) -> None:
    log = tmp_path / "task.log"
    assert tell_oom(log, GroupUsage(), Limits()) is None
    tell_unenforced(log, ())
    assert not log.exists()


def test_limits_that_are_not_kept_are_named(tmp_path: Path) -> None:
    log = tmp_path / "task.log"
    tell_unenforced(log, ("pids_max: there is no pids controller here",))
    line = json.loads(log.read_text())
    assert (line["level"], line["event"]) == (
        "warning",
        "limit not enforced: pids_max: there is no pids controller here",
    )


def test_a_trap_where_the_log_should_be(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    link = tmp_path / "link"
    link.symlink_to(victim)
    tell(link, "x")
    assert victim.read_text() == "mine"
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    tell(fifo, "x")  # must come back
    tell(tmp_path / "no" / "folder", "x")
