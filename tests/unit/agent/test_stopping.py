"""What a stop is for, by what systemd says; and task logs on their way to the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from airflow_edge_agent.core.agent import AgentCore
from airflow_edge_agent.core.events import FrameArrived, JobEnded, JobStarted, LinkOpened
from airflow_edge_agent.core.policy import Limits
from airflow_edge_agent.ctl.stopping import announce, stop_kind
from airflow_edge_agent.protocol.frames import AcceptAck, LogAck, ResultAck
from airflow_edge_agent.protocol.jobs import Outcome
from airflow_edge_agent.runtime.pump import Pump
from airflow_edge_agent.runtime.tasklog import TaskLogs
from fakes import MemoryJobStore, MemoryRunner
from fakes.frames import make_offer, make_welcome
from fakes.waiting import eventually

UNIT = "edge-agent.service"


@pytest.mark.parametrize(
    ("state", "jobs", "kind"),
    [
        ("running", f"12 {UNIT} stop running", "stop"),
        ("running", f"11 other.service stop waiting\n12 {UNIT} restart running", "restart"),
        ("degraded", f"12 {UNIT} try-restart running", "restart"),
        ("stopping", f"12 {UNIT} stop running", "shutdown"),
        ("running", "11 other.service stop waiting", None),
        ("running", "", None),
        ("", "nonsense", None),
    ],
)
def test_what_systemd_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, jobs: str, kind: str | None
) -> None:
    program = tmp_path / "systemctl"
    program.write_text(f"#!/bin/sh\n[ $1 = list-jobs ] && printf '%s\\n' '{jobs}' || {{ echo {state}; exit 1; }}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert stop_kind(UNIT) == kind


def test_a_stop_takes_place_even_if_nobody_can_be_asked_or_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert stop_kind(UNIT) is None
    assert announce(UNIT, tmp_path / "none.sock") == 0
    monkeypatch.setattr("airflow_edge_agent.ctl.stopping.stop_kind", lambda _: "stop")
    assert announce(UNIT, tmp_path / "none.sock") == 0
    assert "no such socket" in capsys.readouterr().err


async def test_lines_of_task_logs_become_entries_with_the_task_in_them() -> None:
    store = MemoryJobStore()
    core = AgentCore(Limits(4, kill_grace_seconds=5, drain_deadline_seconds=0))
    pump = Pump(core, store=store, runner=MemoryRunner(), boot_id="b", default_execution_url="x")
    said: list[Mapping[str, str]] = []

    def send(fields: Mapping[str, str]) -> bool:
        said.append(fields)
        return True

    pump.feed(LinkOpened(make_welcome()))
    ti = {"id": "i", "dag_id": "etl", "task_id": "load", "run_id": "r", "try_number": 1, "map_index": -1}
    offer = make_offer(workload={"ti": ti})
    logs = asyncio.create_task(TaskLogs(pump, store, send).run())
    await asyncio.sleep(0)
    pump.feed(FrameArrived(offer))
    pump.feed(FrameArrived(AcceptAck(job_id=offer.job_id, fence=offer.fence)))
    await pump.settle()
    pump.feed(JobStarted(offer.job_id, 7))
    store.runner_logged(offer.job_id, b'{"event": "half past", "level": "warning"}\nplain wor')
    await eventually(lambda: said)
    entry = dict(said[0])
    assert (entry["MESSAGE"], entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"]) == ("half past", "4", "edge-task")
    assert (entry["AIRFLOW_DAG_ID"], entry["AIRFLOW_TASK_ID"], entry["EDGE_JOB_ID"]) == ("etl", "load", offer.job_id)
    # The job ends, and its files go, before anybody has looked again.
    store.runner_logged(offer.job_id, b"ds eac_0123456789abcdef_" + b"s" * 43 + b"\nend without a line end")
    size = store.log_size(offer.job_id)
    pump.feed(JobEnded(offer.job_id, Outcome.FINISHED, log_bytes=size))
    await pump.settle()
    pump.feed(FrameArrived(ResultAck(job_id=offer.job_id, fence=offer.fence)))
    pump.feed(FrameArrived(LogAck(job_id=offer.job_id, next_offset=size)))
    assert offer.job_id not in core.jobs
    assert [entry["MESSAGE"] for entry in said] == [
        "half past", "plain words eac_0123456789abcdef_********", "end without a line end"
    ]  # fmt: skip
    logs.cancel()
    await asyncio.gather(logs, return_exceptions=True)
