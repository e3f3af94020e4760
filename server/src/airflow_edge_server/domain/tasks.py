"""What the state of a task instance means to the job that runs it."""

from __future__ import annotations

from dataclasses import dataclass

SETTLED_GRACE_SECONDS = 0.7
"""How long the report of a job may lag behind an end that its task reported itself.

The Task SDK reports a failure or skip after the task's process has ended, so the job's own result follows at once.
"""

OVERTIME_GRACE_SECONDS = 25.0
"""The same for ends that are reported while the process still runs.

Success, retry, deferral and reschedule are. Listeners run after them, for up to ``[core] task_success_overtime``
(20 s), and must not be cut short.
"""


@dataclass(frozen=True, slots=True)
class TaskView:
    """A task instance as Airflow has it while a job for it is under way."""

    state: str | None
    same_id: bool = True
    """Whether it still has the id that the job was made for. Airflow gives a new one to each further try."""
    exists: bool = True


@dataclass(frozen=True, slots=True)
class End:
    """Why a job is not wanted any more."""

    reason: str
    grace_seconds: float


_SETTLED = {
    "failed": "the task was marked failed",
    "skipped": "the task was marked skipped",
    "removed": "the task was removed from its Dag",
    "upstream_failed": "the task was marked as failed upstream",
}
_OVERTIME = {
    "success": "the task was marked success",
    "deferred": "the task is deferred, but its process did not end",
    "up_for_reschedule": "the task is rescheduled, but its process did not end",
    "up_for_retry": "the task is to be retried, but its process did not end",
    "awaiting_input": "the task waits for input, but its process did not end",
}


def why_ended(task: TaskView, *, started: bool) -> End | None:
    """Return why the job of this task is not wanted, and how long to wait for its own report; ``None``: it is.

    :param started: whether the agent has reported that the job runs.
    """
    if not task.exists:
        return End("the task instance was deleted", SETTLED_GRACE_SECONDS)
    if task.state == "restarting":
        # Airflow's word for a task that was cleared while it ran.
        return End("the task was cleared", 0.0)
    if task.same_id:
        if task.state in {"queued", "running"}:
            return None
        if task.state in _SETTLED:
            return End(_SETTLED[task.state], SETTLED_GRACE_SECONDS)
        reason = _OVERTIME.get(task.state or "", "the task waits to be queued again")
        return End(reason, OVERTIME_GRACE_SECONDS)
    if not started:
        # It cannot have ended itself: a new id before the start means that somebody cleared it.
        return End("the task was cleared", SETTLED_GRACE_SECONDS)
    return End("another try of the task has begun", OVERTIME_GRACE_SECONDS)
