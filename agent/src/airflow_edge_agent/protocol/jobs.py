"""The life of a job: one dispatch of one workload to one agent.

A job is not a task instance: Airflow uses a task instance's id again after deferral and reschedule, so each dispatch
has an id of its own. ``fence`` counts the offers of a job; whoever speaks with an older number is not listened to.
"""

from __future__ import annotations

from enum import StrEnum

from airflow_edge_agent.protocol.states import IllegalTransition


class JobState(StrEnum):
    """Where a job is, as the server sees it."""

    QUEUED = "queued"
    """Waits for an agent."""
    OFFERED = "offered"
    """One agent has been asked, and has until the end of the lease to accept."""
    ACCEPTED = "accepted"
    """That agent holds it and is about to start it."""
    RUNNING = "running"
    FINISHED = "finished"
    """Over; its outcome says how."""


class JobEvent(StrEnum):
    """What can happen to a job."""

    OFFER = "offer"
    ACCEPT = "accept"
    REFUSE = "refuse"
    """The agent cannot take it now (full, in maintenance, runtime broken)."""
    LEASE_EXPIRED = "lease expired"
    START = "start"
    FINISH = "finish"
    """The agent reported the result."""
    ADOPT = "adopt"
    """An agent that was taken for gone holds the job all the same, and nobody else has begun with it."""
    RETURN = "return"
    """The agent never started it and does not hold it any more."""
    END = "end"
    """The server ends it: cancelled before it was accepted, or its agent is gone."""


_S = JobState
_E = JobEvent

JOB_TRANSITIONS: dict[tuple[JobState, JobEvent], JobState] = {
    (_S.QUEUED, _E.OFFER): _S.OFFERED,
    (_S.QUEUED, _E.ADOPT): _S.ACCEPTED,
    (_S.QUEUED, _E.END): _S.FINISHED,
    (_S.OFFERED, _E.ACCEPT): _S.ACCEPTED,
    (_S.OFFERED, _E.ADOPT): _S.ACCEPTED,
    (_S.OFFERED, _E.REFUSE): _S.QUEUED,
    (_S.OFFERED, _E.LEASE_EXPIRED): _S.QUEUED,
    (_S.OFFERED, _E.RETURN): _S.QUEUED,
    (_S.OFFERED, _E.END): _S.FINISHED,
    # An acknowledgement may be lost on the way: the same accept again changes nothing.
    (_S.ACCEPTED, _E.ACCEPT): _S.ACCEPTED,
    (_S.ACCEPTED, _E.ADOPT): _S.ACCEPTED,
    (_S.ACCEPTED, _E.START): _S.RUNNING,
    (_S.ACCEPTED, _E.FINISH): _S.FINISHED,
    (_S.ACCEPTED, _E.RETURN): _S.QUEUED,
    (_S.ACCEPTED, _E.END): _S.FINISHED,
    (_S.RUNNING, _E.ACCEPT): _S.RUNNING,
    (_S.RUNNING, _E.START): _S.RUNNING,
    (_S.RUNNING, _E.FINISH): _S.FINISHED,
    # Its process began, but Airflow did not let the workload start: nothing of it has run.
    (_S.RUNNING, _E.RETURN): _S.QUEUED,
    (_S.RUNNING, _E.END): _S.FINISHED,
    # Airflow refused the start, because an agent that was taken for gone had begun before.
    (_S.FINISHED, _E.ADOPT): _S.ACCEPTED,
    (_S.FINISHED, _E.START): _S.FINISHED,
    (_S.FINISHED, _E.FINISH): _S.FINISHED,
}
"""Every legal transition; a pair that is not a key is illegal."""

HELD_STATES = frozenset({_S.OFFERED, _S.ACCEPTED, _S.RUNNING})
"""States in which a job occupies slots of its agent."""


def next_job_state(state: JobState, event: JobEvent) -> JobState:
    """Return the state that follows.

    :raises IllegalTransition: when the table has no such cell.
    """
    try:
        return JOB_TRANSITIONS[state, event]
    except KeyError:
        allowed = [str(e) for (s, e) in JOB_TRANSITIONS if s is state]
        raise IllegalTransition(state, event, allowed) from None


class Outcome(StrEnum):
    """How a job ended."""

    FINISHED = "finished"
    """The workload ran and Airflow knows its state (success, failure, deferral, ... are Airflow's to say)."""
    FAILED = "failed"
    """The workload's process ended with an error or signal of its own."""
    SUPERSEDED = "superseded"
    """Airflow refused the start: the task instance is not waiting for this dispatch any more."""
    UNAUTHORIZED = "unauthorized"
    """Airflow refused the job's token at the start."""
    UNDELIVERED = "undelivered"
    """The workload ended, but its state could not be delivered to Airflow."""
    KILLED = "killed"
    """Ended by the agent: cancelled, or the drain deadline passed."""
    CRASHED = "crashed"
    """The process supervising the workload died."""
    NOT_STARTED = "not started"
    """The agent accepted it but could not start it; nothing of it ran."""
    LOST = "lost"
    """It was running when its runner, its host or its agent went away."""
    REVOKED = "revoked"
    """Airflow took it back before it was accepted."""


RETURNABLE = frozenset({Outcome.NOT_STARTED, Outcome.UNAUTHORIZED})
"""Outcomes after which nothing has run, so the job may be offered again."""
