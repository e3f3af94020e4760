"""What happens to a job when its agent reports a result, or comes back without it."""

from __future__ import annotations

from airflow_edge_agent.protocol.jobs import JOB_TRANSITIONS, RETURNABLE, JobEvent, JobState, Outcome

MAX_OFFERS = 5
"""How often a job that never ran may be offered before it ends instead."""


def is_legal(state: JobState, event: JobEvent) -> bool:
    """Tell whether the table of job states has that cell."""
    return (state, event) in JOB_TRANSITIONS


def event_of_result(state: JobState, outcome: Outcome, *, offers: int, cancelled: bool) -> JobEvent | None:
    """Return what a reported result does to its job; ``None``: nothing, the report makes no sense in that state.

    A job of which nothing ran goes back to its queue, unless it is cancelled or has been offered too often.
    """
    if outcome in RETURNABLE and not cancelled and offers < MAX_OFFERS and is_legal(state, JobEvent.RETURN):
        return JobEvent.RETURN
    if is_legal(state, JobEvent.FINISH):
        return JobEvent.FINISH
    if state is JobState.OFFERED and (cancelled or outcome in RETURNABLE):
        return JobEvent.END
    return None


def event_of_absence(state: JobState, *, offers: int, cancelled: bool) -> JobEvent:
    """Return what happens to a job that its agent does not hold any more.

    :raises ValueError: when the state is not one in which an agent holds a job.
    """
    if state is JobState.RUNNING:
        return JobEvent.END
    if state not in {JobState.OFFERED, JobState.ACCEPTED}:
        raise ValueError(f"a job in state '{state}' is held by no agent")
    if cancelled or (state is JobState.ACCEPTED and offers >= MAX_OFFERS):
        return JobEvent.END
    return JobEvent.RETURN
