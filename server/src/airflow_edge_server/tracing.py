"""A span for each job, where Airflow traces: a child of its task instance's, from the queue to the end."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from airflow_edge_agent.protocol.traces import carrier_of
from airflow_edge_server import plainly
from airflow_edge_server.store.queue import TracedJob

log = plainly.logger(__name__)

SPAN = "edge_agent.job"


def emit_spans(jobs: Iterable[TracedJob]) -> None:
    """Tell how these ended jobs went, to whatever Airflow's tracing is set to.

    One that cannot be told stops nothing.
    """
    from opentelemetry import trace  # noqa: PLC0415  only where Airflow traces
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415  as above

    tracer = trace.get_tracer("airflow_edge_server")
    for job in jobs:
        carrier = carrier_of(job.workload or {})
        if not carrier or job.finished_at is None:
            continue
        try:
            span = tracer.start_span(
                SPAN,
                context=TraceContextTextMapPropagator().extract(carrier),
                start_time=_nanoseconds(job.queued_at),
                attributes={f"edge_agent.{name}": value for name, value in _attributes(job).items()},
            )
            for name in ("offered", "accepted", "started"):
                at: datetime | None = getattr(job, f"{name}_at")
                if at is not None:
                    span.add_event(name, timestamp=_nanoseconds(at))
            if job.outcome != "finished":
                span.set_status(trace.Status(trace.StatusCode.ERROR, job.detail or job.outcome))
            span.end(_nanoseconds(job.finished_at))
        except Exception as error:  # noqa: BLE001  tracing may be set up by anybody, and must not stop the executor
            log.warning("The span of job %s could not be told: %s", job.id, error)


def _attributes(job: TracedJob) -> dict[str, str | int]:
    known = {
        "job_id": job.id,
        "queue": job.queue,
        "agent": job.agent_name,
        "outcome": job.outcome,
        "offers": job.fence,
        "exit_code": job.exit_code,
    }
    return {name: value for name, value in known.items() if value is not None}


def _nanoseconds(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1_000
