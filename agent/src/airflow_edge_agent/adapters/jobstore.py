"""Jobs on disk: what the daemon must remember, and what the runner wrote."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from airflow_edge_agent.adapters.files import write_atomically
from airflow_edge_agent.core.events import JobEnded
from airflow_edge_agent.ports import StoredJob, StoreError
from airflow_edge_agent.protocol.frames import Bytes, Fence, JobId, Offer, Seconds, Slots, Usage
from airflow_edge_agent.protocol.jobs import Outcome

JOB_FILE = "job.json"
RESULT_FILE = "result.json"
PID_FILE = "pid.json"
LOG_FILE = "task.log"

_DETAIL_CHARACTERS = 2_000

_V = TypeVar("_V")
_seconds: TypeAdapter[float] = TypeAdapter(Seconds)
_bytes: TypeAdapter[int] = TypeAdapter(Bytes)
_exit_code: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=-(2**31), le=2**31 - 1)])


class _JobRecord(BaseModel):
    job_id: JobId
    fence: Fence
    slots: Slots
    label: str
    boot_id: str


class _ResultRecord(BaseModel):
    outcome: Outcome
    exit_code: int | None = None
    detail: str | None = None
    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None
    wall_seconds: float | None = None


class DirectoryJobStore:
    """A directory for each job below ``jobs_dir``."""

    def __init__(self, jobs_dir: Path) -> None:
        self._jobs_dir = jobs_dir

    def add(self, offer: Offer, boot_id: str) -> None:
        """Write down an accepted job, without its token.

        :raises StoreError: e.g. the disk is full.
        """
        directory = self._jobs_dir / offer.job_id
        record = _JobRecord(
            job_id=offer.job_id, fence=offer.fence, slots=offer.slots, label=offer.label, boot_id=boot_id
        )
        try:
            # What an earlier dispatch to us left behind must not be taken for this one's.
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(mode=0o700)
            write_atomically(directory / JOB_FILE, record.model_dump_json())
        except OSError as error:
            raise StoreError(f"{directory}: {error.strerror}") from None

    def load(self) -> list[StoredJob]:
        """Read all jobs; a directory that holds none is removed."""
        jobs = []
        for directory in sorted(self._jobs_dir.iterdir()):
            try:
                record = _JobRecord.model_validate_json((directory / JOB_FILE).read_bytes())
                if record.job_id != directory.name:
                    raise ValueError("another job's file")  # noqa: TRY301 -- as damaged as one that cannot be read
            except (OSError, ValueError):
                # Never confirmed to the server, or damaged by a crash of the host: the server will see it missing.
                shutil.rmtree(directory, ignore_errors=True)
                continue
            jobs.append(
                StoredJob(
                    job_id=record.job_id,
                    fence=record.fence,
                    slots=record.slots,
                    label=record.label,
                    boot_id=record.boot_id,
                    handed_over=self.handed_over(record.job_id),
                    ended=self.ended(record.job_id),
                )
            )
        return jobs

    def handed_over(self, job_id: str) -> bool:
        """Tell whether the runner has begun with the job."""
        directory = self._jobs_dir / job_id
        return (directory / PID_FILE).exists() or (directory / LOG_FILE).exists()

    def ended(self, job_id: str) -> JobEnded | None:
        """Read the result that the runner wrote; ``None`` if there is none."""
        path = self._jobs_dir / job_id / RESULT_FILE
        try:
            record = _ResultRecord.model_validate_json(path.read_bytes())
        except OSError:
            return None
        except ValidationError:
            return JobEnded(job_id, Outcome.CRASHED, detail="its result file is damaged")
        # The file lies within reach of tasks: a figure that no frame can carry is left out, the outcome stays.
        usage = Usage(
            wall_seconds=_fitting(_seconds, record.wall_seconds),
            cpu_seconds=_fitting(_seconds, record.cpu_seconds),
            peak_memory_bytes=_fitting(_bytes, record.peak_memory_bytes),
        )
        exit_code = _fitting(_exit_code, record.exit_code)
        detail = record.detail[:_DETAIL_CHARACTERS] if record.detail else None
        return JobEnded(job_id, record.outcome, exit_code, detail, self.log_size(job_id), usage)

    def record_end(self, ended: JobEnded) -> None:
        """Write a result where the runner could not. Best effort: without it, the next start says the same again."""
        record = _ResultRecord(outcome=ended.outcome, exit_code=ended.exit_code, detail=ended.detail)
        with contextlib.suppress(OSError):
            write_atomically(self._jobs_dir / ended.job_id / RESULT_FILE, json.dumps(record.model_dump(mode="json")))

    def log_size(self, job_id: str) -> int:
        """Return the log's length in bytes; 0 if there is none."""
        try:
            return (self._jobs_dir / job_id / LOG_FILE).stat().st_size
        except OSError:
            return 0

    def read_log(self, job_id: str, offset: int, limit_bytes: int) -> bytes:
        """Read a piece of the log; empty if there is nothing at that offset."""
        try:
            fd = os.open(self._jobs_dir / job_id / LOG_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return b""
        try:
            return os.pread(fd, limit_bytes, offset)
        except OSError:
            return b""
        finally:
            os.close(fd)

    def forget(self, job_id: str) -> None:
        """Remove a job's files."""
        shutil.rmtree(self._jobs_dir / job_id, ignore_errors=True)


def _fitting(kind: TypeAdapter[_V], value: _V | None) -> _V | None:
    """Return the value if frames can carry it, else ``None``."""
    try:
        return None if value is None else kind.validate_python(value)
    except ValidationError:
        return None
