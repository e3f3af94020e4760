"""What jobs have used, told to Airflow's metrics."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_edge_server import plainly
from airflow_edge_server.telemetry import METRICS, tag_value

if TYPE_CHECKING:
    from airflow_edge_server.store.queue import EndedJob

log = plainly.logger(__name__)

PREFIX = "edge_agent.job."


def _figures(kind: str) -> list[str]:
    """Return what of a job is told as metrics of this kind."""
    jobs = {name.removeprefix("job."): metric for name, metric in METRICS.items() if name.startswith("job.")}
    return [name for name, metric in jobs.items() if metric.kind == kind]


_TIMINGS, _GAUGES, _COUNTERS = _figures("timing"), _figures("gauge"), _figures("counter")


def emit_usage(stats: Any, job: EndedJob) -> None:
    """Emit the usage of an ended job; what is not known of it is left out.

    Times are timings, so that a backend makes distributions of them, in milliseconds as all of Airflow's; bytes read
    and written are counters, to be summed up; the peak is a gauge.

    :param stats: Airflow's, with ``timing``, ``gauge`` and ``incr``.
    """
    dag_id, task_id = job.place[:2]
    known = {"dag_id": dag_id, "task_id": task_id, "queue": job.queue, "agent": job.agent_name}
    tags = {name: tag_value(value) for name, value in known.items() if value}
    try:
        for name in _TIMINGS:
            if (value := job.usage.get(f"{name.removesuffix('_time')}_seconds")) is not None:
                stats.timing(f"{PREFIX}{name}", timedelta(seconds=value), tags=tags)
        for name in _GAUGES:
            if (value := job.usage.get(name)) is not None:
                stats.gauge(f"{PREFIX}{name}", value, tags=tags)
        for name in _COUNTERS:
            if (value := job.usage.get(name)) is not None:
                stats.incr(f"{PREFIX}{name}", value, tags=tags)
    except Exception as error:  # noqa: BLE001  a backend of metrics, which may be anybody's, must not stop the executor
        log.warning("The usage of job %s could not be told to the metrics: %s", job.id, error)
