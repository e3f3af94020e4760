"""What agents say about jobs, applied to the rows of one transaction."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from datetime import datetime

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session, defer

from airflow_edge_agent.protocol.codec import unpack_log
from airflow_edge_agent.protocol.frames import (
    Accept,
    AcceptAck,
    Cancel,
    Close,
    HeldJob,
    Log,
    LogAck,
    Refuse,
    Result,
    ResultAck,
    ServerFrame,
    Started,
)
from airflow_edge_agent.protocol.jobs import JobEvent, JobState, Outcome, next_job_state
from airflow_edge_server import plainly
from airflow_edge_server.domain.jobs import event_of_result, is_legal
from airflow_edge_server.domain.reconcile import REVOKED, Claim, ServerJob, judge_claim
from airflow_edge_server.store.among import among
from airflow_edge_server.store.events import Kind, names_limit, note_event
from airflow_edge_server.store.models import EdgeAgentJob, EdgeAgentLog
from airflow_edge_server.store.text import clean
from airflow_edge_server.store.traced import traced
from airflow_edge_server.store.transaction import locked

log = plainly.logger(__name__)

_LOG_STATES = frozenset({JobState.ACCEPTED, JobState.RUNNING, JobState.FINISHED})


def log_marker(most_bytes: int, now: datetime, *, own_line: bool) -> bytes:
    """Return the line that ends a log of which more came than is kept."""
    line = {
        "timestamp": now.isoformat(),
        "level": "warning",
        "event": f"the rest of this log was not kept: more than {most_bytes / 2**20:g} MiB ([edge_agent] log_max_mb)",
        "logger": "edge_agent",
    }
    return (b"" if own_line else b"\n") + json.dumps(line).encode() + b"\n"


def held_job(session: Session, agent_name: str, job_id: str, fence: int) -> tuple[str, str] | None:
    """Return kind and subject of a job that this agent holds under this fence, and has not ended; else ``None``."""
    job = EdgeAgentJob
    row = session.execute(
        select(job.kind, job.ti_id).where(
            job.id == job_id,
            job.agent_name == agent_name,
            job.fence == fence,
            job.state.in_([JobState.ACCEPTED.value, JobState.RUNNING.value]),
        )
    ).one_or_none()
    return None if row is None else (row.kind, row.ti_id)


def locked_jobs(session: Session, job_ids: Collection[str]) -> dict[str, EdgeAgentJob]:
    """Return the rows of jobs by id, locked until the transaction ends."""
    if not job_ids:
        return {}
    job = EdgeAgentJob
    query = select(job).where(among(session, job.id, sorted(set(job_ids)))).order_by(job.id)
    # What it is to run is of no interest to what is said about it, and the longest part of the row.
    query = query.options(defer(job.workload), defer(job.limits))
    return {row.id: row for row in session.scalars(locked(query, session))}


class JobBook:
    """The rows of the jobs that one batch speaks about, locked until the transaction ends.

    :param revoked: whether the agent may only finish what it holds.
    :param rows: more than those, if they are locked already.

    A frame about a job that the agent does not hold, or with another fence than the job's, changes nothing.
    """

    def __init__(
        self,
        session: Session,
        agent_name: str,
        now: datetime,
        job_ids: Collection[str],
        *,
        log_max_bytes: int = 0,
        revoked: bool = False,
        rows: Mapping[str, EdgeAgentJob] | None = None,
    ) -> None:
        self._session = session
        self._log_max_bytes = log_max_bytes
        self._revoked = revoked
        self._agent_name = agent_name
        self._now = now
        self._warned: set[str] = set()
        self.requeued = False
        """Whether a job went back to its queue."""
        found = locked_jobs(session, job_ids) if rows is None else rows
        self._jobs = {job_id: found[job_id] for job_id in job_ids if job_id in found}

    def get(self, job_id: str) -> EdgeAgentJob | None:
        """Return the row, whosever it is."""
        return self._jobs.get(job_id)

    def values(self) -> list[EdgeAgentJob]:
        """Return all rows that were found."""
        return list(self._jobs.values())

    def accept(self, frame: Accept) -> ServerFrame:
        """Give the job to the agent, unless its offer is not valid any more."""
        job = self._own(frame.job_id, frame.fence)
        if job is None:
            return self._drop(frame.job_id, frame.fence)
        state = JobState(job.state)
        if state is JobState.OFFERED and job.cancel_reason is not None:
            self.apply(job, JobEvent.END, outcome=Outcome.REVOKED, detail=job.cancel_reason)
        if job.cancel_reason is not None:
            return Cancel(job_id=job.id, fence=job.fence, reason=job.cancel_reason)
        if state is JobState.OFFERED and self._revoked:
            self.apply(job, JobEvent.REFUSE)
            return self._drop(frame.job_id, frame.fence, REVOKED)
        if not is_legal(state, JobEvent.ACCEPT):
            return self._drop(frame.job_id, frame.fence, job.detail)
        self.apply(job, JobEvent.ACCEPT)
        return AcceptAck(job_id=job.id, fence=job.fence)

    def refuse(self, frame: Refuse) -> ServerFrame | None:
        """Return the job to its queue."""
        job = self._own(frame.job_id, frame.fence)
        if job is not None and is_legal(JobState(job.state), JobEvent.REFUSE):
            log.info(
                "Agent %s refused job %s: %s%s", self._agent_name, job.id, clean(frame.reason), traced(job.workload)
            )
            self.apply(job, JobEvent.REFUSE)
        return None

    def started(self, frame: Started) -> ServerFrame | None:
        """Note that the job runs."""
        job = self._own(frame.job_id, frame.fence)
        if job is None:
            return self._started_late(frame)
        if not is_legal(JobState(job.state), JobEvent.START):
            return self._drop(frame.job_id, frame.fence)
        if job.state == JobState.FINISHED:
            # Its result may have overtaken this frame; if however the server has ended it, the agent must know.
            ended_here = job.outcome in {Outcome.LOST, Outcome.REVOKED}
            return self._drop(frame.job_id, frame.fence, job.detail) if ended_here else None
        self.apply(job, JobEvent.START)
        return None

    def _started_late(self, frame: Started) -> ServerFrame | None:
        """Answer the start of a job that has been given up here, or given to somebody else."""
        job = self._jobs.get(frame.job_id)
        if job is None:
            return self._drop(frame.job_id, frame.fence)
        entry = HeldJob(job_id=frame.job_id, fence=frame.fence, phase="running")
        match judge_claim(self._agent_name, entry, self.view(job)):
            case Claim.KEEP:
                return None
            case Claim.DROP:
                return self._drop(frame.job_id, frame.fence)
            case _:
                # This frame may be an old one. Its hello says what the agent holds now.
                return Close(code="session_unknown", message=f"who runs job {job.id} is in question: say hello again")

    def view(self, job: EdgeAgentJob) -> ServerJob:
        """Describe a job to those who decide."""
        since = job.started_at or job.accepted_at
        return ServerJob(
            job.id,
            JobState(job.state),
            job.fence,
            job.agent_name,
            job.cancel_reason,
            job.detail,
            None if job.outcome is None else Outcome(job.outcome),
            is_task=job.kind == "task",
            held_seconds=0.0 if since is None else (self._now - since).total_seconds(),
        )

    def adopt(self, job: EdgeAgentJob, fence: int) -> None:
        """Give a job back to this agent, which has held it all the time."""
        job.state = next_job_state(JobState(job.state), JobEvent.ADOPT)
        if job.agent_name != self._agent_name:
            self._forget_log(job)
        log.warning(
            "Job %s is again that of agent %s, which has come back with it.%s",
            job.id,
            self._agent_name,
            traced(job.workload),
        )
        job.agent_name, job.fence, job.accepted_at = self._agent_name, fence, self._now
        job.lease_until = job.started_at = job.finished_at = None
        job.outcome = job.exit_code = job.detail = job.log_bytes = None
        job.usage, job.reported = {}, False

    def result(self, frame: Result) -> ServerFrame:
        """Store how the job ended. Always acknowledged, so that the agent can let go of it."""
        answer = ResultAck(job_id=frame.job_id, fence=frame.fence)
        job = self._own(frame.job_id, frame.fence)
        if job is None:
            return answer
        if job.state == JobState.FINISHED:
            if job.log_bytes is not None and frame.log_bytes < job.log_bytes:
                # The agent had to drop some of a log that it had told of before.
                job.log_bytes = max(frame.log_bytes, job.log_next_offset)
            return answer
        cancelled = job.cancel_reason is not None
        event = event_of_result(JobState(job.state), frame.outcome, offers=job.fence, cancelled=cancelled)
        if event is None:
            self._warn(f"reported the result of job {job.id} in state '{job.state}'; ignored")
            return answer
        detail = None if frame.detail is None else clean(frame.detail)
        if event is JobEvent.RETURN:
            name = self._agent_name
            log.warning(
                "Agent %s could not start job %s (%s): %s%s", name, job.id, frame.outcome, detail, traced(job.workload)
            )
        else:
            job.exit_code = frame.exit_code
            job.usage = frame.usage.model_dump(exclude_none=True)
            job.log_bytes = frame.log_bytes
        self.apply(job, event, outcome=frame.outcome, detail=detail)
        if detail is not None and names_limit(detail):
            label = ".".join(part for part in (job.dag_id, job.task_id) if part) or job.id
            note_event(self._session, self._agent_name, Kind.LIMIT, f"{label}: {detail}")
        return answer

    def append_log(self, frame: Log) -> LogAck:
        """Append a piece of log, without what is there already.

        :raises FrameError: when the data cannot be decoded.
        """
        data = unpack_log(frame.data)
        end = frame.offset + len(data)
        job = self._jobs.get(frame.job_id)
        if job is None or job.agent_name != self._agent_name or job.state not in _LOG_STATES:
            self._warn(f"sent log of job {frame.job_id}, which is not its own; dropped")
            return LogAck(job_id=frame.job_id, next_offset=min(end, 2**63 - 1))
        start = job.log_next_offset
        if frame.offset <= start < end:
            self._store_log(job.id, start, data[start - frame.offset :])
            job.log_next_offset = end
        return LogAck(job_id=job.id, next_offset=job.log_next_offset)

    def _store_log(self, job_id: str, start: int, data: bytes) -> None:
        """Store a piece as far as the bound allows. What comes behind it counts as delivered all the same."""
        most = self._log_max_bytes
        kept = data[: max(most - start, 0)] if most else data
        if kept:
            self._session.add(EdgeAgentLog(job_id=job_id, offset=start, data=kept))
        if len(kept) < len(data) and not self._is_marked(job_id, start):
            marker = log_marker(most, self._now, own_line=kept.endswith(b"\n"))
            self._session.add(EdgeAgentLog(job_id=job_id, offset=start + len(kept), data=marker))

    def _is_marked(self, job_id: str, start: int) -> bool:
        if start < self._log_max_bytes:
            return False
        # A piece of this very batch must be there to be found.
        self._session.flush()
        last = self._session.scalar(select(func.max(EdgeAgentLog.offset)).where(EdgeAgentLog.job_id == job_id))
        return last is not None and last >= self._log_max_bytes

    def apply(
        self, job: EdgeAgentJob, event: JobEvent, *, outcome: Outcome | None = None, detail: str | None = None
    ) -> None:
        """Let an event happen to a job.

        :raises IllegalTransition: when the table of job states forbids it; nothing has changed then.
        """
        before = JobState(job.state)
        after = next_job_state(before, event)
        if after is before:
            return
        job.state = after
        if after is JobState.QUEUED:
            self._reset(job)
        elif after is JobState.ACCEPTED:
            job.accepted_at = self._now
            job.lease_until = None
        elif after is JobState.RUNNING:
            job.started_at = self._now
        elif after is JobState.FINISHED:
            job.finished_at = self._now
            job.lease_until = None
            job.outcome = outcome
            job.detail = detail

    def _reset(self, job: EdgeAgentJob) -> None:
        """Make it as it was before it was offered; only the count of offers stays."""
        job.agent_name = None
        job.lease_until = job.offered_at = job.accepted_at = job.started_at = None
        self._forget_log(job)
        self.requeued = True

    def _forget_log(self, job: EdgeAgentJob) -> None:
        if job.log_next_offset:
            # A piece of this very batch must be there to be deleted.
            self._session.flush()
            self._session.execute(delete(EdgeAgentLog).where(EdgeAgentLog.job_id == job.id))
            job.log_next_offset = 0

    def _own(self, job_id: str, fence: int) -> EdgeAgentJob | None:
        job = self._jobs.get(job_id)
        if job is not None and job.agent_name not in {self._agent_name, None}:
            self._warn(f"spoke about job {job_id}, which is not its own; ignored")
        return job if job is not None and job.agent_name == self._agent_name and job.fence == fence else None

    def _drop(self, job_id: str, fence: int, reason: str | None = None) -> Cancel:
        job = self._jobs.get(job_id)
        if reason is None:
            reason = "the server does not know this job" if job is None else "the offer is not valid any more"
        return Cancel(job_id=job_id, fence=fence, reason=reason)

    def _warn(self, what: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            log.warning("Agent %s %s.", self._agent_name, what)
