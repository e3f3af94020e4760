"""Which trace a job belongs to, for the lines of the log that are about it."""

from __future__ import annotations

from airflow_edge_agent.protocol.traces import trace_of
from airflow_edge_server.store.models import EdgeAgentJob


def traced(job: EdgeAgentJob) -> str:
    """Return what is to be put behind a line about a job; empty: it is in no trace."""
    trace = trace_of(job.workload or {})
    return "" if trace is None else f" [{trace}]"
