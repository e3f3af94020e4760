"""Requests on the control socket, with everything around them in memory."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_edge_agent.adapters.control_socket import ControlListener
from airflow_edge_agent.core.agent import AgentCore
from airflow_edge_agent.core.backoff import Backoff
from airflow_edge_agent.core.events import FrameArrived, JobEnded, JobStarted, LinkOpened, StopKind
from airflow_edge_agent.core.policy import Limits
from airflow_edge_agent.ctl import show
from airflow_edge_agent.ctl.client import Client, Refused
from airflow_edge_agent.protocol.frames import AcceptAck, LogAck, ResultAck
from airflow_edge_agent.protocol.jobs import Outcome
from airflow_edge_agent.runtime.control import Control, Powers
from airflow_edge_agent.runtime.guard import Progress
from airflow_edge_agent.runtime.link import LinkLoop
from airflow_edge_agent.runtime.pump import Pump
from airflow_edge_agent.runtime.reports import Person, Reporter
from fakes import FixedProbe, MemoryJobStore, MemoryRunner, MemoryTransport, ScriptedServer
from fakes.frames import make_hello, make_offer, make_welcome
from fakes.waiting import eventually


class Daemon:
    """As much of a daemon as answers requests."""

    def __init__(self, path: Path) -> None:
        self.store = MemoryJobStore()
        self.core = AgentCore(Limits(4, kill_grace_seconds=5, drain_deadline_seconds=0, queues=("default",)))
        self.pump = Pump(self.core, store=self.store, runner=MemoryRunner(), boot_id="b", default_execution_url="x")
        self.server = ScriptedServer()
        self.transport = MemoryTransport(self.server)
        self.link = LinkLoop(self.pump, self.transport, FixedProbe(), hello=make_hello, backoff=Backoff())
        person = Person("edge-1", "1", 42, "a", "i", 0.0, "https://x")
        self.reporter = Reporter(self.core, self.link, person)
        self.announced: list[StopKind] = []

        async def reload() -> dict[str, Any]:
            raise ZeroDivisionError

        control = Control(
            self.pump, self.store, self.reporter, Progress(), Powers(reload, self.announced.append, dict),
            operator_group="x", read_group=None,
        )  # fmt: skip
        self.listener = ControlListener(path, read_group=None, operator_group="x", handler=control)
        self.client = Client(path)

    async def run_job(self) -> str:
        offer = make_offer(label="etl.load")
        self.pump.feed(LinkOpened(make_welcome()))
        self.pump.feed(FrameArrived(offer))
        self.pump.feed(FrameArrived(AcceptAck(job_id=offer.job_id, fence=offer.fence)))
        await self.pump.settle()
        self.pump.feed(JobStarted(offer.job_id, 7))
        return offer.job_id

    async def ask(self, do: str, **request: Any) -> dict[str, Any]:
        return await asyncio.to_thread(self.client.ask, do, **request)

    async def all(self, do: str, **request: Any) -> list[dict[str, Any]]:
        return await asyncio.to_thread(lambda: list(self.client.stream(do, **request)))


@pytest.fixture
async def daemon(tmp_path: Path) -> Any:
    daemon = Daemon(tmp_path / "c.sock")
    await daemon.listener.open()
    yield daemon
    await daemon.listener.close()


async def test_a_log_so_far(daemon: Daemon) -> None:
    job = await daemon.run_job()
    daemon.store.runner_logged(job, "gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n\n".encode() * 10_000)
    first, *pieces, end = await daemon.all("logs", job=job[:8])
    assert (first["job_id"], first["task"], first["phase"]) == (job, "etl.load", "running")
    assert len(pieces) > 1
    assert "".join(piece["data"] for piece in pieces) == "gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n\n" * 10_000
    assert end == {"ok": True, "end": True, "bytes": 60_000, "outcome": None}


async def test_a_log_is_followed_until_the_job_ends(daemon: Daemon) -> None:
    job = await daemon.run_job()
    daemon.store.runner_logged(job, b"one\n")
    follow = asyncio.create_task(daemon.all("logs", job="etl.load", follow=True, patient=True))
    await asyncio.sleep(0.1)
    daemon.store.runner_logged(job, b"two\n")
    daemon.pump.feed(JobEnded(job, Outcome.FINISHED, log_bytes=8))
    _, *pieces, end = await follow
    assert "".join(piece["data"] for piece in pieces) == "one\ntwo\n"
    assert end["outcome"] == "finished"


async def test_what_came_last_is_shown_even_if_the_files_have_gone_meanwhile(daemon: Daemon) -> None:
    job = await daemon.run_job()
    daemon.store.runner_logged(job, b"one\n")
    follow = asyncio.create_task(daemon.all("logs", job=job, follow=True, patient=True))
    await eventually(lambda: daemon.pump.before_forget)
    daemon.store.runner_logged(job, b"two\n")
    daemon.pump.feed(JobEnded(job, Outcome.FINISHED, log_bytes=8))
    await daemon.pump.settle()
    daemon.pump.feed(FrameArrived(ResultAck(job_id=job, fence=1)))
    daemon.pump.feed(FrameArrived(LogAck(job_id=job, next_offset=8)))
    assert daemon.core.jobs == {}
    _, *pieces, end = await follow
    assert "".join(piece["data"] for piece in pieces) == "one\ntwo\n"
    assert (end["bytes"], end["outcome"]) == (8, "finished")
    assert daemon.pump.before_forget == []


async def test_which_job_is_meant(daemon: Daemon) -> None:
    await daemon.run_job()
    await daemon.run_job()
    with pytest.raises(Refused, match="fits 2 jobs"):
        await daemon.ask("logs", job="etl.load")
    with pytest.raises(Refused, match="no job"):
        await daemon.ask("logs", job="zzzz")


async def test_jobs_and_status(daemon: Daemon) -> None:
    job = await daemon.run_job()
    (found,) = (await daemon.ask("jobs"))["jobs"]
    assert (found["job_id"], found["phase"], found["pid"], found["task"]) == (job, "running", 7, "etl.load")
    assert found["running_seconds"] < 30
    status = (await daemon.ask("drain"))["status"]
    assert (status["running"], status["slots_used"], status["state"]) == (["etl.load"], 1, "running")
    assert "drained by" in daemon.reporter.line()


async def test_what_does_not_fit_is_a_warning_and_no_fault(daemon: Daemon) -> None:
    async def seen() -> tuple[list[str], list[str]]:
        status = (await daemon.ask("status"))["status"]
        assert (status["health"], status["faults"]) == ("healthy", [])
        return status["warnings"], [line for line in show.status(status) if "warning" in line]

    daemon.server.on_hello = lambda _: [
        make_welcome(airflow_version="3.3.2", server_time=datetime.now(UTC) - timedelta(hours=1))
    ]
    loop = asyncio.create_task(daemon.link.run())
    await eventually(lambda: daemon.core.connected)
    versions = make_hello().versions
    daemon.link.runtime_known(versions.model_copy(update={"task_sdk": "1.3.1", "airflow": "3.3.1"}))
    (version, clock), shown = await seen()
    assert version == "the task runtime has Airflow 3.3.1, the server 3.3.2: another patch"
    assert clock == "this machine's clock differs from the server's: 3600 s ahead"
    assert [line.split(maxsplit=1)[1] for line in shown] == [version, clock]

    daemon.server.on_hello = lambda _: [make_welcome(airflow_version="3.3.1")]
    daemon.transport.links[-1].cut()
    await eventually(lambda: daemon.core.connected and len(daemon.transport.links) == 2)
    assert await seen() == ([], []), "it is over as soon as it is mended"
    loop.cancel()


async def test_a_fault_inside_is_an_answer_and_not_the_end(daemon: Daemon) -> None:
    with pytest.raises(Refused, match="could not answer") as caught:
        await daemon.ask("reload")
    assert caught.value.code == "internal"
    await daemon.ask("stopping", kind="restart")
    assert daemon.announced == ["restart"]
