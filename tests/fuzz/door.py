"""The agent's socket for jobs: HTTP as no client speaks it, up to a server that answers whatever comes through."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import structlog
from structlog.testing import LogCapture

from airflow_edge_agent.adapters.execution import ExecutionClient
from airflow_edge_agent.adapters.files import relay_key
from airflow_edge_agent.adapters.network import Network
from airflow_edge_agent.adapters.relay_socket import RelayListener
from airflow_edge_agent.core.agent import AgentCore
from airflow_edge_agent.core.jobs import AgentJob, Phase
from airflow_edge_agent.core.policy import Limits
from airflow_edge_agent.protocol.relay import REQUEST_HEADERS
from airflow_edge_agent.runtime.finals import FinalStates
from airflow_edge_agent.runtime.pump import Pump
from airflow_edge_agent.runtime.relay import Relay
from airflow_edge_agent.runtime.rendered import RenderedFields
from fakes.credentials import make_prover
from fakes.frames import new_id
from fakes.http_server import Reply, Request, serve
from fakes.runner import MemoryRunner
from fakes.store import MemoryJobStore
from fuzz.material import Thought
from fuzz.run import FindingError

METHODS = [b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"HEAD", b"OPTIONS", b"TRACE", b"CONNECT", b"get", b"X" * 300]
PATHS = [
    b"task-instances/%b/heartbeat", b"task-instances/%b/state", b"xcoms/d/r/t/k?map_index=-1", b"variables/a%%2Fb",
    b"../../agent", b"%%2e%%2e/%%2e%%2e/exchange", b"//other/", b"?", b"#", b"x" * 9_000, b"%%00", b"a\\b",
]  # fmt: skip
LENGTHS = [b"0", b"5", b"-1", b"+5", b"5, 5", b"5, 6", b"0x5", b"9" * 19, b"9" * 5_000, b"268435457", b"", b"\xb2"]
HEADERS = [b"host", b"cookie", b"x-forwarded-for", b"edge-agent-fence", b"expect", b"connection", b"upgrade", b"te"]
SECONDS = 30.0
"""How long a connection may take that has said all it has to say."""

_STATUS = re.compile(rb"(?:^|\n)HTTP/1\.1 ([0-9]{3}) ")


class Door:
    """The listener, the relay and its HTTP client, all real; the server answers everything with success."""

    name = "relay"

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self._folder = Path(tempfile.mkdtemp(prefix="edge-agent-fuzz-"))
        self._socket = self._folder / "execution.sock"
        self._stack = contextlib.AsyncExitStack()
        self._capture = LogCapture()
        self._wrong: list[str] = []
        self._secrets: list[bytes] = []

    async def open(self) -> None:
        """Begin to listen, for one job that runs and one that does not yet."""
        self._before = structlog.get_config()
        structlog.configure(processors=[self._capture], cache_logger_on_first_use=False)
        port = await self._stack.enter_async_context(serve(self._far_end))
        core = AgentCore(Limits(4, kill_grace_seconds=5, drain_deadline_seconds=0))
        for phase in (Phase.RUNNING, Phase.ACCEPTING):
            # No patience: that the server is away would be a finding, not something to wait for.
            job = AgentJob(job_id=new_id(), fence=7, slots=1, label="a job", phase=phase, heard_at=time.monotonic())
            job.disconnect_lease_seconds = 0.001
            core.jobs[job.job_id] = job
        store = MemoryJobStore()
        pump = Pump(core, store=store, runner=MemoryRunner(), boot_id="b", default_execution_url="x")
        execution = ExecutionClient(f"http://127.0.0.1:{port}/air", make_prover(), Network())
        self._stack.push_async_callback(execution.close)
        rendered = RenderedFields(pump, execution, store)
        finals = FinalStates(pump, execution, store, rendered)
        relay = Relay(pump, execution, self._socket, relay_key(self._folder), finals=finals, rendered=rendered)
        self._secrets = [relay.secret(job_id).encode() for job_id in core.jobs]
        listener = RelayListener(self._socket, users=lambda: {os.geteuid()}, handler=relay.handle)
        await listener.open()
        self._stack.push_async_callback(listener.close)

    async def close(self) -> None:
        """Stop listening."""
        await self._stack.aclose()
        structlog.configure(**self._before)
        shutil.rmtree(self._folder, ignore_errors=True)

    async def take(self, thought: Thought) -> int:
        """Connect some times, and return how many requests that were."""
        counts = [thought.chance.randint(1, 4) for _ in range(8)]
        await asyncio.gather(*[self._converse(thought, count) for count in counts])
        errors = [entry for entry in self._capture.entries if entry["log_level"] == "error"]
        self._capture.entries.clear()
        if errors or self._wrong:
            wrong = str(errors[0] if errors else self._wrong[0])
            self._wrong.clear()
            raise FindingError(wrong)
        return sum(counts)

    async def _converse(self, thought: Thought, count: int) -> None:
        data = b"".join(self._request(thought) for _ in range(count))
        if thought.chance.random() < 0.3:
            data = thought.mangle(data)
        reader, writer = await asyncio.open_unix_connection(self._socket)
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(data)
                writer.write_eof()
                await writer.drain()
            async with asyncio.timeout(SECONDS):
                answer = await self._read(reader)
        except TimeoutError:
            raise FindingError(f"no end to the answer to {data[:2_000]!r}") from None
        finally:
            writer.close()
        for status in _STATUS.findall(answer):
            self.seen[status.decode()] += 1
            if status >= b"500":
                raise FindingError(f"{answer[:200]!r} to {data[:2_000]!r}")
        if not answer:
            self.seen["closed"] += 1

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        answer = bytearray()
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(65_536):
                answer += piece
        return bytes(answer)

    def _request(self, thought: Thought) -> bytes:
        chance = thought.chance
        method = chance.choice(METHODS[:5] if chance.random() < 0.8 else METHODS)
        path = chance.choice(PATHS)
        target = b"/execution/" + (path % new_id().encode() if path.count(b"%b") else path.replace(b"%%", b"%"))
        if chance.random() < 0.1:
            target = chance.choice([b"*", b"/", b"http://other/execution/x", b"/execution", self._text(thought)])
        body = self._text(thought) if method not in (b"GET", b"HEAD") else b""
        secret = chance.choice(self._secrets) if chance.random() < 0.9 else chance.choice([b"x", self._text(thought)])
        headers = [(b"authorization", b"Bearer " + secret)]
        if chance.random() < 0.9:
            headers.append((b"host", b"edge-agent"))
        headers.append((b"content-length", b"%d" % len(body) if chance.random() < 0.9 else chance.choice(LENGTHS)))
        for _ in range(chance.choice((0, 1, 3, 3, 200 if chance.random() < 0.02 else 2))):
            name = chance.choice(HEADERS + sorted(REQUEST_HEADERS))
            headers.append((name, self._text(thought)[:9_000]))
        if chance.random() < 0.03:
            headers.append((b"transfer-encoding", chance.choice([b"chunked", b"identity", b"gzip, chunked"])))
        chance.shuffle(headers)
        lines = [b"%b %b HTTP/%b" % (method, target, chance.choice([b"1.1"] * 20 + [b"1.0", b"2", b"0.9", b""]))]
        lines += [name + b": " + value for name, value in headers]
        return b"\r\n".join([*lines, b"", body])

    def _text(self, thought: Thought) -> bytes:
        return str(thought.value()).encode("utf-8", errors="replace")

    async def _far_end(self, request: Request) -> Reply:
        """Answer, after a look at what must not get there."""
        self.seen["relayed"] += 1
        head = request.head
        if not re.match(rb"[^ ]+ /air/edge-agents/v1/jobs/[0-9a-f-]{36}/execution/", head):
            self._wrong.append(f"went elsewhere: {head[:300]!r}")
        if not re.search(rb"\r\nauthorization: Bearer eap_", head, re.IGNORECASE):
            self._wrong.append(f"not in the agent's name: {head[:300]!r}")
        for secret in self._secrets:
            if secret in head:
                self._wrong.append(f"a job's secret goes on: {head[:300]!r}")
        unknown = {name.encode() for name in request.headers} - REQUEST_HEADERS
        if unknown - {b"host", b"authorization", b"edge-agent-fence"}:
            self._wrong.append(f"headers that do not pass: {unknown}")
        marked = {"Edge-Agent-Relayed": "airflow"}
        if request.method == "CONNECT":
            return Reply(405, "Method Not Allowed", headers=marked)
        return Reply(headers=marked, body=b"" if request.method == "HEAD" else b'{"value": 1}')
