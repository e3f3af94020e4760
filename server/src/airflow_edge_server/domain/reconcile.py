"""What to do with two lists of jobs when an agent says hello: what it holds, and what the server thinks it holds.

A job that an agent has accepted goes back to its queue soon after the agent is lost, if nothing says that it has begun.
The agent may begin all the same, and somebody else with it: Airflow lets one of the two start. So an agent that comes
back with such a job keeps it, unless another has begun in its place; and while that is not certain, it waits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from airflow_edge_agent.protocol.frames import HeldJob
from airflow_edge_agent.protocol.jobs import HELD_STATES, RETURNABLE, JobEvent, JobState, Outcome
from airflow_edge_server.domain.jobs import MAX_OFFERS, event_of_absence

SETTLE_SECONDS = 10.0
"""How long after another agent took a job it is uncertain whether Airflow lets it begin."""

REVOKED = "the agent was revoked: it gets no jobs any more"

_NOT_BEGUN = RETURNABLE | {Outcome.SUPERSEDED}


@dataclass(frozen=True, slots=True)
class ServerJob:
    """A job as the server knows it."""

    id: str
    state: JobState
    fence: int
    agent_name: str | None
    cancel_reason: str | None = None
    detail: str | None = None
    outcome: Outcome | None = None
    is_task: bool = True
    """Airflow starts a task once, whoever asks. Nothing guards anything else."""
    held_seconds: float = 0.0
    """Since its holder accepted it, or began with it."""


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
    held_fence: int | None = None
    """With an acknowledgement: the older fence that the agent knows."""
    tell_log_offset: bool = False
    cancel: str | None = None
    """Tell the agent to end or drop it, for this reason."""
    wait: str | None = None
    """Nothing can be said to the agent before somebody else's part in the job is settled; who that is."""


class Claim(Enum):
    """What is right about a job that an agent holds, and the server has given up or given away."""

    KEEP = "keep"
    """It is the agent's, and the server has only missed that."""
    ADOPT = "adopt"
    """It becomes the agent's again."""
    WAIT = "wait"
    DROP = "drop"


def judge_claim(agent_name: str, entry: HeldJob, job: ServerJob) -> Claim:
    """Decide about a job that is not, or not in this way, the agent's own in the server's eyes."""
    if entry.outcome in _NOT_BEGUN or entry.fence > job.fence or job.cancel_reason is not None:
        return Claim.DROP
    if entry.fence == job.fence and job.agent_name not in {None, agent_name}:
        # That offer was never this agent's.
        return Claim.DROP
    begun = entry.phase != "accepted"
    if job.state in {JobState.QUEUED, JobState.OFFERED}:
        return Claim.ADOPT
    if job.state is JobState.FINISHED:
        refused = job.outcome is Outcome.SUPERSEDED and job.fence > entry.fence
        return Claim.ADOPT if refused and begun and job.is_task else Claim.DROP
    if job.agent_name == agent_name:
        return Claim.KEEP
    if not begun or not job.is_task:
        return Claim.DROP
    if job.held_seconds < SETTLE_SECONDS:
        return Claim.WAIT
    return Claim.ADOPT if job.state is JobState.ACCEPTED and entry.phase == "running" else Claim.DROP


def reconcile(
    agent_name: str,
    listed: Iterable[HeldJob],
    known: Iterable[ServerJob],
    *,
    rebooted: bool,
    revoked: bool = False,
) -> list[Step]:
    """Compare both lists.

    :param known: every job that the server thinks the agent holds, and every listed one that exists.
    :param rebooted: whether the agent's host has booted since its last session.
    :param revoked: whether it may only finish what it holds: nothing becomes its own by what it says.
    """
    held = {job.job_id: job for job in listed}
    jobs = {job.id: job for job in known}
    steps = [_listed(agent_name, entry, jobs.get(entry.job_id)) for entry in held.values()]
    if revoked:
        steps = [Step(step.job_id, held[step.job_id].fence, cancel=REVOKED) if _takes(step) else step for step in steps]
    kept = {step.job_id for step in steps if step.cancel is None}
    steps.extend(
        _absent(job, rebooted=rebooted)
        for job in jobs.values()
        if job.agent_name == agent_name
        and job.state in HELD_STATES
        and job.id not in kept
        and (job.id not in held or held[job.id].fence != job.fence)
    )
    return steps


def _takes(step: Step) -> bool:
    """Tell whether a job becomes the agent's by this, or would if it waited."""
    return step.wait is not None or not {JobEvent.ACCEPT, JobEvent.ADOPT}.isdisjoint(step.events)


def _listed(agent_name: str, entry: HeldJob, job: ServerJob | None) -> Step:
    def drop(reason: str) -> Step:
        return Step(entry.job_id, entry.fence, cancel=reason)

    if job is None:
        return drop("the server does not know this job")
    if job.fence != entry.fence or job.agent_name != agent_name:
        return _claimed(agent_name, entry, job)
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


def _claimed(agent_name: str, entry: HeldJob, job: ServerJob) -> Step:
    match judge_claim(agent_name, entry, job):
        case Claim.WAIT:
            return Step(entry.job_id, entry.fence, wait=job.agent_name)
        case Claim.DROP:
            return Step(entry.job_id, entry.fence, cancel=_why_dropped(agent_name, entry, job))
        case claim:
            started = entry.phase == "running" and (claim is Claim.ADOPT or job.state is not JobState.RUNNING)
            adopted = (JobEvent.ADOPT,) if claim is Claim.ADOPT else ()
            return Step(
                entry.job_id,
                job.fence + (claim is Claim.ADOPT),
                events=adopted + ((JobEvent.START,) if started else ()),
                acknowledge=True,
                held_fence=entry.fence,
                tell_log_offset=True,
            )


def _why_dropped(agent_name: str, entry: HeldJob, job: ServerJob) -> str:
    if job.cancel_reason is not None:
        return job.cancel_reason
    if job.fence != entry.fence:
        return "the job has been offered again since"
    return "the server has ended this job" if job.agent_name in {None, agent_name} else "another agent has it"


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
