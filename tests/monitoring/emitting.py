"""Tells how a fleet is, again and again, with the code with which a scheduler does, and Airflow's own behind it.

A process of its own, for Airflow sets up its metrics once. Run with the URL of a database that it may fill.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime, timedelta

from airflow_edge_agent.protocol.frames import TaskMetrics
from airflow_edge_server import compat
from airflow_edge_server.api.task_metrics import TaskMetricsRelay
from airflow_edge_server.store.models import EdgeAgent
from airflow_edge_server.store.queue import EndedJob
from airflow_edge_server.store.transaction import read
from airflow_edge_server.telemetry import FleetMetrics
from airflow_edge_server.usage import emit_usage
from integration.server_api.kit import Database

HOST = {
    "cpu_percent": 3,
    "load_1_per_core": 1,
    "memory_used_bytes": 1,
    "memory_total_bytes": 4,
    "state_disk_used_bytes": 95,
    "state_disk_total_bytes": 100,
}
USAGE = ("wall_seconds", "cpu_seconds", "peak_memory_bytes", "io_read_bytes", "io_write_bytes")


def main() -> None:
    """Have a fleet in which something is wrong in each way that alerts are for, and tell of it until killed."""
    database = Database(sys.argv[1])
    now = datetime.now(UTC)
    with database.sessions() as session:
        for name, state, problem, host in (
            ("press", "running", None, HOST),
            ("mill", "idle", "no Task SDK", HOST | {"state_disk_used_bytes": 1}),
            ("ship", "unknown", "no Task SDK", HOST),
        ):
            agent = EdgeAgent(
                name=name,
                state=state,
                problem=problem,
                metrics=host,
                queues=["default"],
                granted_queues=["*"],
                slots_total=4,
                last_contact_at=now,
            )
            session.add(agent)
    database.add_job(queue="nowhere", queued_at=now - timedelta(hours=1))
    compat.start_stats()
    stats = compat.stats()
    usage = dict.fromkeys(USAGE, 1)
    emit_usage(
        stats, EndedJob("j", "task", "t", 1, "press", "finished", 0, None, ("d", "t", "r", -1), "default", usage, None)
    )
    TaskMetricsRelay(lambda: stats).tell("press", TaskMetrics(metrics=[], dropped=1))
    metrics = FleetMetrics(stats)
    while True:
        read(database.open, metrics.emit)
        time.sleep(1)


if __name__ == "__main__":
    main()
