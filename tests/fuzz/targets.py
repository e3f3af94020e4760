"""The two ends of the wire, real as far as no task is started: codec, agent API with its dispatcher, agent."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import tempfile
import uuid
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import structlog
from sqlalchemy import delete, event
from structlog.testing import LogCapture

from airflow_edge_agent.core.agent import AgentCore
from airflow_edge_agent.core.backoff import Backoff
from airflow_edge_agent.core.events import JobEnded, JobStarted, LogGrew, Tick
from airflow_edge_agent.core.policy import Limits
from airflow_edge_agent.protocol.codec import (
    FrameError,
    decode_agent_frame,
    decode_batch,
    decode_server_frame,
    encode_batch,
    unpack_log,
)
from airflow_edge_agent.protocol.frames import MAX_BATCH_BYTES
from airflow_edge_agent.protocol.jobs import Outcome
from airflow_edge_agent.runtime.link import LinkLoop
from airflow_edge_agent.runtime.pump import Pump
from airflow_edge_server.api import hub
from airflow_edge_server.api.hub import Pace
from airflow_edge_server.store.models import EdgeAgent, EdgeAgentJob, EdgeAgentLog
from fakes.frames import make_hello, make_welcome
from fakes.golden import AGENT_TYPES, SERVER_TYPES
from fakes.host import FixedProbe
from fakes.runner import MemoryRunner
from fakes.server import ScriptedServer
from fakes.store import MemoryJobStore
from fakes.transport import MemoryTransport
from fuzz.material import Thought
from fuzz.run import FindingError
from integration.server_api.kit import SETTINGS, Database, FakeAgent, build_app

AGENT_KINDS, SERVER_KINDS = sorted(AGENT_TYPES), sorted(SERVER_TYPES)
ALLOWED = frozenset({200, 400, 413})
FAULT_CODES = frozenset({1011, 1013})
JOBS = 40


class Codec:
    """Decoding alone: bytes that are no batch, frames that are none."""

    name = "codec"

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    async def take(self, thought: Thought) -> int:
        """Decode some batches and return how many frames there were."""
        count = 0
        for _ in range(12):
            data = thought.encode(None, thought.frames(AGENT_KINDS + SERVER_KINDS, 16))
            for damaged in (data, thought.mangle(data)):
                try:
                    batch = decode_batch(damaged)
                except FrameError as error:
                    self._check(error)
                    count += 1
                    continue
                for raw in batch.frames:
                    count += 1
                    self._decode(raw)
        return count

    def _decode(self, raw: dict[str, Any]) -> None:
        for decode in (decode_agent_frame, decode_server_frame):
            try:
                frame = decode(raw)
            except FrameError as error:
                self._check(error)
                continue
            self.seen[frame.type] += 1
            # What JSON has no word for, such as an infinite number in a workload, is gone after the first time.
            again = decode(json.loads(encode_batch([frame]))["frames"][0])
            if decode(json.loads(encode_batch([again]))["frames"][0]) != again:
                raise FindingError(f"{frame.type} does not survive its encoding")
            if frame.type == "log":
                try:
                    unpack_log(frame.data)
                except FrameError as error:
                    self._check(error)

    def _check(self, error: FrameError) -> None:
        self.seen["refused"] += 1
        if "\n" in str(error) or len(str(error)) > 500:
            raise FindingError(f"not one short line: {str(error)[:600]!r}")


class Server:
    """The whole agent API on SQLite: credentials, both carriers, service, dispatcher."""

    name = "server"

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self._folder = Path(tempfile.mkdtemp(prefix="edge-agent-fuzz-"))
        self._database = Database(f"sqlite:///{self._folder}/metadata.db")
        event.listen(self._database.engine, "connect", _fast)
        self._database.engine.dispose()
        settings = replace(
            SETTINGS,
            heartbeat_seconds=0.1,
            lease_seconds=1,
            agent_requests_per_second=0,
            wrong_credentials_per_minute=0,
            log_max_bytes=2_000,
            relay_task_metrics=True,
        )
        pace = Pace(busy_seconds=0.05, notices_seconds=0.2, shortest_seconds=0.02, watch_seconds=0.5)
        self._app = build_app(self._database, settings=settings, pace=pace)
        self._lifespan = self._app.router.lifespan_context(self._app)
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self._app, raise_app_exceptions=False), base_url="http://server", timeout=60
        )
        self._credentials = {name: self._database.credential(name) for name in ("edge-1", "edge-2", "edge-3")}
        self._sessions: dict[str, str | None] = {}
        self._ids = {name: str(uuid.uuid4()) for name in self._credentials}
        self._jobs: list[str] = []
        self._rounds = 0
        self._socket: Socket | None = None
        self._faults = Faults()

    async def open(self) -> None:
        """Start the app."""
        logger = logging.getLogger("airflow_edge_server")
        logger.addHandler(self._faults)
        logger.propagate = False
        # What the hub remembers of sessions for two minutes would pass for growth on a machine that is done sooner.
        hub._FORGET_SECONDS = 2.0
        await self._lifespan.__aenter__()

    async def close(self) -> None:
        """Stop it, and take its database away."""
        if self._socket is not None:
            await self._socket.close()
        await self._client.aclose()
        await self._lifespan.__aexit__(None, None, None)
        logging.getLogger("airflow_edge_server").removeHandler(self._faults)
        logging.getLogger("airflow_edge_server").propagate = True
        self._database.dispose()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def take(self, thought: Thought) -> int:
        """Send some batches and return how many frames there were."""
        if self._rounds % 20 == 0:
            self._renew_jobs()
        self._rounds += 1
        thought.job_ids = self._jobs
        count = 0
        for _ in range(4):
            name = thought.chance.choice(["edge-1", "edge-2"])
            if self._sessions.get(name) is None or thought.chance.random() < 0.02:
                await self._hello(name)
            frames = thought.frames(AGENT_KINDS, 48)
            data = thought.encode(self._sessions.get(name), frames)
            if thought.chance.random() < 0.1:
                data = thought.mangle(data)
            count += len(frames)
            await self._post(name, data)
        frames = thought.frames(AGENT_KINDS, 48)
        await self._say(thought.encode(None, frames))
        count += len(frames)
        if self._faults.found:
            raise FindingError("the log says: " + self._faults.found.pop())
        return count

    async def _hello(self, name: str) -> None:
        hello = make_hello(name=name, agent_id=self._ids[name])
        await self._post(name, encode_batch([hello]))

    async def _post(self, name: str, data: bytes) -> None:
        headers = FakeAgent(self._client, name, self._credentials[name]).headers
        response = await self._client.post("/v1/exchange", content=data, headers=headers)
        self.seen[str(response.status_code)] += 1
        if response.status_code not in ALLOWED:
            raise FindingError(f"status {response.status_code}: {response.text[:300]}")
        if response.status_code != 200:
            return
        if len(response.content) > MAX_BATCH_BYTES:
            raise FindingError(f"an answer of {len(response.content)} bytes")
        batch = decode_batch(response.content)
        for raw in batch.frames:
            frame = decode_server_frame(raw)
            self.seen[frame.type] += 1
            if frame.type == "close":
                self._sessions[name] = None
            elif frame.type == "welcome":
                self._sessions[name] = frame.session_id

    async def _say(self, data: bytes) -> None:
        if self._socket is None or self._socket.over:
            self._socket = Socket(self._app, FakeAgent(self._client, "edge-3", self._credentials["edge-3"]).headers)
            hello = make_hello(name="edge-3", agent_id=self._ids["edge-3"])
            await self._socket.send(encode_batch([hello]))
        await self._socket.send(data)
        self.seen["messages"] += 1
        if self._socket.code in FAULT_CODES:
            raise FindingError(f"the WebSocket was closed with {self._socket.code}")

    def _renew_jobs(self) -> None:
        with self._database.sessions() as session:
            session.execute(delete(EdgeAgentLog))
            session.execute(delete(EdgeAgentJob))
            # What an agent says of its wishes must not keep it in maintenance for ever.
            for agent in session.query(EdgeAgent):
                agent.maintenance_wanted = agent.maintenance_since = None
            session.connection().exec_driver_sql("DELETE FROM task_instance")
        held = [{"state": "running", "agent_name": "edge-1", "fence": 1}, {"state": "accepted", "fence": 1}, {}, {}]
        self._jobs = [
            self._database.add_job(**({"agent_name": "edge-2"} | given if "fence" in given else given))
            for given in (held * JOBS)[:JOBS]
        ]


class Socket:
    """A WebSocket to an app in this process."""

    def __init__(self, app: Any, headers: dict[str, str]) -> None:
        self.code: int | None = None
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._incoming.put_nowait({"type": "websocket.connect"})
        self._idle = asyncio.Event()
        scope = {
            "type": "websocket",
            "path": "/v1/channel",
            "raw_path": b"/v1/channel",
            "query_string": b"",
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1),
        }
        self._task = asyncio.create_task(app(scope, self._receive, self._sent))

    @property
    def over(self) -> bool:
        return self.code is not None or self._task.done()

    async def send(self, data: bytes) -> None:
        """Send a message, and wait until the other end is done with it."""
        self._idle.clear()
        self._incoming.put_nowait({"type": "websocket.receive", "text": data.decode("utf-8", errors="replace")})
        waits = [self._task, asyncio.ensure_future(self._idle.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED, timeout=60)
        waits[1].cancel()
        if self._task.done():
            self._task.result()

    async def close(self) -> None:
        self._incoming.put_nowait({"type": "websocket.disconnect", "code": 1001})
        await asyncio.wait([self._task], timeout=10)

    async def _receive(self) -> dict[str, Any]:
        if self._incoming.empty():
            self._idle.set()
        return await self._incoming.get()

    async def _sent(self, message: dict[str, Any]) -> None:
        if message["type"] == "websocket.close":
            self.code = message.get("code", 1000)
        elif "text" in message:
            for raw in decode_batch(message["text"].encode()).frames:
                decode_server_frame(raw)


class Agent:
    """What an agent takes from a server: link, decisions, what it does about them; jobs only in memory."""

    name = "agent"

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self._capture = LogCapture()
        self._new()

    async def open(self) -> None:
        """Catch what it logs."""
        self._before = structlog.get_config()
        structlog.configure(processors=[self._capture], cache_logger_on_first_use=False)
        self._new()

    async def close(self) -> None:
        """Let it log again."""
        await self._pump.settle()
        structlog.configure(**self._before)

    def _new(self) -> None:
        self._core = AgentCore(Limits(4, kill_grace_seconds=5, drain_deadline_seconds=60))
        self._store = MemoryJobStore()
        self._runner = MemoryRunner(automatic=False)
        self._pump = Pump(
            self._core,
            store=self._store,
            runner=self._runner,
            boot_id="boot",
            default_execution_url="http://server/execution/",
        )
        self._server = ScriptedServer()
        self._transport = MemoryTransport(self._server)
        self._link = LinkLoop(self._pump, self._transport, FixedProbe(), hello=make_hello, backoff=Backoff())

    async def take(self, thought: Thought) -> int:
        """Hear some batches and return how many frames there were."""
        link = await self._transport.connect(make_hello(), list)
        count = 0
        if not self._core.connected:
            self._link._take([make_welcome()], link)
        for _ in range(6):
            thought.job_ids = [*self._core.jobs, *thought.job_ids][:6]
            batch = thought.encode(None, thought.frames(SERVER_KINDS, 48))
            try:
                raws = decode_batch(batch).frames
            except FrameError:
                count += 1
                continue
            count += len(raws)
            frames = []
            for raw in raws:
                try:
                    frames.append(decode_server_frame(raw))
                except FrameError:
                    self.seen["refused"] += 1
            self._link._take(frames, link)
            self.seen.update(frame.type for frame in frames)
            self._live(thought)
            await self._pump.settle()
            await self._check()
        await link.close()
        self._forget()
        return count

    def _forget(self) -> None:
        """Throw away what only the stand-ins remember."""
        self._transport.links.clear()
        self._server.hellos.clear()
        self._store.forgotten.clear()
        for kept in (
            self._runner.offers,
            self._runner.servers,
            self._runner.limits,
            self._runner.signals,
            self._runner.relays,
        ):
            kept.clear()

    def _live(self, thought: Thought) -> None:
        """Let something happen at the agent, too."""
        for job in list(self._core.jobs.values()):
            chance = thought.chance.random()
            if chance < 0.2:
                self._pump.feed(JobStarted(job.job_id, 4711))
            elif chance < 0.3:
                self._pump.feed(LogGrew(job.job_id, thought.chance.randrange(10_000)))
            elif chance < 0.4:
                self._pump.feed(JobEnded(job.job_id, Outcome.FINISHED, 0, log_bytes=0))
        self._pump.feed(Tick())

    async def _check(self) -> None:
        if self._core.slots_used > 4:
            raise FindingError(f"{self._core.slots_used} slots of 4 are in use")
        while not self._pump.outbox.empty:
            for frame in await self._pump.outbox.take():
                decode_agent_frame(frame.model_dump(mode="json"))
            self._pump.outbox.sent()
        bad = [entry for entry in self._capture.entries if entry["log_level"] == "error" and "error" in entry]
        self._capture.entries.clear()
        if bad:
            raise FindingError(f"the agent logs: {bad[0]}")
        if self._pump.exit_code == 70:
            raise FindingError("the agent ends with an internal error")
        if self._pump.exiting.is_set() or len(self._core.jobs) > 200:
            self._new()


class Faults(logging.Handler):
    """Notes what the server logs about faults of its own."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            self.found.append(f"{text}: {record.exc_info[1]!r}"[:2_000])
        elif record.levelno >= logging.ERROR or "failed (" in text:
            self.found.append(text)


def _fast(connection: Any, _: object) -> None:
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA journal_mode=MEMORY")
