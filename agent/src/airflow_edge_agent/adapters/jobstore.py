"""Jobs on disk: what the daemon must remember, in a folder of its own, and what the runner wrote, in the runner's."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel

from airflow_edge_agent.adapters.cuts import CUTS_FILE, load_cuts, read_stream, shed
from airflow_edge_agent.adapters.files import write_atomically
from airflow_edge_agent.adapters.foreign import ForeignFolder
from airflow_edge_agent.adapters.kept_calls import (
    FINAL_FILE,
    MOST_FILE_BYTES,
    RENDERED_FILE,
    read_final,
    read_rendered,
    write_final,
    write_rendered,
)
from airflow_edge_agent.adapters.results import ResultRecord, read_result
from airflow_edge_agent.core.events import JobEnded
from airflow_edge_agent.core.spool import Cut, stream_size
from airflow_edge_agent.core.tasks import TaskKey
from airflow_edge_agent.ports import FinalState, KeptCall, StoredJob, StoreError
from airflow_edge_agent.protocol.frames import Fence, JobId, Offer, Slots
from airflow_edge_agent.protocol.jobs import Outcome

JOB_FILE = "job.json"
RESULT_FILE = "result.json"
PID_FILE = "pid.json"
LOG_FILE = "task.log"
SENT_FILE = "sent.json"
CONTACT_FILE = "contact"
"""Beside the folder of the jobs: in it there is nothing but jobs."""

RUNNER_JOBS = "jobs"
"""In the runner's folder: a folder for each job."""

_MOST_RESULT_BYTES = 64 * 1024

_PROBE_BYTES = 64 * 1024
"""More than a job needs at its start."""


class _JobRecord(BaseModel):
    job_id: JobId
    fence: Fence
    slots: Slots
    label: str
    boot_id: str
    task: dict[str, str | int] | None = None
    disconnect_lease_seconds: float = 0.0


class DirectoryJobStore:
    """A directory for each job below ``jobs_dir``, and one below ``jobs`` in ``runner_dir``.

    :param jobs_dir: the daemon's alone.
    :param runner_dir: the runner's; tasks can reach it, so nothing in it is trusted.
    """

    def __init__(self, jobs_dir: Path, runner_dir: Path) -> None:
        self._jobs_dir = jobs_dir
        self._runner_dir = runner_dir
        self._foreign = ForeignFolder(runner_dir, RUNNER_JOBS)
        self._cuts: dict[str, tuple[Cut, ...]] = {}
        self._sent: dict[str, int | None] = {}

    def add(self, offer: Offer, boot_id: str) -> None:
        """Write down an accepted job, without its token.

        :raises StoreError: e.g. the disk is full.
        """
        directory = self._jobs_dir / offer.job_id
        record = _JobRecord(
            job_id=offer.job_id,
            fence=offer.fence,
            slots=offer.slots,
            label=offer.label,
            boot_id=boot_id,
            task=task.told() if (task := TaskKey.of(offer.workload)) else None,
            disconnect_lease_seconds=offer.disconnect_lease_seconds,
        )
        try:
            self._cuts.pop(offer.job_id, None)
            self._sent.pop(offer.job_id, None)
            # What an earlier dispatch to us left behind must not be taken for this one's.
            shutil.rmtree(directory, ignore_errors=True)
            self._foreign.remove(offer.job_id)
            directory.mkdir(mode=0o700)
            write_atomically(directory / JOB_FILE, record.model_dump_json())
        except OSError as error:
            raise StoreError(f"{directory}: {error.strerror}") from None

    def load(self) -> list[StoredJob]:
        """Read all jobs; a directory that holds none is removed."""
        jobs = []
        for directory in sorted(path for path in self._jobs_dir.iterdir() if path.is_dir()):
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
                    task=TaskKey.of(record.task or {}),
                    disconnect_lease_seconds=record.disconnect_lease_seconds,
                )
            )
        self._remove_unknown({job.job_id for job in jobs})
        return jobs

    def _remove_unknown(self, known: set[str]) -> None:
        """Remove what the runner has left of jobs that are over and that nobody here remembers."""
        for name in self._foreign.names():
            if name not in known and self._foreign.has(name, RESULT_FILE):
                self._foreign.remove(name)

    def handed_over(self, job_id: str) -> bool:
        """Tell whether the runner has begun with the job."""
        return self._foreign.has(job_id, PID_FILE, LOG_FILE)

    def ended(self, job_id: str) -> JobEnded | None:
        """Read the result that the runner wrote, or the daemon in its place; ``None`` if there is none."""
        try:
            content = self._result(job_id)
        except OSError:
            return None
        ended = read_result(job_id, content)
        if ended is None:
            return JobEnded(job_id, Outcome.CRASHED, detail="its result file is damaged")
        return replace(ended, log_bytes=self.log_size(job_id))

    def _result(self, job_id: str) -> bytes:
        with contextlib.suppress(FileNotFoundError):
            return (self._jobs_dir / job_id / RESULT_FILE).read_bytes()
        with self._foreign.open(job_id, RESULT_FILE) as file:
            return os.read(file, _MOST_RESULT_BYTES)

    def record_end(self, ended: JobEnded) -> None:
        """Write a result in the runner's place. Best effort: without it, the next start finds out the same again."""
        record = ResultRecord(
            outcome=ended.outcome,
            exit_code=ended.exit_code,
            detail=ended.detail,
            **ended.usage.model_dump(include=set(ResultRecord.model_fields)),
        )
        with contextlib.suppress(OSError):
            write_atomically(self._jobs_dir / ended.job_id / RESULT_FILE, json.dumps(record.model_dump(mode="json")))

    def log_size(self, job_id: str) -> int:
        """Return the log's length in bytes; 0 if there is none."""
        try:
            with self._foreign.open(job_id, LOG_FILE) as log:
                size = os.fstat(log).st_size
        except OSError:
            return 0
        return stream_size(size, self._cuts_of(job_id))

    def read_log(self, job_id: str, offset: int, limit_bytes: int) -> bytes:
        """Read a piece of the log; empty if there is nothing at that offset."""
        try:
            with self._foreign.open(job_id, LOG_FILE) as log:
                return read_stream(log, offset, limit_bytes, self._cuts_of(job_id))
        except OSError:
            return b""

    def shed_log(self, job_id: str, offset: int, count: int) -> int:
        """Drop a piece of the log.

        :raises StoreError: the file system cannot give back a part of a file, or is full.
        """
        try:
            with self._foreign.open(job_id, LOG_FILE, os.O_RDWR) as log:
                cuts = shed(log, self._jobs_dir / job_id / CUTS_FILE, self._cuts_of(job_id), offset, count)
        except OSError as error:
            raise StoreError(
                f"{self._runner_dir / RUNNER_JOBS / job_id / LOG_FILE}: {error.strerror or error}"
            ) from None
        self._cuts[job_id] = cuts
        return self.log_size(job_id)

    def note_sent(self, job_id: str, offset: int) -> None:
        """Write down how much of the log may have been sent. Best effort: without it, nothing of it can be dropped."""
        if self.sent(job_id) == offset:
            return
        with contextlib.suppress(OSError):
            write_atomically(self._jobs_dir / job_id / SENT_FILE, json.dumps(offset))
            self._sent[job_id] = offset

    def sending(self, job_id: str, end: int) -> None:
        """Remove the note before it becomes untrue; that takes no room on the disk."""
        noted = self.sent(job_id)
        if noted is not None and end > noted:
            self._sent[job_id] = None
            with contextlib.suppress(OSError):
                (self._jobs_dir / job_id / SENT_FILE).unlink()

    def sent(self, job_id: str) -> int | None:
        """Read how much of the log may have been sent; ``None``: perhaps all."""
        if job_id not in self._sent:
            try:
                noted = json.loads((self._jobs_dir / job_id / SENT_FILE).read_bytes())
            except (OSError, ValueError):
                noted = None
            self._sent[job_id] = noted if isinstance(noted, int) and noted >= 0 else None
        return self._sent[job_id]

    def append_log(self, job_id: str, text: str) -> int:
        """Append a line of the agent's own, in the form in which the Task SDK writes them. Best effort."""
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        line = json.dumps({"timestamp": now, "level": "warning", "event": text, "logger": "edge_agent"}).encode()
        with contextlib.suppress(OSError), self._foreign.open(job_id, LOG_FILE, os.O_RDWR | os.O_APPEND) as log:
            size = os.fstat(log).st_size
            unfinished = size > 0 and os.pread(log, 1, size - 1) != b"\n"
            os.write(log, b"\n" * unfinished + line + b"\n")
        return self.log_size(job_id)

    def keep_final(self, job_id: str, final: FinalState) -> None:
        """Write a job's final state down.

        :raises StoreError: e.g. the disk is full.
        """
        path = self._jobs_dir / job_id / FINAL_FILE
        with _told_of(path):
            write_final(path, final)

    def has_final(self, job_id: str) -> bool:
        """Tell whether there is one, ours or the runner's."""
        return (self._jobs_dir / job_id / FINAL_FILE).exists() or self._foreign.has(job_id, FINAL_FILE)

    def final(self, job_id: str) -> FinalState | None:
        """Read it; ours comes first."""
        try:
            with contextlib.suppress(FileNotFoundError):
                return read_final((self._jobs_dir / job_id / FINAL_FILE).read_bytes())
            with self._foreign.open(job_id, FINAL_FILE) as file, os.fdopen(os.dup(file), "rb") as content:
                return read_final(content.read(MOST_FILE_BYTES))
        except OSError:
            return None

    def drop_final(self, job_id: str) -> None:
        """Remove it, ours and the runner's."""
        with contextlib.suppress(OSError):
            (self._jobs_dir / job_id / FINAL_FILE).unlink()
        self._foreign.unlink(job_id, FINAL_FILE)

    def keep_rendered(self, job_id: str, call: KeptCall) -> None:
        """Write down what a job's templates became.

        :raises StoreError: e.g. the disk is full.
        """
        path = self._jobs_dir / job_id / RENDERED_FILE
        with _told_of(path):
            write_rendered(path, call)

    def has_rendered(self, job_id: str) -> bool:
        """Tell whether it is there."""
        return (self._jobs_dir / job_id / RENDERED_FILE).exists()

    def rendered(self, job_id: str) -> KeptCall | None:
        """Read it."""
        try:
            return read_rendered((self._jobs_dir / job_id / RENDERED_FILE).read_bytes())
        except OSError:
            return None

    def drop_rendered(self, job_id: str) -> None:
        """Remove it."""
        with contextlib.suppress(OSError):
            (self._jobs_dir / job_id / RENDERED_FILE).unlink()

    def _cuts_of(self, job_id: str) -> tuple[Cut, ...]:
        if job_id not in self._cuts:
            self._cuts[job_id] = load_cuts(self._jobs_dir / job_id / CUTS_FILE)
        return self._cuts[job_id]

    def note_contact(self) -> None:
        """Remember that the server was there. Best effort: the time of a file."""
        with contextlib.suppress(OSError):
            self._jobs_dir.with_name(CONTACT_FILE).touch(mode=0o600)

    def contact_seconds_ago(self) -> float:
        """Return how long ago that was; 0 if it is not known."""
        try:
            return max(0.0, time.time() - self._jobs_dir.with_name(CONTACT_FILE).stat().st_mtime)
        except OSError:
            return 0.0

    def check(self) -> str | None:
        """Try whether another job could be written down."""
        probe = self._jobs_dir / ".probe"
        try:
            probe.write_bytes(bytes(_PROBE_BYTES))
        except OSError as error:
            return f"{self._jobs_dir}: {error.strerror}"
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
        return None

    def forget(self, job_id: str) -> None:
        """Remove a job's files."""
        self._cuts.pop(job_id, None)
        self._sent.pop(job_id, None)
        shutil.rmtree(self._jobs_dir / job_id, ignore_errors=True)
        self._foreign.remove(job_id)


@contextlib.contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Say of what the system refuses meanwhile which file it is about."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}") from None
