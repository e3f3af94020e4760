"""Which trace a job belongs to, for the lines of the log that are about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_edge_agent.protocol.traces import trace_of


def traced(workload: Mapping[str, Any] | None) -> str:
    """Return what is to be put behind a line about a job; empty: it is in no trace."""
    trace = trace_of(workload or {})
    return "" if trace is None else f" [{trace}]"
