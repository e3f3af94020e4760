"""The agent's metrics as Prometheus reads them, and who may fetch them how."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from airflow_edge_agent.adapters import metrics_socket
from airflow_edge_agent.adapters.metrics import PsutilProbe
from airflow_edge_agent.adapters.metrics_socket import CONTENT_TYPE, MAX_CLIENTS, MAX_HEAD_BYTES, MetricsListener
from airflow_edge_agent.core.agent import AgentCore
from airflow_edge_agent.core.backoff import Backoff
from airflow_edge_agent.core.events import FrameArrived, JobEnded, JobStarted, LinkOpened, LogGrew
from airflow_edge_agent.core.policy import Limits
from airflow_edge_agent.ports import StoreError
from airflow_edge_agent.protocol.frames import AcceptAck, Versions
from airflow_edge_agent.protocol.jobs import Outcome
from airflow_edge_agent.runtime.exposition import METRICS, PREFIX, Exposition
from airflow_edge_agent.runtime.link import LinkLoop
from airflow_edge_agent.runtime.pump import Pump
from airflow_edge_agent.runtime.reports import Person, Reporter
from fakes import MemoryJobStore, MemoryRunner, MemoryTransport, ScriptedServer
from fakes.frames import make_hello, make_offer, make_welcome
from fakes.waiting import eventually

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Agent:
    """As much of an agent as has metrics."""

    def __init__(self, state_dir: Path) -> None:
        self.core = AgentCore(Limits(4, kill_grace_seconds=5, drain_deadline_seconds=0, queues=("default",)))
        self.pump = Pump(
            self.core, store=MemoryJobStore(), runner=MemoryRunner(), boot_id="b", default_execution_url="x"
        )
        probe = PsutilProbe(state_dir)
        server = MemoryTransport(ScriptedServer())
        self.link = LinkLoop(self.pump, server, probe, hello=make_hello, backoff=Backoff())
        self.person = Person('edge "1"\\', "1.2", 42, "a", "i", asyncio.get_running_loop().time() - 5, "https://x")
        reporter = Reporter(self.core, self.link, self.person)
        self.exposition = Exposition(self.core, self.link, self.person, reporter, probe)

    async def start_job(self) -> str:
        offer = make_offer()
        self.pump.feed(FrameArrived(offer))
        self.pump.feed(FrameArrived(AcceptAck(job_id=offer.job_id, fence=offer.fence)))
        await self.pump.settle()
        self.pump.feed(JobStarted(offer.job_id, 7))
        return offer.job_id

    def samples(self) -> Samples:
        return parsed(self.exposition.text())

    def get(self, name: str, **labels: str) -> float:
        return self.samples()[PREFIX + name, frozenset(labels.items())]


def parsed(text: str) -> Samples:
    families = list(text_string_to_metric_families(text))
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


@pytest.fixture
async def agent(tmp_path: Path) -> Agent:
    return Agent(tmp_path)


async def test_a_parser_of_openmetrics_takes_it(agent: Agent) -> None:
    agent.link.versions = Versions(agent="1.2", python="3.11.2", airflow="3.3.2")
    agent.link.last_contact_at = agent.link.last_heartbeat_at = asyncio.get_running_loop().time() - 3
    families = {family.name: family for family in text_string_to_metric_families(agent.exposition.text())}
    assert set(families) == {PREFIX + name for name in METRICS}
    for name, metric in METRICS.items():
        family = families[PREFIX + name]
        assert family.type == metric.kind
        assert family.documentation == metric.meaning
        for sample in family.samples:
            assert sample.name == metric.sample
            assert set(sample.labels) == set(metric.labels), name
    (build,) = families[f"{PREFIX}build"].samples
    assert build.labels["name"] == 'edge "1"\\'
    assert (build.labels["version"], build.labels["airflow"]) == ("1.2", "3.3.2")
    assert agent.get("heartbeat_age_seconds") >= 3
    assert agent.get("uptime_seconds") >= 5
    assert agent.get("host_memory_size_bytes") > agent.get("host_memory_used_bytes") > 0
    assert 0 <= agent.get("host_cpu_percent") <= 100
    assert agent.get("host_disk_size_bytes", disk="state") > 0


async def test_what_is_not_known_is_left_out(agent: Agent) -> None:
    names = {name for name, _ in agent.samples()}
    assert f"{PREFIX}contact_age_seconds" not in names
    assert f"{PREFIX}connected" in names


async def test_jobs_and_the_link(agent: Agent) -> None:
    assert (agent.get("connected"), agent.get("healthy"), agent.get("enrolled")) == (0, 0, 1)
    assert agent.get("state", **{f"{PREFIX}state": "starting"}) == 1
    agent.pump.feed(LinkOpened(make_welcome()))
    assert (agent.get("connected"), agent.get("healthy")) == (1, 1)
    first = await agent.start_job()
    await agent.start_job()
    agent.pump.feed(LogGrew(first, 1_000))
    assert (agent.get("slots"), agent.get("slots_used")) == (4, 2)
    assert agent.get("jobs", phase="running") == 2
    assert agent.get("state", **{f"{PREFIX}state": "running"}) == 1
    assert agent.get("spool_bytes") == 1_000
    ended = JobEnded(first, Outcome.CRASHED, log_bytes=1_000)
    agent.pump.feed(ended)
    agent.pump.feed(ended)  # told twice, it counts once
    assert agent.get("jobs_started_total") == 2
    assert agent.get("jobs_ended_total", outcome="crashed") == 1
    assert agent.get("jobs_ended_total", outcome="finished") == 0
    assert (agent.get("jobs", phase="finished"), agent.get("slots_used")) == (1, 1)


# --- The door ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["unix", "network"])
async def door(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MetricsListener]:
    address = tmp_path / "m.sock" if request.param == "unix" else ("127.0.0.1", 0)
    listener = MetricsListener(address, lambda: "# EOF\n")
    await listener.open()
    yield listener
    await listener.close()
    assert not (tmp_path / "m.sock").exists()


async def connect(door: MetricsListener) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if door.port is not None:
        return await asyncio.open_connection("127.0.0.1", door.port)
    return await asyncio.open_unix_connection(door._path)


async def ask(door: MetricsListener, request: bytes) -> tuple[str, str, str]:
    reader, writer = await connect(door)
    writer.write(request)
    head, _, body = (await asyncio.wait_for(reader.read(), 20)).decode().partition("\r\n\r\n")
    writer.close()
    return head.split("\r\n")[0], head, body


async def test_it_is_fetched(door: MetricsListener) -> None:
    status, head, body = await ask(door, b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (status, body) == ("HTTP/1.1 200 OK", "# EOF\n")
    assert f"Content-Type: {CONTENT_TYPE}\r\n" in head
    assert "Content-Length: 6\r\n" in head
    status, head, body = await ask(door, b"HEAD /metrics HTTP/1.0\r\n\r\n")
    assert (status, body) == ("HTTP/1.1 200 OK", "")


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
        (b"GET /metrics\r\n\r\n", "400"),
        (b"\xff\x00\r\n\r\n", "400"),
        (b"GET /metrics HTTP/1.1\r\nA: " + b"x" * (3 * MAX_HEAD_BYTES), "431"),
    ],
)
async def test_anything_else_is_refused(door: MetricsListener, request_line: bytes, status: str) -> None:
    assert (await ask(door, request_line))[0].split(" ")[1] == status


async def test_who_says_nothing_is_not_waited_for(door: MetricsListener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_socket, "REQUEST_SECONDS", 0.1)
    assert (await ask(door, b"GET /metrics HTTP/1.1\r\n"))[0].split(" ")[1] == "408"


async def test_only_so_many_at_a_time(door: MetricsListener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_socket, "REQUEST_SECONDS", 120.0)
    waiting = [await connect(door) for _ in range(MAX_CLIENTS)]
    await eventually(lambda: door._socket.clients == MAX_CLIENTS)
    assert (await ask(door, b"GET /metrics HTTP/1.1\r\n\r\n"))[0].split(" ")[1] == "503"
    for _, writer in waiting:
        writer.close()
    await eventually(lambda: door._socket.clients == 0)
    assert (await ask(door, b"GET /metrics HTTP/1.1\r\n\r\n"))[0].split(" ")[1] == "200"


async def test_a_fault_in_the_text_ends_nothing(tmp_path: Path) -> None:
    def broken() -> str:
        raise ZeroDivisionError

    listener = MetricsListener(tmp_path / "m.sock", broken)
    await listener.open()
    assert (await ask(listener, b"GET /metrics HTTP/1.1\r\n\r\n"))[0].split(" ")[1] == "500"
    await listener.close()


async def test_an_address_that_is_taken_is_named() -> None:
    listener = MetricsListener(("127.0.0.1", 0), str)
    await listener.open()
    assert listener.port is not None
    with pytest.raises(StoreError, match=f"127.0.0.1 port {listener.port}: cannot be used as address of the metrics"):
        await MetricsListener(("127.0.0.1", listener.port), str).open()
    await listener.close()
