"""The part of the daemon that relays the metrics of tasks; without it being wanted, it does nothing."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import structlog

from airflow_edge_agent.adapters.runner import SubprocessRunner
from airflow_edge_agent.ports import StoreError
from airflow_edge_agent.runtime.link import LinkLoop
from airflow_edge_agent.runtime.pump import Pump
from airflow_edge_agent.runtime.reports import Reporter
from airflow_edge_agent.settings import Settings

log = structlog.get_logger()

PORT_FILE = "statsd-port"
"""In the state directory."""


class TaskMetricsPart:
    """Puts socket and loop together, and tells the runner where the socket is."""

    def __init__(
        self, settings: Settings, pump: Pump, link: LinkLoop, runner: SubprocessRunner, reporter: Reporter
    ) -> None:
        self._runner = runner
        self._reporter = reporter
        self._socket = None
        self.loops: dict[str, Coroutine[Any, Any, None]] = {}
        """What is to be run."""
        if not settings.metrics.relay_statsd:
            return
        # Only now: by default it is not wanted, and it takes memory.
        from airflow_edge_agent.adapters.statsd_socket import StatsdSocket  # noqa: PLC0415
        from airflow_edge_agent.runtime.task_metrics import TaskMetricsLoop  # noqa: PLC0415

        loop = TaskMetricsLoop(pump, link)
        pump.before_goodbye = loop.flush
        self._socket = StatsdSocket(settings.state_dir / PORT_FILE, loop.feed)
        self.loops["task metrics"] = loop.run()

    async def open(self) -> None:
        """Let jobs that begin from now on tell us their metrics. An agent that cannot have that still does its work."""
        if self._socket is None:
            return
        try:
            self._runner.statsd_port = await self._socket.open()
        except StoreError as error:
            problem = f"the metrics of tasks are not relayed: {error}"
            self._reporter.unserved_metrics = "; ".join(filter(None, (self._reporter.unserved_metrics, problem)))
            log.error(problem)

    def close(self) -> None:
        """Take nothing any more."""
        if self._socket is not None:
            self._socket.close()
