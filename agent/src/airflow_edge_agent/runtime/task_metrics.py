"""Relays what tasks tell to StatsD: collects it, and gives it to the link now and then."""

from __future__ import annotations

import asyncio

import structlog

from airflow_edge_agent.core.statsd import Collected
from airflow_edge_agent.protocol.frames import Welcome
from airflow_edge_agent.runtime.link import LinkLoop
from airflow_edge_agent.runtime.pump import Pump

log = structlog.get_logger()

FLUSH_SECONDS = 10.0
"""At most this long it is collected before it is sent."""

KEEP_SECONDS = 60.0
"""How long it is kept for a link that is away; then it counts as dropped."""


class TaskMetricsLoop:
    """Sends what was collected, some time after the first of it came. An agent whose tasks tell nothing sleeps."""

    def __init__(
        self, pump: Pump, link: LinkLoop, *, flush_seconds: float = FLUSH_SECONDS, keep_seconds: float = KEEP_SECONDS
    ) -> None:
        self._pump = pump
        self._link = link
        self._flush_seconds = flush_seconds
        self._keep_seconds = keep_seconds
        self._collected = Collected()
        self._came = asyncio.Event()
        self._since = 0.0
        self._unwanted_by: Welcome | None = None

    def feed(self, datagram: bytes) -> None:
        """Take what came from a task."""
        if not self._came.is_set():
            self._came.set()
            self._since = asyncio.get_running_loop().time()
        self._collected.feed(datagram)

    async def run(self) -> None:
        """Send it, for ever."""
        while True:
            await self._came.wait()
            await asyncio.sleep(self._flush_seconds)
            self.flush()

    def flush(self) -> None:
        """Send what there is, if that is possible now."""
        if self._collected.empty:
            self._came.clear()
        elif not self._pump.core.connected:
            if asyncio.get_running_loop().time() - self._since >= self._keep_seconds:
                self._collected.discard()
                self._came.clear()
        else:
            frame = self._collected.take()
            self._came.clear()
            welcome = self._link.welcome
            if welcome is not None and welcome.task_metrics:
                self._pump.outbox.put(frame)
            elif welcome is not self._unwanted_by:
                self._unwanted_by = welcome
                log.warning(
                    "the server does not take the metrics of tasks, they go nowhere: [edge_agent] relay_task_metrics "
                    "there, or relay_statsd in [metrics] here"
                )
