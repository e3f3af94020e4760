"""What the end of a job means to Airflow. Pure decisions, no database.

Airflow takes *any* event about a task that it still believes to be waiting or running for a failure of it. And it uses
a task instance again, under the same id and key, after a deferral or reschedule. So an event is sent only when the job
is the newest of its task instance, and only when the task's own state says that nobody told Airflow how it ended.
"""

from __future__ import annotations

from enum import Enum

from airflow_edge_agent.protocol.jobs import Outcome

REPORT_GRACE_SECONDS = 5.0
"""How long the state of a task may lag behind the report of its job."""

_PENDING = frozenset({"queued", "running", "restarting"})
_RESTARTING = "restarting"
_RUNNING = "running"


class Verdict(Enum):
    """What to do about a job that has ended."""

    WAIT = "wait"
    """Nothing yet: look again."""
    RELEASE = "release"
    """Free its slot; Airflow knows all."""
    SUCCEED = "succeed"
    FAIL = "fail"


def judge_task(outcome: str | None, *, ti_state: str | None, same_try: bool, newest: bool, waited: bool) -> Verdict:
    """Decide about the job of a task.

    :param ti_state: state of the task instance now; ``None``: none, or it is gone.
    :param same_try: whether the task instance is still at the try of this job.
    :param newest: whether no later job of this task instance exists.
    :param waited: whether the grace for the task's state is over.
    """
    if not newest or not same_try or ti_state not in _PENDING:
        return Verdict.RELEASE
    if ti_state == _RESTARTING:
        # Somebody cleared the task while it ran, and waits for its end: this is how Airflow starts it anew.
        return Verdict.SUCCEED
    if outcome in {Outcome.FINISHED, Outcome.SUPERSEDED} and not waited:
        return Verdict.WAIT
    if outcome == Outcome.SUPERSEDED and ti_state == _RUNNING:
        # Another process has this try. Airflow watches that one's heartbeats.
        return Verdict.RELEASE
    return Verdict.FAIL


def judge_callback(outcome: str | None, exit_code: int | None) -> Verdict:
    """Decide about the job of a callback, of which nobody else tells Airflow anything."""
    return Verdict.SUCCEED if outcome == Outcome.FINISHED and not exit_code else Verdict.FAIL


def reason(agent_name: str | None, outcome: str | None, exit_code: int | None, detail: str | None) -> str:
    """Say in one line why the work of a job is considered failed."""
    text = f"edge agent {agent_name}: " if agent_name else "edge agent: "
    if outcome == Outcome.FINISHED and not exit_code:
        text += "ended without delivering its state"
    else:
        text += str(outcome or "ended")
        if exit_code is not None:
            text += f" with exit code {exit_code}"
    if detail:
        text += f": {detail}"
    return text
