"""Results as the runner tells them, in its file or on its socket."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from airflow_edge_agent.core.events import JobEnded
from airflow_edge_agent.protocol.frames import Bytes, Seconds, Usage
from airflow_edge_agent.protocol.jobs import Outcome

_DETAIL_CHARACTERS = 2_000

_V = TypeVar("_V")
_when_used = ConfigDict(defer_build=True)
_seconds: TypeAdapter[float] = TypeAdapter(Seconds, config=_when_used)
_bytes: TypeAdapter[int] = TypeAdapter(Bytes, config=_when_used)
_exit_code: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=-(2**31), le=2**31 - 1)], config=_when_used)


class ResultRecord(BaseModel):
    """What ``result.json`` holds."""

    model_config = _when_used

    outcome: Outcome
    exit_code: int | None = None
    detail: str | None = None
    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None
    wall_seconds: float | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None


def read_result(job_id: str, content: bytes) -> JobEnded | None:
    """Read a result; ``None`` if it is none."""
    try:
        record = ResultRecord.model_validate_json(content)
    except ValidationError:
        return None
    # The file lies within reach of tasks: a figure that no frame can carry is left out, the outcome stays.
    usage = Usage(
        wall_seconds=_fitting(_seconds, record.wall_seconds),
        cpu_seconds=_fitting(_seconds, record.cpu_seconds),
        peak_memory_bytes=_fitting(_bytes, record.peak_memory_bytes),
        io_read_bytes=_fitting(_bytes, record.io_read_bytes),
        io_write_bytes=_fitting(_bytes, record.io_write_bytes),
    )
    exit_code = _fitting(_exit_code, record.exit_code)
    detail = record.detail[:_DETAIL_CHARACTERS] if record.detail else None
    return JobEnded(job_id, record.outcome, exit_code, detail, usage=usage)


def _fitting(kind: TypeAdapter[_V], value: _V | None) -> _V | None:
    """Return the value if frames can carry it, else ``None``."""
    try:
        return None if value is None else kind.validate_python(value)
    except ValidationError:
        return None
