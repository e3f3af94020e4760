"""Tells Airflow's metrics what tasks have told to StatsD on an agent. Whatever an agent sends, it is bounded here."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from airflow_edge_agent.protocol.frames import TaskMetric, TaskMetrics
from airflow_edge_server import plainly
from airflow_edge_server.api.bounds import Allowances
from airflow_edge_server.telemetry import PREFIX, TASK_METRICS_DROPPED, tag_value

log = plainly.logger(__name__)

FRAMES_PER_SECOND = 0.5
"""How often one agent is listened to in the long run; a good one says something every 10 s."""

BURST = 10.0

MAX_SERIES = 1_000
"""How many metrics, told apart by name and tags, one agent may bring up within :data:`SERIES_SECONDS`."""

SERIES_SECONDS = 3_600.0

_MOST_AGENTS = 5_000


class TaskMetricsRelay:
    """Re-emits the metrics of tasks, each with the agent's name as the tag ``agent``.

    Called on several threads.

    :param stats: returns Airflow's, with ``incr``, ``decr``, ``gauge`` and ``timing``.
    """

    def __init__(self, stats: Callable[[], Any], clock: Callable[[], float] = time.monotonic) -> None:
        self._stats = stats
        self._clock = clock
        self._allowed = Allowances(FRAMES_PER_SECOND, BURST, clock)
        self._series: OrderedDict[str, tuple[float, set[int]]] = OrderedDict()
        self._lock = threading.Lock()
        self._failing = False

    def tell(self, agent_name: str, frame: TaskMetrics) -> None:
        """Tell what an agent has sent. What is not told is counted. A backend that fails stops nothing."""
        with self._lock:
            permitted = self._permitted(agent_name, frame)
        dropped = (
            frame.dropped + sum(len(one.values) for one in frame.metrics) - sum(len(one.values) for one in permitted)
        )
        try:
            stats = self._stats()
            for metric in permitted:
                dropped += 0 if self._emit(stats, agent_name, metric) else len(metric.values)
            if dropped:
                stats.incr(f"{PREFIX}{TASK_METRICS_DROPPED}", dropped, tags={"agent": tag_value(agent_name)})
        except Exception as error:  # noqa: BLE001  a backend of metrics may be anybody's
            if not self._failing:
                log.warning("Metrics of tasks on agent %s could not be told: %s", agent_name, error)
            self._failing = True
        else:
            self._failing = False

    def _permitted(self, agent_name: str, frame: TaskMetrics) -> list[TaskMetric]:
        if self._allowed.spend(agent_name) > 0:
            return []
        return [one for one in frame.metrics if not one.name.startswith(PREFIX) and self._is_bounded(agent_name, one)]

    def _is_bounded(self, agent_name: str, metric: TaskMetric) -> bool:
        now = self._clock()
        since, known = self._series.get(agent_name, (now, set()))
        if now - since >= SERIES_SECONDS:
            since, known = now, set()
        self._series[agent_name] = (since, known)
        self._series.move_to_end(agent_name)
        if len(self._series) > _MOST_AGENTS:
            self._series.popitem(last=False)
        mark = hash((metric.name, tuple(sorted(metric.tags.items()))))
        if mark not in known and len(known) >= MAX_SERIES:
            return False
        known.add(mark)
        return True

    def _emit(self, stats: Any, agent_name: str, metric: TaskMetric) -> bool:
        """Tell one metric; return whether Airflow knows what to do with it."""
        tags = {**metric.tags, "agent": tag_value(agent_name)}
        value = metric.values[-1]
        number = int(value) if value.is_integer() else value
        try:
            if metric.kind == "timing":
                for one in metric.values:
                    stats.timing(metric.name, timedelta(milliseconds=one), tags=tags)
            elif metric.kind == "gauge":
                stats.gauge(metric.name, number, delta=metric.delta, tags=tags)
            elif number >= 0:
                stats.incr(metric.name, number, tags=tags)
            else:
                stats.decr(metric.name, -number, tags=tags)
        except ValueError:
            # A name of Airflow's own, without the tags that it has there.
            return False
        return True
