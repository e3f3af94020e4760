"""What the service manager is told while the daemon runs."""

from __future__ import annotations

import asyncio

from airflow_edge_agent.ports import Notifier
from airflow_edge_agent.runtime.pump import Pump
from airflow_edge_agent.runtime.reports import Reporter

BUSY_SECONDS = 3.0
IDLE_SECONDS = 15.0
"""How often the line is written anew. Idle, the daemon is woken by little else."""

EXTENSION_SECONDS = 30.0
"""How much time is asked for while a stop waits, again and again."""


async def status_loop(pump: Pump, notifier: Notifier, reporter: Reporter) -> None:
    """Keep the service manager's status line true, and ask for time while a stop waits for jobs."""
    while True:
        notifier.status(reporter.line())
        if pump.core.stopping:
            notifier.extend(EXTENSION_SECONDS)
        await asyncio.sleep(BUSY_SECONDS if pump.busy.is_set() else IDLE_SECONDS)
