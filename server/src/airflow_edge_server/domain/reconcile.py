"""What to do with two lists of jobs when an agent says hello: what it holds, and what the server thinks it holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from airflow_edge_agent.protocol.frames import HeldJob
from airflow_edge_agent.protocol.jobs import HELD_STATES, JobEvent, JobState, Outcome
from airflow_edge_server.domain.jobs import MAX_OFFERS, event_of_absence


@dataclass(frozen=True, slots=True)
class ServerJob:
    """A job as the server knows it."""

    id: str
    state: JobState
    fence: int
    agent_name: str | None
    cancel_reason: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What to do about one job."""

    job_id: str
    fence: int
    events: tuple[JobEvent, ...] = ()
    """What happens to the server's row, in this order."""
    outcome: Outcome | None = None
    """With an event that ends the job: how."""
    detail: str | None = None
    acknowledge: bool = False
    """Tell the agent that the job is its own."""
    tell_log_offset: bool = False
    cancel: str | None = None
    """Tell the agent to end or drop it, for this reason."""


def reconcile(agent_name: str, listed: Iterable[HeldJob], known: Iterable[ServerJob], *, rebooted: bool) -> list[Step]:
    """Compare both lists.

    :param known: every job that the server thinks the agent holds, and every listed one that exists.
    :param rebooted: whether the agent's host has booted since its last session.
    """
    held = {job.job_id: job for job in listed}
    jobs = {job.id: job for job in known}
    steps = [_listed(agent_name, entry, jobs.get(entry.job_id)) for entry in held.values()]
    steps.extend(
        _absent(job, rebooted=rebooted)
        for job in jobs.values()
        if job.agent_name == agent_name
        and job.state in HELD_STATES
        and (job.id not in held or held[job.id].fence != job.fence)
    )
    return steps


def _listed(agent_name: str, entry: HeldJob, job: ServerJob | None) -> Step:
    def drop(reason: str) -> Step:
        return Step(entry.job_id, entry.fence, cancel=reason)

    if job is None:
        return drop("the server does not know this job")
    if job.fence != entry.fence:
        return drop("the job has been offered again since")
    if job.agent_name != agent_name:
        return drop("the lease ended before the job was accepted" if job.agent_name is None else "another agent has it")
    if job.state is JobState.FINISHED and entry.phase != "finished":
        return drop(job.detail or "the server has ended this job")
    if job.cancel_reason is not None and entry.phase != "finished":
        return drop(job.cancel_reason)

    # What the agent did while nobody could hear it is caught up with, step by step.
    events: list[JobEvent] = []
    if job.state is JobState.OFFERED:
        events.append(JobEvent.ACCEPT)
    if entry.phase == "running" and job.state is not JobState.RUNNING:
        events.append(JobEvent.START)
    return Step(
        entry.job_id,
        entry.fence,
        events=tuple(events),
        acknowledge=entry.phase != "finished",
        tell_log_offset=True,
    )


def _absent(job: ServerJob, *, rebooted: bool) -> Step:
    event = event_of_absence(job.state, offers=job.fence, cancelled=job.cancel_reason is not None)
    if event is JobEvent.RETURN:
        return Step(job.id, job.fence, events=(event,))
    if job.state is JobState.RUNNING:
        detail = "host rebooted" if rebooted else "agent restarted without it"
        return Step(job.id, job.fence, events=(event,), outcome=Outcome.LOST, detail=detail)
    if job.cancel_reason is not None:
        return Step(job.id, job.fence, events=(event,), outcome=Outcome.REVOKED, detail=job.cancel_reason)
    detail = f"offered {MAX_OFFERS} times and never started"
    return Step(job.id, job.fence, events=(event,), outcome=Outcome.LOST, detail=detail)
