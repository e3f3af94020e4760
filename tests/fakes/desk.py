"""The part of a daemon that takes what tasks say for Airflow, on a real disk, and an Airflow that answers as told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_edge_agent.adapters.jobstore import DirectoryJobStore
from airflow_edge_agent.core.agent import AgentCore
from airflow_edge_agent.core.events import JobEnded, JobFound
from airflow_edge_agent.core.policy import Limits
from airflow_edge_agent.ports import NotReached, RelayCall, RelayReply
from airflow_edge_agent.protocol.frames import AgentFrame
from airflow_edge_agent.protocol.jobs import Outcome
from airflow_edge_agent.runtime.finals import FinalStates
from airflow_edge_agent.runtime.pump import Pump
from airflow_edge_agent.runtime.relay import Relay
from airflow_edge_agent.runtime.rendered import RenderedFields
from fakes.frames import make_offer, new_id
from fakes.runner import MemoryRunner

TARGET = f"task-instances/{new_id()}/state"


@dataclass
class Airflow:
    """Answers as told; ``None``: is not there."""

    answer: RelayReply | None = None
    again: Callable[[], RelayReply] | None = None
    """Makes each answer, where there is more than one with a body."""
    got: list[tuple[str, RelayCall]] = field(default_factory=list)
    open: asyncio.Event | None = None
    """Set it to let answers come; ``None``: they come at once."""

    @asynccontextmanager
    async def relay(self, job_id: str, fence: int, call: RelayCall) -> AsyncIterator[RelayReply]:
        assert fence == 7
        answer = self.again() if self.again is not None else self.answer
        if answer is None:
            raise NotReached("cut")
        self.got.append((job_id, call))
        if self.open is not None:
            await self.open.wait()
        yield answer


class Desk:
    """A daemon's part that has to do with final states, on a real disk."""

    def __init__(self, folder: Path) -> None:
        self.jobs = folder / "jobs"
        self.runner = folder / "runner"
        for path in (self.jobs, self.runner / "jobs"):
            path.mkdir(parents=True, exist_ok=True)
        self.airflow = Airflow()
        self.restart()

    def restart(self) -> None:
        """A daemon that knows nothing but what is on disk; the host has been booted."""
        self.store = DirectoryJobStore(self.jobs, self.runner)
        self.core = AgentCore(Limits(4, kill_grace_seconds=5, drain_deadline_seconds=0))
        self.pump = Pump(self.core, store=self.store, runner=MemoryRunner(), boot_id="b", default_execution_url="x")
        self.rendered = RenderedFields(self.pump, self.airflow, self.store)
        self.finals = FinalStates(self.pump, self.airflow, self.store, self.rendered)
        self.relay = Relay(
            self.pump, self.airflow, Path("nowhere"), b"k" * 64, finals=self.finals, rendered=self.rendered
        )
        for job in self.store.load():
            self.pump.feed(
                JobFound(job.job_id, job.fence, job.slots, job.label, None, JobEnded(job.job_id, Outcome.LOST))
            )

    def add(self, *, lease: float = 1_800.0) -> str:
        offer = make_offer(job_id=new_id(), fence=7, disconnect_lease_seconds=lease)
        self.store.add(offer, "b")
        folder = self.runner / "jobs" / offer.job_id
        folder.mkdir()
        (folder / "task.log").write_text('{"event": "hello"}\n')
        self.pump.feed(JobFound(offer.job_id, 7, 1, "a task", pid=5, disconnect_lease_seconds=lease))
        return offer.job_id

    async def say(self, job_id: str, state: str = "success") -> int:
        """Tell the relay a final state, as a task's supervisor does; return the status."""
        return await self.call(job_id, "PATCH", TARGET, {"state": state})

    async def call(self, job_id: str, method: str, target: str, content: Any) -> int:
        body = json.dumps(content).encode()
        headers = [(b"authorization", f"Bearer {self.relay.secret(job_id)}".encode()), (b"x-more", b"1")]
        headers.append((b"content-type", b"application/json"))
        async with self.relay.handle(RelayCall(method, f"/execution/{target}".encode(), headers, body)) as reply:
            return reply.status

    def end(self, job_id: str, outcome: Outcome = Outcome.FINISHED) -> None:
        self.pump.feed(JobEnded(job_id, outcome, 0, log_bytes=self.store.log_size(job_id)))

    async def sent(self) -> list[AgentFrame]:
        return [] if self.pump.outbox.empty else await self.pump.outbox.take()

    async def deliver(self) -> bool:
        return await self.finals._deliver_all()

    def log(self, job_id: str) -> str:
        return (self.runner / "jobs" / job_id / "task.log").read_text()


def refusal(status: int, previous: str | None = None, *, refused: bool = False) -> RelayReply:
    async def body() -> AsyncIterator[bytes]:
        yield json.dumps({"detail": {"reason": "no", "message": "not so", "previous_state": previous}}).encode()

    return RelayReply(status, [], body(), refused=refused)
