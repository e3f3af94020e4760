"""Task logs in the journal: each line once, with the names of its task, and nothing secret."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from airflow_edge_agent.core.agent import AgentCore
from airflow_edge_agent.core.events import FrameArrived, JobEnded, JobStarted, LinkOpened
from airflow_edge_agent.core.policy import Limits
from airflow_edge_agent.protocol.frames import AcceptAck, LogAck, ResultAck
from airflow_edge_agent.protocol.jobs import Outcome
from airflow_edge_agent.runtime import tasklog
from airflow_edge_agent.runtime.pump import Pump
from airflow_edge_agent.runtime.tasklog import TaskLogs
from fakes import MemoryJobStore, MemoryRunner
from fakes.frames import make_offer, make_welcome
from fakes.waiting import eventually


class Copying:
    """A daemon with one running job whose log is copied."""

    def __init__(self) -> None:
        self.store = MemoryJobStore()
        self.core = AgentCore(Limits(4, kill_grace_seconds=5, drain_deadline_seconds=0))
        self.pump = Pump(self.core, store=self.store, runner=MemoryRunner(), boot_id="b", default_execution_url="x")
        self.entries: list[Mapping[str, str]] = []
        self.job = ""

    async def begin(self) -> None:
        offer = make_offer(label="etl.load")
        self.job = offer.job_id
        self.pump.feed(LinkOpened(make_welcome()))
        self.pump.feed(FrameArrived(offer))
        self.pump.feed(FrameArrived(AcceptAck(job_id=offer.job_id, fence=offer.fence)))
        await self.pump.settle()
        self.pump.feed(JobStarted(offer.job_id, 7))

    def take(self, fields: Mapping[str, str]) -> bool:
        self.entries.append(fields)
        return True

    def said(self) -> list[str]:
        return [entry["MESSAGE"] for entry in self.entries]


@pytest.fixture
async def copying(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Copying]:
    monkeypatch.setattr(tasklog, "LOOK_SECONDS", 0.01)
    copying = Copying()
    await copying.begin()
    loop = asyncio.create_task(TaskLogs(copying.pump, copying.store, copying.take).run())
    await asyncio.sleep(0)
    yield copying
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


async def test_lines_are_copied_whole_and_once(copying: Copying) -> None:
    copying.store.runner_logged(copying.job, b"one\ntw")
    await eventually(lambda: copying.said() == ["one"])
    copying.store.runner_logged(copying.job, b"o\n\n" + b"x" * 100_000 + b"\nlast")
    await eventually(lambda: "two" in copying.said())
    copying.pump.feed(JobEnded(copying.job, Outcome.FINISHED, log_bytes=100_017))
    await copying.pump.settle()
    copying.pump.feed(FrameArrived(ResultAck(job_id=copying.job, fence=1)))
    copying.pump.feed(FrameArrived(LogAck(job_id=copying.job, next_offset=100_017)))
    await eventually(lambda: copying.said()[-1] == "last")
    assert copying.said()[:2] == ["one", "two"]
    assert set("".join(copying.said()[2:-1])) == {"x"}, "what is too long for one entry"
    assert copying.entries[0]["SYSLOG_IDENTIFIER"] == "edge-task"
    assert copying.entries[0]["EDGE_JOB_ID"] == copying.job


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (b'{"event": "disk is full", "level": "error"}', {"MESSAGE": "disk is full", "PRIORITY": "3"}),
        (b'{"event": 3}', {"MESSAGE": '{"event": 3}', "PRIORITY": "6"}),
        (b"eac_0123456789abcdef_hunter2", {"MESSAGE": "eac_0123456789abcdef_********"}),
        (b"\xff\xfe", {"MESSAGE": "\N{REPLACEMENT CHARACTER}" * 2}),
    ],
)
async def test_what_an_entry_says(copying: Copying, line: bytes, wanted: dict[str, Any]) -> None:
    copying.store.runner_logged(copying.job, line + b"\n")
    await eventually(lambda: copying.entries)
    (entry,) = copying.entries
    assert {name: entry[name] for name in wanted} == wanted
