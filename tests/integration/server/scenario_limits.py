"""Limits that tasks ask for, and what jobs have used: through Airflow's own models, to a real StatsD listener."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.configuration import conf
from airflow.models.taskinstance import TaskInstance
from sqlalchemy import select

from airflow_edge_agent.protocol.frames import Offer
from airflow_edge_agent.protocol.limits import JobLimits
from airflow_edge_server.log_io import EdgeLogIO
from airflow_edge_server.store import dispatch, queue
from airflow_edge_server.store.logs import find_jobs, job_lines
from airflow_edge_server.store.transaction import airflow_sessions
from integration.server import scenes

if TYPE_CHECKING:
    from collections.abc import Iterator


def _offers() -> list[Offer]:
    scenes.agent("a1", state="idle", session_id="s1", queues=["default"], granted_queues=["*"], slots_total=4)
    room = dispatch.Room("s1", frozenset({"default"}), None, 4)
    made = dispatch.dispatch(
        airflow_sessions,
        [dispatch.Waiting("a1", "s1")],
        {"a1": room},
        now=datetime.now(UTC),
        lease_seconds=10,
        mint=lambda _: "token",
    )
    return made.offers.get("a1", [])


def what_a_task_asks_for_is_in_its_offer() -> None:
    edge = scenes.executor()
    asked = {"memory_max": "1G", "cpu_quota": "150%", "pids_max": 64, "io_weight": 50}
    ids = scenes.dag_run(executor_config={"edge_agent": asked, "pod_override": "of another executor"})
    scenes.queue(edge, ids)
    job = scenes.job_of(ids[0])
    assert job.limits == {"memory_max_bytes": 2**30, "cpu_quota_percent": 150.0, "pids_max": 64, "io_weight": 50}
    assert "pod_override" not in str(job.workload)
    (offer,) = _offers()
    assert offer.limits == JobLimits(memory_max_bytes=2**30, cpu_quota_percent=150, pids_max=64, io_weight=50)


def a_task_that_asks_for_nothing() -> None:
    edge = scenes.executor()
    ids = scenes.dag_run(executor_config={"KubernetesExecutor": {}})
    scenes.queue(edge, ids)
    assert scenes.job_of(ids[0]).limits is None
    (offer,) = _offers()
    assert offer.limits is None


def nonsense_ends_the_try_and_says_why() -> None:
    edge = scenes.executor()
    (ti_id,) = scenes.dag_run(executor_config={"edge_agent": {"memory_max": "1X", "memory": "1G"}})
    scenes.queue(edge, [ti_id])
    job = scenes.job_of(ti_id)
    assert (job.state, job.outcome, job.agent_name) == ("finished", "not started", None)
    assert _offers() == []
    assert len(edge.running) == 1
    edge.sync()
    scenes.process_events(edge)
    assert scenes.ti_state(ti_id) == "failed"
    assert not edge.running
    why = (
        "executor_config[\"edge_agent\"]: 'memory_max': '1X' is no size: write bytes, or a number with K, M, G or T, "
        "like \"512M\"; 'memory' is no limit; did you mean 'memory_max'?"
    )
    assert f"edge agent: not started: {why}" in scenes.log_messages()
    with scenes.db() as session:
        (logged,) = find_jobs(session, ti_id=ti_id)
        row = session.scalars(select(TaskInstance)).one()
        session.expunge(row)
    (line,) = job_lines(logged)
    assert (
        f'"event": "not started: {why}"'.replace('["edge_agent"]', '[\\"edge_agent\\"]').replace('"512M"', '\\"512M\\"')
        in line
    )
    # The way of Airflow's user interface: by the log's path.
    sources, streams = EdgeLogIO().stream(job.workload["log_path"], row)
    assert sources == [f"No agent ran this: {why}"]
    assert [line for stream in streams for line in stream] == [line]


def nonsense_is_retried_like_any_failure() -> None:
    edge = scenes.executor()
    ids = scenes.dag_run(retries=1, executor_config={"edge_agent": ["1G"]})
    scenes.queue(edge, ids)
    edge.sync()
    scenes.process_events(edge)
    with scenes.db() as session:
        assert [str(state) for state in session.scalars(select(TaskInstance.state))] == ["up_for_retry"]


@contextmanager
def _statsd() -> Iterator[socket.socket]:
    """Listen as a StatsD does, and let Airflow's metrics go there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(10)
        settings = {
            "STATSD_ON": "True",
            "STATSD_HOST": "127.0.0.1",
            "STATSD_PORT": str(listener.getsockname()[1]),
            "STATSD_PREFIX": "airflow",
            "STATSD_INFLUXDB_ENABLED": "True",
        }
        variables = {f"AIRFLOW__METRICS__{name}": value for name, value in settings.items()}
        os.environ.update(variables)
        conf.invalidate_cache()
        try:
            yield listener
        finally:
            for name in variables:
                del os.environ[name]
            conf.invalidate_cache()


def _received(listener: socket.socket, count: int) -> dict[str, tuple[dict[str, str], str]]:
    """Return the metrics of ours, by name: their tags, and value with type."""
    found: dict[str, tuple[dict[str, str], str]] = {}
    while len(found) < count:
        for line in listener.recv(65_536).decode().splitlines():
            name, _, rest = line.partition(",")
            if name.startswith("airflow.edge_agent.job."):
                tags, _, value = rest.partition(":")
                found[name.removeprefix("airflow.edge_agent.job.")] = (
                    dict(tag.split("=", 1) for tag in tags.split(",")),
                    value,
                )
    return found


def usage_goes_to_airflows_metrics() -> None:
    usage: dict[str, Any] = {
        "wall_seconds": 12.25,
        "cpu_seconds": 3.5,
        "peak_memory_bytes": 131072000,
        "io_read_bytes": 1048576,
        "io_write_bytes": 4096,
    }
    with _statsd() as listener:
        edge = scenes.executor()
        (ti_id,) = scenes.dag_run()
        scenes.queue(edge, [ti_id])
        job = scenes.job_of(ti_id)
        scenes.set_ti(ti_id, state="success")
        scenes.set_job(job.id, usage=usage)
        scenes.finish(job.id)
        edge.sync()
        found = _received(listener, 5)
    values = {name: value for name, (_, value) in found.items()}
    assert values == {
        "wall_time": "12250.000000|ms",
        "cpu_time": "3500.000000|ms",
        "peak_memory_bytes": "131072000|g",
        "io_read_bytes": "1048576|c",
        "io_write_bytes": "4096|c",
    }
    for tags, _ in found.values():
        assert tags == {"dag_id": job.dag_id, "task_id": "task_0", "queue": "default", "agent": "a1"}


def a_usage_that_nobody_knows_is_not_made_up() -> None:
    with _statsd() as listener:
        edge = scenes.executor()
        (ti_id,) = scenes.dag_run()
        scenes.queue(edge, [ti_id])
        job = scenes.job_of(ti_id)
        scenes.set_ti(ti_id, state="success")
        scenes.set_job(job.id, usage={"wall_seconds": 1.0})
        scenes.finish(job.id)
        edge.sync()
        assert list(_received(listener, 1)) == ["wall_time"]
        listener.setblocking(False)  # noqa: FBT003  its only argument
        try:
            more = listener.recv(65_536).decode()
        except BlockingIOError:
            more = ""
        assert "edge_agent.job." not in more


def metrics_that_fail_stop_nobody() -> None:
    edge = scenes.executor()
    (ti_id,) = scenes.dag_run()
    scenes.queue(edge, [ti_id])
    job = scenes.job_of(ti_id)
    scenes.set_ti(ti_id, state="success")
    # What an agent sends is bounded; but who knows who else writes there.
    scenes.set_job(job.id, usage={"wall_seconds": "much"})
    scenes.finish(job.id)
    edge.sync()
    assert not edge.running
    with scenes.db() as session:
        assert queue.owned_among(session, edge.owner, [job.id]) == set()
