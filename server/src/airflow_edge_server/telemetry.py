"""The fleet as metrics of Airflow: what there is, and how it is told to StatsD or OpenTelemetry.

:data:`METRICS` is all that is ever emitted: ``docs/metrics.md`` is written from it, and nothing else can be emitted.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from airflow_edge_agent.protocol.states import CONNECTED_STATES, AgentState, is_drain
from airflow_edge_server import plainly
from airflow_edge_server.domain.fleet import Place, Serving, percent
from airflow_edge_server.store import fleet
from airflow_edge_server.store.models import EdgeAgent

log = plainly.logger(__name__)

PREFIX = "edge_agent."

EMIT_SECONDS = 30.0
"""How often a scheduler tells how the fleet is."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, without the prefix."""

    name: str
    kind: Literal["gauge", "timing", "counter"]
    tags: tuple[str, ...]
    meaning: str


TASK_METRICS_DROPPED = "task_metrics.dropped"

_NOT_IN_TAGS = re.compile(r"[^A-Za-z0-9_.\-/]")

_JOB = ("dag_id", "task_id", "queue", "agent")

METRICS = {
    metric.name: metric
    for metric in (
        Metric("agents", "gauge", ("state",), "Agents in this state; every state is told, also with 0."),
        Metric("slots_total", "gauge", (), "Slots of connected agents."),
        Metric("slots_used", "gauge", (), "Slots in use, of connected agents."),
        Metric("queue.queued", "gauge", ("queue",), "Jobs that wait."),
        Metric("queue.running", "gauge", ("queue",), "Jobs offered, accepted or running."),
        Metric("queue.oldest_seconds", "gauge", ("queue",), "How long the oldest waiting job has waited."),
        Metric("queue.agents_ready", "gauge", ("queue",), "Agents that serve the queue and take jobs."),
        Metric("agent.connected", "gauge", ("agent",), "1: it is connected; 0: it is not."),
        Metric("agent.problem", "gauge", ("agent",), "1: it reports a problem and takes no jobs."),
        Metric("agent.slots_total", "gauge", ("agent",), "Its slots."),
        Metric("agent.slots_used", "gauge", ("agent",), "Its slots in use."),
        Metric("agent.cpu_percent", "gauge", ("agent",), "CPU of its host, all cores together, 0 to 100."),
        Metric("agent.load_1_per_core", "gauge", ("agent",), "Load of its host over one minute, per core."),
        Metric("agent.memory_percent", "gauge", ("agent",), "Memory of its host in use."),
        Metric("agent.disk_percent", "gauge", ("agent",), "Use of the disk that holds its state."),
        Metric("job.wall_time", "timing", _JOB, "How long a job ran, in milliseconds."),
        Metric("job.cpu_time", "timing", _JOB, "User and system time of its processes, in milliseconds."),
        Metric("job.peak_memory_bytes", "gauge", _JOB, "Most memory of its processes."),
        Metric("job.io_read_bytes", "counter", _JOB, "Bytes it read from disks, where that is known."),
        Metric("job.io_write_bytes", "counter", _JOB, "Bytes it wrote to disks, where that is known."),
        Metric(TASK_METRICS_DROPPED, "counter", ("agent",), "Values of tasks' own metrics that were not relayed."),
    )
}


class FleetMetrics:
    """Tells how the fleet is, every now and then.

    :param stats: Airflow's, with ``gauge``.
    """

    def __init__(self, stats: Any) -> None:
        self._stats = stats
        self._queues: set[str] = set()
        self._agents: set[str] = set()
        self.next_at = 0.0
        """When to tell it again, in monotonic seconds."""

    def is_due(self) -> bool:
        """Tell whether it is time, and note that it is done."""
        now = time.monotonic()
        if now < self.next_at:
            return False
        self.next_at = now + EMIT_SECONDS
        return True

    def emit(self, session: Session) -> None:
        """Read how the fleet is and tell it. A backend that fails stops nothing."""
        places, loads, counts = fleet.survey_fleet(session), fleet.read_queues(session), fleet.count_fleet(session)
        agents = _read_agents(session)
        now = datetime.now(UTC)
        try:
            self._fleet(counts)
            self._by_queue(places, loads, now)
            self._by_agent(agents)
        except Exception as error:  # noqa: BLE001  a backend of metrics may be anybody's
            log.warning("How the fleet is could not be told to the metrics: %s", error)

    def _gauge(self, name: str, value: float, **tags: str) -> None:
        metric = METRICS[name]
        assert metric.kind == "gauge"
        assert set(tags) == set(metric.tags)
        self._stats.gauge(f"{PREFIX}{name}", value, tags={tag: tag_value(word) for tag, word in tags.items()})

    def _fleet(self, counts: Iterable[fleet.FleetCount]) -> None:
        by_state = {count.state: count for count in counts}
        for state in AgentState:
            self._gauge("agents", by_state[state].agents if state in by_state else 0, state=str(state))
        connected = [count for state, count in by_state.items() if state in CONNECTED_STATES]
        self._gauge("slots_total", sum(count.slots_total for count in connected))
        self._gauge("slots_used", sum(count.slots_used for count in connected))

    def _by_queue(self, places: Mapping[Place, Serving], loads: Mapping[Place, fleet.QueueLoad], now: datetime) -> None:
        queues = {queue for queue, _ in (*places, *loads)}
        # One that is gone must not keep its last value for ever.
        for queue in sorted(queues | self._queues):
            load = [found for (name, _), found in loads.items() if name == queue]
            oldest = [found.oldest_queued_at for found in load if found.oldest_queued_at is not None]
            waited = max((now - min(oldest)).total_seconds(), 0.0) if oldest else 0.0
            ready = sum(found.ready for (name, _), found in places.items() if name == queue)
            self._gauge("queue.queued", sum(found.queued for found in load), queue=queue)
            self._gauge("queue.running", sum(found.running for found in load), queue=queue)
            self._gauge("queue.oldest_seconds", waited, queue=queue)
            self._gauge("queue.agents_ready", ready, queue=queue)
        self._queues = queues

    def _by_agent(self, agents: Mapping[str, Any]) -> None:
        for name in self._agents - set(agents):
            self._gauge("agent.connected", 0, agent=name)
        for name, row in agents.items():
            connected = AgentState(row.state) in CONNECTED_STATES
            self._gauge("agent.connected", int(connected), agent=name)
            self._gauge("agent.problem", int(row.problem is not None and not is_drain(row.problem)), agent=name)
            if not connected:
                continue
            self._gauge("agent.slots_total", row.slots_total, agent=name)
            self._gauge("agent.slots_used", row.slots_used, agent=name)
            for figure, value in host_figures(row.metrics or {}).items():
                if value is not None:
                    self._gauge(f"agent.{figure}", value, agent=name)
        self._agents = set(agents)


def tag_value(text: str) -> str:
    """Return what stands for a text in a tag.

    Airflow makes tags a part of the name for StatsD, and drops whatever has other characters in its name than these.
    """
    return _NOT_IN_TAGS.sub("_", text)


def host_figures(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Return what is told of an agent's host; ``None``: not known."""
    return {
        "cpu_percent": metrics.get("cpu_percent"),
        "load_1_per_core": metrics.get("load_1_per_core"),
        "memory_percent": percent(metrics.get("memory_used_bytes"), metrics.get("memory_total_bytes")),
        "disk_percent": percent(metrics.get("state_disk_used_bytes"), metrics.get("state_disk_total_bytes")),
    }


def _read_agents(session: Session) -> dict[str, Any]:
    agent = EdgeAgent
    rows = session.execute(
        select(agent.name, agent.state, agent.problem, agent.slots_total, agent.slots_used, agent.metrics)
    )
    return {row.name: row for row in rows}
