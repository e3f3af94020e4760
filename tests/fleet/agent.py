"""One simulated agent: the real core, a WebSocket, and tasks that do nothing."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_edge_agent.adapters.batches import groups
from airflow_edge_agent.adapters.credential import Credential, Prover
from airflow_edge_agent.core.agent import AgentCore
from airflow_edge_agent.core.backoff import Backoff
from airflow_edge_agent.core.events import (
    Event,
    Exit,
    ForgetJob,
    FrameArrived,
    JobEnded,
    JobStarted,
    LinkLost,
    LinkOpened,
    LogGrew,
    Say,
    Send,
    ShipLog,
    SignalJob,
    StartJob,
    Tick,
)
from airflow_edge_agent.core.policy import Limits
from airflow_edge_agent.protocol import PROTOCOL_OLDEST, PROTOCOL_VERSION
from airflow_edge_agent.protocol.codec import decode_batch, decode_server_frame, encode_batch, pack_log
from airflow_edge_agent.protocol.frames import (
    AgentFrame,
    AnyFrame,
    Close,
    Heartbeat,
    Hello,
    Log,
    Metrics,
    Offer,
    Versions,
    Welcome,
)
from airflow_edge_agent.protocol.jobs import Outcome
from fleet.execution import CallError, ExecutionCalls
from fleet.line import PING_SECONDS, ServerLine

if TYPE_CHECKING:
    from fleet.crowd import Crowd

_LEAVING = frozenset({1001, 1012})
_MAX_SEND_BYTES = 256 * 1024
_VERSIONS = Versions(agent="0.1.0", python="3.11.7", task_sdk="1.3.2", airflow="3.3.2", runtime_python="3.11.7")
_METRICS = Metrics(
    cpu_percent=12.5,
    cpu_count=4,
    memory_total_bytes=8 * 2**30,
    memory_used_bytes=3 * 2**30,
    swap_total_bytes=2**30,
    swap_used_bytes=0,
    state_disk_total_bytes=64 * 2**30,
    state_disk_used_bytes=20 * 2**30,
    state_disk_free_bytes=44 * 2**30,
    uptime_seconds=86_400,
    agent_memory_bytes=30 * 2**20,
)
_CONFIGURATION = {
    "server_url": "https://airflow.example.com",
    "queues": ["default"],
    "concurrency": 8,
    "carrier": "auto",
    "spool_max_mb": 500,
    "kill_grace_seconds": 30,
}


class SimulatedAgent:
    """An agent of a :class:`~fleet.crowd.Crowd`, which has the clock, the counters and what the tasks are like."""

    def __init__(self, crowd: Crowd, name: str, credential: Credential, *, concurrency: int) -> None:
        self.name = name
        self.core = AgentCore(
            Limits(concurrency=concurrency, kill_grace_seconds=30, drain_deadline_seconds=0, queues=("default",))
        )
        self.wanted = False
        """Whether it is to be connected."""
        self._crowd = crowd
        self._prover = Prover(credential, Path("/nowhere"))
        self._backoff = Backoff()
        self._attempts = itertools.count()
        self._agent_id, self._instance_id = str(uuid.uuid4()), str(uuid.uuid4())
        self._line: ServerLine | None = None
        self._session_id: str | None = None
        self._outbox: list[AgentFrame] = []
        self._flushing = False
        self._generation = 0

    # The link

    def connect(self) -> None:
        """Open a connection."""
        if self.wanted and self._line is None:
            line = self._line = ServerLine(
                self._crowd.url,
                self._prover.header(),
                opened=self._say_hello,
                heard=self._heard,
                ended=self._ended,
            )
            self._crowd.dial(line)

    def leave(self) -> None:
        """Close the connection, and stay away."""
        self.wanted = False
        if self._line is not None:
            self._line.close()

    def _say_hello(self) -> None:
        self._send(
            [
                Hello(
                    protocol_min=PROTOCOL_OLDEST,
                    protocol_max=PROTOCOL_VERSION,
                    name=self.name,
                    agent_id=self._agent_id,
                    boot_id="simulated",
                    instance_id=self._instance_id,
                    attempt=next(self._attempts),
                    hostname=f"{self.name}.example",
                    versions=_VERSIONS,
                    queues=["default"],
                    concurrency=self.core.limits.concurrency,
                    state=self.core.state,
                    jobs=self.core.held_jobs(),
                    configuration=dict(_CONFIGURATION),
                    execution_api="relay" if self._crowd.relays else "direct",
                )
            ]
        )

    def _heard(self, data: bytes) -> None:
        self._crowd.counts.messages_in += 1
        for raw in decode_batch(data).frames:
            frame = decode_server_frame(raw)
            if isinstance(frame, Welcome):
                self._opened(frame)
            elif isinstance(frame, Close):
                self._crowd.counts.closes.append(f"{self.name}: {frame.code}: {frame.message}")
                self.feed(FrameArrived(frame))
            else:
                self.feed(FrameArrived(frame))

    def _opened(self, welcome: Welcome) -> None:
        self._backoff.reset()
        self._session_id = welcome.session_id
        self._generation += 1
        self._crowd.note_back()
        self.feed(LinkOpened(welcome))
        generation = self._generation
        self._beat(generation, welcome.intervals.heartbeat_seconds)
        self._crowd.wheel.after(PING_SECONDS, lambda: self._ping(generation))

    def _beat(self, generation: int, every: float) -> None:
        if generation == self._generation and self.core.connected:
            beat = Heartbeat(metrics=_METRICS, sent_at=datetime.now(UTC), versions=_VERSIONS)
            self._send([self.core.status(), beat])
            self._crowd.wheel.after(every, lambda: self._beat(generation, every))

    def _ping(self, generation: int) -> None:
        if generation == self._generation and self._line is not None and self._line.ping():
            self._crowd.wheel.after(PING_SECONDS, lambda: self._ping(generation))

    def _ended(self, code: int, retry_after: float) -> None:
        connected, self._line, self._session_id = self.core.connected, None, None
        self._generation += 1
        self._outbox.clear()
        if connected:
            self._crowd.note_lost(code)
            self.feed(LinkLost(f"closed with {code}"))
        if not self.wanted:
            return
        chance = self._crowd.random.random()
        if connected and code in _LEAVING:
            pause = chance * self.core.intervals.reconnect_spread_seconds
        else:
            self._crowd.note_refused(code)
            pause = self._backoff.next_seconds(chance, at_least_seconds=retry_after)
        self._crowd.wheel.after(pause, self.connect)

    def _send(self, frames: list[AgentFrame]) -> None:
        line = self._line
        if line is None:
            return
        for group in groups(frames, _MAX_SEND_BYTES):
            outgoing: list[AnyFrame] = list(group)
            self._crowd.counts.messages_out += 1
            line.send(encode_batch(outgoing, session_id=self._session_id))

    # The core

    def feed(self, event: Event) -> None:
        """Tell the core, and do what it says."""
        busy = bool(self.core.jobs)
        for instruction in self.core.handle(event, time.monotonic()):
            match instruction:
                case Send(frame):
                    self._outbox.append(frame)
                case StartJob(offer):
                    self._start(offer)
                case ShipLog(job_id, offset, limit):
                    piece = self._crowd.log_piece(offset, limit)
                    self._outbox.append(Log(job_id=job_id, offset=offset, data=pack_log(piece)))
                case SignalJob(job_id):
                    self._crowd.counts.killed += 1
                    self._later(0, JobEnded(job_id, Outcome.KILLED, exit_code=-15))
                case ForgetJob():
                    self._crowd.counts.delivered += 1
                case Say(level, message) if level in {"warning", "error"}:
                    self._crowd.counts.complaints.append(f"{self.name}: {message}")
                case Exit(code, reason):
                    self._crowd.counts.errors.append(f"{self.name}: left with exit code {code}: {reason}")
                    self.wanted = False
                case _:
                    pass
        if self._outbox and not self._flushing:
            # What is said in one go goes into one message, as the daemon's outbox has it.
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)
        if self.core.jobs and not busy:
            self._crowd.wheel.after(1, self._tick)

    def _flush(self) -> None:
        self._flushing = False
        frames, self._outbox = self._outbox, []
        if frames and self.core.connected:
            self._send(frames)

    def _tick(self) -> None:
        if self.core.jobs:
            self.feed(Tick())
            if self.core.jobs:
                self._crowd.wheel.after(1, self._tick)

    def _start(self, offer: Offer) -> None:
        job_id = offer.job_id
        log_bytes = self._crowd.job_log_bytes
        self._crowd.counts.started += 1
        self._later(0, JobStarted(job_id, pid=1 + int(hashlib.sha256(job_id.encode()).hexdigest()[:5], 16)))
        if self._crowd.execution is not None:
            self._crowd.spawn(self._work(offer, self._crowd.execution))
            return
        if log_bytes:
            self._later(self._crowd.job_seconds, LogGrew(job_id, log_bytes))
        ended = JobEnded(job_id, Outcome.FINISHED, exit_code=0, log_bytes=log_bytes)
        self._later(self._crowd.job_seconds, ended)

    async def _work(self, offer: Offer, execution: ExecutionCalls) -> None:
        ended = JobEnded(offer.job_id, Outcome.FINISHED, exit_code=0)
        try:
            await execution.run(offer, self._prover.header)
            await asyncio.sleep(self._crowd.job_seconds)
            await execution.succeed(offer, self._prover.header)
        except CallError as error:
            self._crowd.counts.errors.append(f"{self.name}: {error}")
            ended = JobEnded(offer.job_id, Outcome.FAILED, exit_code=1)
        self.feed(ended)

    def _later(self, seconds: float, event: Event) -> None:
        # Never from within the core, which is in the middle of something.
        if seconds:
            self._crowd.wheel.after(seconds, lambda: self.feed(event))
        else:
            asyncio.get_running_loop().call_soon(self.feed, event)
