"""What tasks tell to StatsD: lines, sums, the socket and the loop."""

from __future__ import annotations

import asyncio
import json
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from airflow_edge_agent.adapters.statsd_socket import StatsdSocket
from airflow_edge_agent.core.agent import AgentCore
from airflow_edge_agent.core.backoff import Backoff
from airflow_edge_agent.core.events import LinkLost, LinkOpened
from airflow_edge_agent.core.policy import Limits
from airflow_edge_agent.core.statsd import MAX_LINES, MAX_NAME_BYTES, Collected, Line, parse
from airflow_edge_agent.protocol.codec import decode_agent_frame
from airflow_edge_agent.protocol.frames import (
    MAX_TASK_METRICS,
    MAX_TASK_METRICS_BYTES,
    MAX_TIMINGS,
    TaskMetric,
    TaskMetrics,
    Welcome,
)
from airflow_edge_agent.runtime.link import LinkLoop
from airflow_edge_agent.runtime.pump import Pump
from airflow_edge_agent.runtime.task_metrics import TaskMetricsLoop
from fakes.frames import make_hello, make_welcome
from fakes.host import FixedProbe
from fakes.runner import MemoryRunner
from fakes.server import ScriptedServer
from fakes.store import MemoryJobStore
from fakes.transport import MemoryTransport


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("a.b:1|c", Line("a.b", "counter", (), 1, delta=False)),
        ("a:-3|c", Line("a", "counter", (), -3, delta=False)),
        ("a:1|c|@0.25", Line("a", "counter", (), 4, delta=False)),
        ("a/b-c:2.5|g", Line("a/b-c", "gauge", (), 2.5, delta=False)),
        ("a:+2|g", Line("a", "gauge", (), 2, delta=True)),
        ("a:-2|g", Line("a", "gauge", (), -2, delta=True)),
        ("a:320.000000|ms|@0.1", Line("a", "timing", (), 320, delta=False)),
        ("a,dag_id=d,task_id=t.u:1|c", Line("a", "counter", (("dag_id", "d"), ("task_id", "t.u")), 1, delta=False)),
        ("a:1|c|#k:v:w,on", Line("a", "counter", (("k", "v_w"), ("on", "")), 1, delta=False)),
        ("a,k=press shop:1|c", Line("a", "counter", (("k", "press_shop"),), 1, delta=False)),
    ],
)
def test_lines_as_airflow_writes_them(line: str, found: Line) -> None:
    assert parse(line) == found


@pytest.mark.parametrize(
    "line",
    [
        "", "a", "a:1", ":1|c", "a b:1|c", "ä:1|c", "a\n:1|c", "a:x|c", "a:nan|g", "a:1e999|g", "a:1e20|c", "a:1|h",
        "a:-1|ms", "a:1|c|@0", "a:1|c|@2", "a:1|c|@0.0000000000000001", "a:1:2|ms", "a:1|c|x", "a:1|c\n", "a,k:1|c",
        "a,ä=v:1|c", "a:1|c|#" + ",".join(f"k{n}:v" for n in range(21)), "n" * 251 + ":1|c",
    ],
)  # fmt: skip
def test_what_is_no_line(line: str) -> None:
    assert parse(line) is None


def test_values_are_added_up() -> None:
    collected = Collected()
    assert collected.empty
    collected.feed(b"n:1|c\nn:2|c\nn,k=v:5|c\ng:7|g\ng:3|g\ng:-1|g\nup:+2|g\nup:+3|g\nnonsense\n")
    collected.feed(b"t:1.23456|ms\nt:900|ms")
    frame = collected.take()
    assert frame == TaskMetrics(
        metrics=[
            TaskMetric(name="n", kind="counter", values=[3]),
            TaskMetric(name="n", kind="counter", tags={"k": "v"}, values=[5]),
            TaskMetric(name="g", kind="gauge", values=[2]),
            TaskMetric(name="up", kind="gauge", values=[5], delta=True),
            TaskMetric(name="t", kind="timing", values=[1.235, 900]),
        ],
        dropped=1,
    )
    assert collected.empty


def test_what_is_too_much_is_counted() -> None:
    collected = Collected()
    for number in range(MAX_TASK_METRICS + 7):
        collected.feed(f"n{number}:1|c".encode())
    frame = collected.take()
    assert (len(frame.metrics), frame.dropped) == (MAX_TASK_METRICS, 7)
    collected.feed(b"\n".join([b"t:1|ms"] * (MAX_TIMINGS + 2)))
    frame = collected.take()
    assert (len(frame.metrics[0].values), frame.dropped) == (MAX_TIMINGS, 2)
    for number in range(150):
        collected.feed(f"{number:03}{'n' * 240}:1|c".encode())
    frame = collected.take()
    assert len(frame.metrics) == MAX_NAME_BYTES // 243
    assert frame.dropped == 150 - len(frame.metrics)
    for number in range(30):
        collected.feed(b"\n".join([f"t{number}:1|ms".encode()] * MAX_TIMINGS))
    frame = collected.take()
    assert sum(len(one.values) for one in frame.metrics) == 1_000
    assert frame.dropped == 500


def test_only_so_many_lines_are_looked_at() -> None:
    collected = Collected()
    for _ in range(MAX_LINES // 100 + 1):
        collected.feed(b"\n".join([b"n:1|c"] * 100))
    frame = collected.take()
    assert frame.metrics[0].values == [MAX_LINES]
    assert frame.dropped == 100


def test_what_is_given_up_is_counted() -> None:
    collected = Collected()
    collected.feed(b"n:1|c\nn:1|c\nx")
    collected.discard()
    assert collected.take() == TaskMetrics(metrics=[], dropped=3)


PIECES = st.sampled_from(
    [b"a", b"n.m", b":", b"|", b"c", b"g", b"ms", b"@", b"0.5", b"1", b"-3", b"+2", b"1e15", b"9" * 30, b"1e400", b",",
     b"k=v", b"#k:v", b"\n", b"\xff", b"nan", b"x" * 249]
)  # fmt: skip
LINES = st.builds(
    lambda name, value, kind, more: f"{name}:{value}|{kind}{more}\n".encode(),
    st.text(st.sampled_from("ab./-_"), min_size=1, max_size=250) | st.integers(0, 10**6).map("n{}".format),
    st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**16), 10**16),
    st.sampled_from(["c", "g", "ms"]),
    st.sampled_from(["", "|@0.1", "|#" + ",".join(f"{'k' * 50}{n}:{'v' * 190}" for n in range(8))]),
)


@given(st.lists(st.binary(max_size=40) | st.lists(PIECES, max_size=12).map(b"".join) | LINES, max_size=400))
def test_whatever_comes_makes_a_frame_that_is_taken(datagrams: list[bytes]) -> None:
    collected = Collected()
    for datagram in datagrams:
        collected.feed(datagram)
    data = collected.take().model_dump_json()
    assert len(data) <= MAX_TASK_METRICS_BYTES
    assert isinstance(decode_agent_frame(json.loads(data)), TaskMetrics)


async def test_the_socket_takes_the_same_port_again(tmp_path: Path) -> None:
    came: asyncio.Queue[bytes] = asyncio.Queue()
    first = StatsdSocket(tmp_path / "port", came.put_nowait)
    port = await first.open()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"n:1|c", ("127.0.0.1", port))
    assert await asyncio.wait_for(came.get(), 30) == b"n:1|c"
    other = StatsdSocket(tmp_path / "port", came.put_nowait)
    second = await other.open()
    assert second != port, "taken"
    other.close()
    first.close()
    await asyncio.sleep(0)
    (tmp_path / "port").write_text(f"{second}\n")
    again = StatsdSocket(tmp_path / "port", came.put_nowait)
    assert await again.open() == second
    again.close()
    for nonsense in ("", "x", "0", "65536", "-1"):
        (tmp_path / "port").write_text(nonsense)
        another = StatsdSocket(tmp_path / "port", came.put_nowait)
        assert await another.open() == int((tmp_path / "port").read_text())
        another.close()


LIMITS = Limits(concurrency=1, kill_grace_seconds=10, drain_deadline_seconds=0, queues=("default",))


class Scene:
    """A loop with everything around it in memory."""

    def __init__(self, **times: float) -> None:
        self.core = AgentCore(LIMITS)
        self.pump = Pump(
            self.core,
            store=MemoryJobStore(),
            runner=MemoryRunner(),
            boot_id="boot",
            default_execution_url="http://localhost/execution/",
        )
        self.link = LinkLoop(
            self.pump,
            MemoryTransport(ScriptedServer()),
            FixedProbe(),
            hello=make_hello,
            backoff=Backoff(),
        )
        self.loop = TaskMetricsLoop(self.pump, self.link, **times)

    def open(self, **given: Any) -> None:
        self.link.welcome = make_welcome(server_time=datetime.now(UTC), **given)
        assert isinstance(self.link.welcome, Welcome)
        self.pump.feed(LinkOpened(self.link.welcome))
        self.pump.outbox.clear()

    async def sent(self) -> list[TaskMetrics]:
        if self.pump.outbox.empty:
            return []
        return [frame for frame in await self.pump.outbox.take() if isinstance(frame, TaskMetrics)]


async def test_it_is_sent_after_a_while() -> None:
    scene = Scene(flush_seconds=0.01)
    scene.open(task_metrics=True)
    running = asyncio.create_task(scene.loop.run())
    scene.loop.feed(b"n:1|c")
    scene.loop.feed(b"n:1|c")
    (frame,) = await asyncio.wait_for(scene.pump.outbox.take(), 30)
    assert frame == TaskMetrics(metrics=[TaskMetric(name="n", kind="counter", values=[2])])
    running.cancel()


async def test_a_server_that_does_not_want_it_gets_nothing_and_that_is_said_once() -> None:
    scene = Scene()
    scene.open()
    with capture_logs() as logs:
        for _ in range(3):
            scene.loop.feed(b"n:1|c")
            scene.loop.flush()
    assert await scene.sent() == []
    assert len([line for line in logs if "relay_task_metrics" in line["event"]]) == 1
    scene.open(task_metrics=True)
    scene.loop.feed(b"n:1|c")
    scene.loop.flush()
    assert [frame.dropped for frame in await scene.sent()] == [0]


async def test_what_waits_too_long_for_the_link_is_only_counted() -> None:
    for keep_seconds, told in ((3_600.0, (1, 0)), (0.0, (0, 1))):
        scene = Scene(keep_seconds=keep_seconds)
        scene.open(task_metrics=True)
        scene.pump.feed(LinkLost("test"))
        scene.loop.feed(b"n:1|c")
        scene.loop.flush()
        scene.open(task_metrics=True)
        scene.loop.flush()
        (frame,) = await scene.sent()
        assert (len(frame.metrics), frame.dropped) == told
