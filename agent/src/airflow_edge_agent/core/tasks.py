"""Which task a job is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from airflow_edge_agent.protocol.traces import trace_of

LONGEST = 250


@dataclass(frozen=True)
class TaskKey:
    """A task instance, as Airflow names it. What a workload does not tell is ``None``."""

    dag_id: str | None = None
    task_id: str | None = None
    run_id: str | None = None
    try_number: int | None = None
    map_index: int | None = None
    ti_id: str | None = None
    trace_id: str | None = None
    span_id: str | None = None

    @classmethod
    def of(cls, workload: Mapping[str, Any]) -> TaskKey | None:
        """Read it from a workload, or from what :meth:`told` has made of it; ``None``: it is not about a task."""
        ti = workload.get("ti", workload)
        if not isinstance(ti, Mapping):
            return None
        trace = trace_of(workload)
        key = cls(
            dag_id=_word(ti.get("dag_id")),
            task_id=_word(ti.get("task_id")),
            run_id=_word(ti.get("run_id")),
            try_number=_number(ti.get("try_number")),
            map_index=_number(ti.get("map_index")),
            ti_id=_word(ti.get("id", ti.get("ti_id"))),
            trace_id=trace.trace_id if trace is not None else _word(ti.get("trace_id")),
            span_id=trace.span_id if trace is not None else _word(ti.get("span_id")),
        )
        return key if key.told() else None

    def told(self) -> dict[str, str | int]:
        """Return what is known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def _word(value: object) -> str | None:
    return value[:LONGEST] if isinstance(value, str) else None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31 else None
