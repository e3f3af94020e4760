"""Metrics of tasks on their way from an agent to Airflow's: both carriers, Airflow's StatsD, a real receiver."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest
from statsd import StatsClient  # type: ignore[import-untyped]

from airflow_edge_agent.protocol.frames import Close, TaskMetric, TaskMetrics, Welcome
from airflow_edge_server import compat
from airflow_edge_server.api import task_metrics
from airflow_edge_server.api.task_metrics import TaskMetricsRelay
from harness.receivers import StatsdReceiver
from integration.server_api.channel_kit import ChannelAgent, served
from integration.server_api.kit import SETTINGS, Database, FakeAgent, build_app, running, until

RELAYING = replace(SETTINGS, relay_task_metrics=True)

TOLD = TaskMetrics(
    metrics=[
        TaskMetric(name="parts", kind="counter", tags={"line": "3", "agent": "forged"}, values=[17]),
        TaskMetric(name="level", kind="gauge", values=[-1.5]),
        TaskMetric(name="stock", kind="counter", values=[-2]),
        TaskMetric(name="weighing", kind="timing", values=[12.25, 900]),
    ],
    dropped=3,
)

DROPPED = "airflow.edge_agent.task_metrics.dropped"


@pytest.fixture
def database_url(tmp_path: Any) -> str:
    return f"sqlite:///{tmp_path}/metadata.db"  # nothing of it is stored


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[StatsdReceiver]:
    """A receiver to which Airflow's own metrics of this process go."""
    with StatsdReceiver() as receiver:
        monkeypatch.setenv("AIRFLOW__METRICS__STATSD_ON", "True")
        monkeypatch.setenv("AIRFLOW__METRICS__STATSD_HOST", "127.0.0.1")
        monkeypatch.setenv("AIRFLOW__METRICS__STATSD_PORT", str(receiver.port))
        monkeypatch.setenv("AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED", "True")
        compat.start_stats()
        yield receiver
        for client in [one for one in gc.get_objects() if type(one) is StatsClient]:
            client.close()
        monkeypatch.undo()
        compat.start_stats()


def told(receiver: StatsdReceiver) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for one in receiver.told:
        assert ("agent", "factory") in one.tags, one
        found.setdefault(one.name, []).append(one.value)
    return found


@pytest.mark.parametrize("carrier", ["websocket", "http"])
async def test_they_are_told_under_their_names_with_the_agent_as_a_tag(
    database: Database, receiver: StatsdReceiver, carrier: str
) -> None:
    async with AsyncExitStack() as stack:
        app = build_app(database, settings=RELAYING)
        if carrier == "websocket":
            site = await stack.enter_async_context(served(app))
            nobody: Any = None
            agent = ChannelAgent(nobody, "factory", database.credential("factory"), url=site.url)
            (welcome,) = await agent.open()
            await agent.ready()
            await agent.send(TOLD)
        else:
            client = await stack.enter_async_context(running(app))
            speaker = FakeAgent(client, "factory", database.credential("factory"))
            (welcome,) = await speaker.hello()
            assert await speaker.exchange(TOLD, session_id=speaker.session_id) == []
        assert isinstance(welcome, Welcome)
        assert welcome.task_metrics
        await until(lambda: receiver.last(DROPPED) is not None)
    found = told(receiver)
    assert found.pop("airflow.level")[-1] == -1.5
    assert found == {
        "airflow.parts": [17],
        "airflow.stock": [-2],
        "airflow.weighing": [12.25, 900],
        DROPPED: [3],
    }
    assert receiver.last("airflow.parts", line="3", agent="factory") == 17


async def test_without_being_wanted_or_in_a_session_that_is_over_they_go_nowhere(
    database: Database, receiver: StatsdReceiver
) -> None:
    async with running(build_app(database)) as client:
        agent = FakeAgent(client, "factory", database.credential("factory"))
        (welcome,) = await agent.hello()
        assert isinstance(welcome, Welcome)
        assert not welcome.task_metrics
        assert await agent.exchange(TOLD, session_id=agent.session_id) == []
    async with running(build_app(database, settings=RELAYING)) as client:
        agent = FakeAgent(client, "press", database.credential("press"))
        await agent.hello()
        (answer,) = await agent.exchange(TOLD, session_id="00000000-0000-4000-8000-000000000001")
        assert isinstance(answer, Close)
    TaskMetricsRelay(compat.stats).tell("factory", TaskMetrics(metrics=[], dropped=1))
    await until(lambda: receiver.last(DROPPED) is not None)
    assert told(receiver) == {DROPPED: [1]}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_an_agent_is_bounded_whatever_it_sends(receiver: StatsdReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_metrics, "MAX_SERIES", 3)
    clock = Clock()
    relay = TaskMetricsRelay(compat.stats, clock)

    def say(*names: str) -> None:
        relay.tell("factory", TaskMetrics(metrics=[TaskMetric(name=n, kind="counter", values=[1]) for n in names]))

    # Ours; and Airflow's own without the tags that it has, which 3.2 does not look at.
    say("edge_agent.agents", "ti.start" if compat.airflow_version() >= "3.3" else "edge_agent.", "a", "b")
    await until(lambda: receiver.last(DROPPED) == 2)
    say("a", "b", "c", "d")
    await until(lambda: receiver.last("airflow.b") is not None and len(told(receiver)["airflow.a"]) == 2)
    clock.now += 3_600
    say("c", "d")
    await until(lambda: receiver.last("airflow.d") is not None)
    for _ in range(20):
        say("e")
    await until(lambda: len(told(receiver)[DROPPED]) >= 12)
    assert len(told(receiver)["airflow.e"]) == 9, "a burst of ten, one of which was spent"
