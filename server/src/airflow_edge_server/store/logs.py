"""The log pieces of jobs, read in order and in portions."""

from __future__ import annotations

import codecs
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_edge_agent.protocol.jobs import JobState
from airflow_edge_server.store.models import EdgeAgentJob, EdgeAgentLog

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy.orm import Session

PORTION_BYTES = 2 * 1024 * 1024
"""About how much of a log is read from the database at a time."""

_MOST_ROWS = 1_000
_TAIL_GRACE = timedelta(seconds=60)


def log_key(path: str) -> str:
    """Return the key under which the log of a workload with this log path is found."""
    return hashlib.sha256(path.encode()).hexdigest()


@dataclass(frozen=True)
class LoggedJob:
    """One dispatch of a try, as far as its log is concerned."""

    id: str
    agent_name: str | None
    state: str
    outcome: str | None
    detail: str | None
    log_bytes: int | None
    log_next_offset: int
    finished_at: datetime | None
    hand_over: str | None = None

    @property
    def handed_over(self) -> bool:
        """Whether remote logging has the log."""
        return self.hand_over == "done"

    @property
    def may_grow(self) -> bool:
        """Whether more of the log is likely to come."""
        if self.state != JobState.FINISHED:
            return True
        if self.log_bytes is None or self.log_next_offset >= self.log_bytes:
            return False
        return self.finished_at is not None and datetime.now(UTC) - self.finished_at < _TAIL_GRACE


def find_jobs(session: Session, *, key: str | None = None, ti_id: str | None = None) -> list[LoggedJob]:
    """Return the dispatches that have this log key, or belong to this task instance, in the order of dispatch.

    A try that defers or is rescheduled has several.
    """
    condition = EdgeAgentJob.log_key == key if key is not None else EdgeAgentJob.ti_id == ti_id
    rows = session.execute(
        select(
            EdgeAgentJob.id,
            EdgeAgentJob.agent_name,
            EdgeAgentJob.state,
            EdgeAgentJob.outcome,
            EdgeAgentJob.detail,
            EdgeAgentJob.log_bytes,
            EdgeAgentJob.log_next_offset,
            EdgeAgentJob.finished_at,
            EdgeAgentJob.hand_over,
        )
        .where(condition)
        .order_by(EdgeAgentJob.queued_at, EdgeAgentJob.id)
    )
    return [LoggedJob(*row) for row in rows]


def read_bytes(job_id: str) -> Iterator[bytes]:
    """Yield the log of one job as stored.

    Each portion is read with a session of its own: nothing stays open while the reader is busy or has gone away, and
    what is appended meanwhile is read too.
    """
    after = -1
    # Pieces may be a whole chunk or a single line: begin small, then fit the portions to what they turn out to be.
    limit = 8
    while True:
        with create_session(scoped=False) as session:
            rows = session.execute(
                select(EdgeAgentLog.offset, EdgeAgentLog.data)
                .where(EdgeAgentLog.job_id == job_id, EdgeAgentLog.offset > after)
                .order_by(EdgeAgentLog.offset)
                .limit(limit)
            ).all()
        read = 0
        for offset, data in rows:
            after = offset
            read += len(data)
            yield bytes(data)
        if len(rows) < limit:
            return
        limit = max(8, min(_MOST_ROWS, limit * 8, PORTION_BYTES * len(rows) // max(read, 1)))


def lines(pieces: Iterable[bytes], *, keep_tail: bool) -> Iterator[str]:
    """Cut bytes into lines, without their newlines.

    Lines and UTF-8 sequences may span pieces. Bytes that are no UTF-8 become replacement characters.

    :param keep_tail: yield a last line that has no newline yet. Not while the log grows: readers count lines, and
        would never see the rest of one that they were shown in part.
    """
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
    pending: list[str] = []
    for piece in pieces:
        text = decode(piece)
        if "\n" not in text:
            pending.append(text)
            continue
        first, *whole, rest = text.split("\n")
        pending.append(first)
        yield "".join(pending)
        yield from whole
        pending = [rest]
    pending.append(decode(b"", final=True))
    tail = "".join(pending)
    if tail and keep_tail:
        yield tail


def job_lines(job: LoggedJob) -> Iterator[str]:
    """Yield the log of one job line by line; the last, unfinished line only when no more of it is to come."""
    return lines(read_bytes(job.id), keep_tail=not job.may_grow)
