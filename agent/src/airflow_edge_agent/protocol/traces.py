"""Which trace a workload belongs to: what Airflow says in it, in the words of W3C's trace context."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """The span of the task instance, and the trace it is in; hexadecimal."""

    trace_id: str
    span_id: str

    def __str__(self) -> str:
        return f"trace_id={self.trace_id} span_id={self.span_id}"


def carrier_of(workload: Mapping[str, Any]) -> dict[str, str]:
    """Return what a workload says about its trace, as a propagator takes it; empty: nothing."""
    ti = workload.get("ti")
    carrier = ti.get("context_carrier") if isinstance(ti, Mapping) else None
    if not isinstance(carrier, Mapping):
        return {}
    names = ("traceparent", "tracestate")
    return {name: value for name in names if isinstance(value := carrier.get(name), str) and len(value) <= 512}  # noqa: PLR2004 -- W3C's bound


def trace_of(workload: Mapping[str, Any]) -> TraceContext | None:
    """Return the trace of a workload; ``None``: it names none."""
    found = _TRACEPARENT.fullmatch(carrier_of(workload).get("traceparent", ""))
    # All zeros mean none.
    if found is None or not found[1].strip("0") or not found[2].strip("0"):
        return None
    return TraceContext(found[1], found[2])
