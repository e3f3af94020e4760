"""The executor: hands workloads to the agents through our tables, and tells Airflow how they ended."""

from __future__ import annotations

import itertools
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from airflow.executors import workloads
from airflow.executors.base_executor import BaseExecutor
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import object_session

from airflow_edge_agent.protocol.frames import MAX_JOBS
from airflow_edge_agent.protocol.limits import read_executor_config
from airflow_edge_server import compat, config
from airflow_edge_server.cli import get_edge_agents_commands
from airflow_edge_server.housekeeping import Housekeeping
from airflow_edge_server.store import queue
from airflow_edge_server.store.db import schema_problem
from airflow_edge_server.store.logs import find_jobs, job_lines, log_key
from airflow_edge_server.store.models import EdgeAgentJob
from airflow_edge_server.store.traced import traced
from airflow_edge_server.store.transaction import airflow_sessions, read, write
from airflow_edge_server.store.wakeup import Topic, announce
from airflow_edge_server.usage import emit_usage
from airflow_edge_server.verdicts import REPORT_GRACE_SECONDS, Verdict, judge_callback, judge_task, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from airflow.cli.cli_config import GroupCommand
    from airflow.executors.workloads import ExecutorWorkload
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy.orm import Session

_T = TypeVar("_T")

SWEEP_SECONDS = 5.0
"""How often agents and jobs are looked after."""

RECONCILE_SECONDS = 60.0
"""How often orphaned callbacks are looked for."""

PART = 20
"""Ended jobs that are dealt with in one go."""

COLLECT_SECONDS = 0.008
"""After how long a call of ``sync`` leaves further ended jobs to the next one: Airflow does nothing else meanwhile."""

CONFIRMED = 200
"""New jobs that one call of ``sync`` confirms."""


class EdgeExecutor(BaseExecutor):  # type: ignore[misc]  # Airflow is not followed by mypy
    """Runs workloads on edge agents.

    A workload becomes a row, with an id of its own for each dispatch, in the very transaction in which Airflow marks
    its task as queued. The agent API offers it to an agent. ``sync`` reads what has ended.
    """

    supports_callbacks = True
    supports_connection_test = True
    supports_multi_team = True
    is_local = False
    serve_logs = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._owner: str | None = None
        self._keys: dict[str, Hashable] = {}
        """Jobs of ours that have not ended, and what Airflow calls their work."""
        self._current: dict[Hashable, str] = {}
        """The latest job of each piece of work: an older one must not free its slot."""
        self._unconfirmed: set[str] = set()
        """Jobs written in transactions of the scheduler, of which we have not seen whether they were committed."""
        self._waiting: dict[str, tuple[float, int]] = {}
        """Ended jobs whose tasks have not: since when (monotonic seconds), and how often looked at."""
        self._forgotten: dict[str, str] = {}
        """Jobs that Airflow has ended on its side, and why; their agents have to hear of it."""
        self._callbacks: set[str] = set()
        """Callbacks and connection tests of which Airflow has not heard that they run."""
        self._compared: list[str] = []
        """Jobs of ours of which it is still to be looked whether they are in the table."""
        self._collected = ""
        """The ended job behind which the next look begins; empty: at the first."""
        self._next_sweep = 0.0
        self._next_reconcile = 0.0
        self._housekeeping = Housekeeping(self.conf)

    @property
    def owner(self) -> str:
        """Id of this executor instance in the table of jobs."""
        if self._owner is None:
            job_id = self.job_id if self.job_id is not None else "none"
            self._owner = f"{job_id}:{uuid4().hex}"[:64]
        return self._owner

    def start(self) -> None:
        """Check tables and configuration.

        :raises SystemExit: when they do not permit to work, after one line in the log that says what to do.
        """
        try:
            config.load(self.conf)
        except Exception as error:  # noqa: BLE001  Airflow's own getters raise several kinds
            self.log.critical("EdgeExecutor cannot start: %s", error)
            raise SystemExit(1) from None
        if (problem := schema_problem()) is not None:
            self.log.critical("EdgeExecutor cannot start: %s", problem)
            # Anything but an exit would be logged by the scheduler with a traceback.
            raise SystemExit(1)

    # Airflow hands over work.

    def queue_workload(self, workload: ExecutorWorkload, session: Session) -> None:
        """Write a new job in the scheduler's session.

        :raises TypeError: for a kind of workload that agents cannot run.
        """
        key: Hashable
        fault: str | None = None
        if isinstance(workload, workloads.ExecuteTask):
            ti = workload.ti
            key = compat.task_key(self, ti)
            row = self._new_job(
                workload,
                kind="task",
                queue=ti.queue,
                # More slots than any agent can have would wait for ever.
                slots=min(max(int(ti.pool_slots or 1), 1), MAX_JOBS),
                priority_weight=ti.priority_weight,
                ti_id=str(ti.id),
                dag_id=ti.dag_id,
                task_id=ti.task_id,
                run_id=ti.run_id,
                map_index=-1 if ti.map_index is None else ti.map_index,
                try_number=ti.try_number,
            )
            try:
                if (limits := read_executor_config(compat.executor_config(ti))) is not None:
                    row.limits = limits.model_dump(exclude_none=True)
            except ValueError as error:
                fault = str(error)
        elif isinstance(workload, workloads.ExecuteCallback):
            key = compat.callback_key(str(workload.callback.id))
            data = workload.callback.data if isinstance(workload.callback.data, dict) else {}
            row = self._new_job(
                workload,
                kind="callback",
                queue=self.conf.get_mandatory_value("operators", "default_queue"),
                slots=1,
                priority_weight=1,
                ti_id=str(workload.callback.id),
                dag_id=_word(data.get("dag_id")),
                task_id=_word(data.get("path")) or f"callback {workload.callback.id}",
                run_id=_word(data.get("run_id")),
            )
        elif compat.is_connection_test(workload):
            key = workload.key
            row = self._new_job(
                workload,
                kind="connection_test",
                queue=workload.queue or self.conf.get_mandatory_value("operators", "default_queue"),
                slots=1,
                priority_weight=1,
                ti_id=str(workload.connection_test_id),
                task_id=_word(workload.connection_id),
            )
        else:
            raise TypeError(f"EdgeExecutor cannot run a workload of type {type(workload).__name__}")
        if fault is None:
            session.add(row)
            announce(session, Topic.JOBS)
        else:
            # Airflow must not be disturbed here: the next sync tells it that this try is over, and why.
            queue.end_at_once(session, row, fault)
        self._unconfirmed.add(row.id)
        self._hold(row.id, key)
        if row.kind != "task":
            self._callbacks.add(row.id)

    def _new_job(self, workload: Any, **fields: Any) -> EdgeAgentJob:
        path = getattr(workload, "log_path", None)
        return EdgeAgentJob(
            id=str(uuid4()),
            state="queued",
            owner=self.owner,
            team_name=self.team_name,
            workload=workload.model_dump(mode="json", exclude={"token"}),
            log_key=None if path is None else log_key(str(path)),
            queued_at=datetime.now(UTC),
            **fields,
        )

    def _process_workloads(self, workload_items: Sequence[ExecutorWorkload]) -> None:
        """Do nothing: ``queue_workload`` has done it all, and nothing is ever queued in memory."""

    def _hold(self, job_id: str, key: Hashable) -> None:
        self._keys[job_id] = key
        self._current[key] = job_id
        self.running.add(key)

    def _let_go(self, job_id: str) -> Hashable | None:
        """Forget a job, and free its slot unless later work has the same key; return the key."""
        key = self._keys.pop(job_id, None)
        self._unconfirmed.discard(job_id)
        self._waiting.pop(job_id, None)
        self._callbacks.discard(job_id)
        if key is not None and self._current.get(key) == job_id:
            del self._current[key]
            self.running.discard(key)
        return key

    def change_state(self, key: Any, state: Any, info: Any = None, remove_running: bool = True) -> None:  # noqa: FBT001, FBT002  Airflow's signature
        """Note an event; when it is Airflow's own and ends our work, have the agent end its job too."""
        job_id = self._current.get(key)
        super().change_state(key, state, info, remove_running)
        if remove_running and job_id is not None:
            self._forgotten[job_id] = "Airflow has ended the task"
            self._let_go(job_id)

    def fail_connection_test(self, key: Any) -> None:
        """Drop a connection test that Airflow has given up, and have its job ended."""
        job_id = self._current.get(key)
        super().fail_connection_test(key)
        if job_id is not None:
            self._forgotten[job_id] = "Airflow has given the connection test up: it took too long"
            self._let_go(job_id)

    # Airflow asks how the work goes.

    def sync(self) -> None:
        """Tell Airflow what has ended, and look after agents and jobs from time to time.

        What the database refuses now is done at the next call: all of it is still in the tables.
        """
        with suppress(_Passing):
            self._try(self._confirm)
            self._try(self._send_cancels)
            self._try(self._collect)
            self._try(self._report_running_callbacks)
            now = time.monotonic()
            if now >= self._next_sweep:
                self._next_sweep = now + SWEEP_SECONDS
                self._try(self._sweep)

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except DBAPIError as error:
            self.log.warning(
                "The metadata database refused %s (%s), trying again",
                work.__name__.strip("_").replace("_", " "),
                type(error.orig or error).__name__,
            )
            raise _Passing from None

    def _confirm(self) -> None:
        """Drop jobs whose transaction was rolled back: by the time of a sync, each has been decided."""
        if not self._unconfirmed:
            return
        # So many at a time that a sync stays short, whatever was queued at once.
        asked = sorted(itertools.islice(self._unconfirmed, CONFIRMED))
        there = read(airflow_sessions, lambda session: queue.owned_among(session, self.owner, asked))
        self._unconfirmed.difference_update(asked)
        for job_id in asked:
            if job_id not in there:
                self._let_go(job_id)

    def _send_cancels(self) -> None:
        if not self._forgotten:
            return
        forgotten = dict(self._forgotten)

        def cancel(session: Session) -> None:
            for job_id, why in forgotten.items():
                queue.revoke(session, job_id, why)

        write(airflow_sessions, cancel)
        for job_id in forgotten:
            self._forgotten.pop(job_id, None)

    def _collect(self) -> None:
        """Deal with what has ended, in parts, for about so long that Airflow need not wait for it.

        The next call goes on behind what was looked at last, so that jobs whose tasks have not ended keep nobody back.
        """
        began = time.monotonic()
        while self._collect_part() and time.monotonic() - began < COLLECT_SECONDS:
            pass

    def _collect_part(self) -> bool:
        """Deal with the next part of what has ended; return whether there may be more."""
        ended, states, newest, cleared = read(airflow_sessions, self._read_ended)
        more = len(ended) == PART
        self._collected = ended[-1].id if more else ""
        done: list[tuple[queue.EndedJob, Verdict]] = []
        for job in ended:
            if job.kind != "task":
                verdict = judge_callback(job.outcome, job.exit_code)
            else:
                task = states.get(job.ti_id) or cleared.get(job.id)
                verdict = judge_task(
                    job.outcome,
                    ti_state=task.state if task else None,
                    same_try=task is not None and task.try_number == job.try_number,
                    newest=newest.get(job.ti_id) == job.id,
                    waited=self._has_waited(job.id),
                )
            if verdict is not Verdict.WAIT:
                done.append((job, verdict))
        if done:
            write(airflow_sessions, lambda session: queue.mark_reported(session, [job.id for job, _ in done]))
            self._tell_spans([job.id for job, _ in done])
        for job, verdict in done:
            emit_usage(compat.stats(), job)
            self._close(job, verdict)
        return more

    def _read_ended(
        self, session: Session
    ) -> tuple[list[queue.EndedJob], dict[str, queue.TaskState], dict[str, str], dict[str, queue.TaskState]]:
        """Return what has ended with the states of its tasks, their newest jobs, and what was cleared meanwhile."""
        ended = queue.ended_jobs(session, self.owner, after=self._collected, limit=PART)
        ti_ids = {job.ti_id for job in ended if job.kind == "task"}
        if not ti_ids:
            return ended, {}, {}, {}
        states, newest = queue.task_states(session, ti_ids), queue.newest_jobs(session, ti_ids)
        orphans = [job for job in ended if job.kind == "task" and job.ti_id not in states]
        return ended, states, newest, queue.cleared_tasks(session, orphans) if orphans else {}

    def _tell_spans(self, job_ids: list[str]) -> None:
        if not compat.tracing_on():
            return
        from airflow_edge_server.tracing import emit_spans  # noqa: PLC0415  only where Airflow traces

        emit_spans(read(airflow_sessions, lambda session: queue.traced_jobs(session, job_ids)))

    def _has_waited(self, job_id: str) -> bool:
        now = time.monotonic()
        since, looks = self._waiting.get(job_id, (now, 0))
        self._waiting[job_id] = (since, looks + 1)
        return looks >= 2 and now - since >= REPORT_GRACE_SECONDS  # noqa: PLR2004  two more syncs

    def _close(self, job: queue.EndedJob, verdict: Verdict) -> None:
        key: Any = self._let_go(job.id)
        if key is None or verdict is Verdict.RELEASE:
            return
        if verdict is Verdict.SUCCEED:
            self.success(key)
            return
        why = reason(job.agent_name, job.outcome, job.exit_code, job.detail)
        self.log.warning("Job %s of %s failed: %s%s", job.id, key, why, traced(job.workload))
        self.fail(key, why)

    def _report_running_callbacks(self) -> None:
        if not self._callbacks:
            return
        asked = sorted(self._callbacks)
        for job_id in read(airflow_sessions, lambda session: queue.running_among(session, asked)):
            self._callbacks.discard(job_id)
            self.running_state(self._keys[job_id])

    # What nobody asks for, but somebody must do.

    def _sweep(self) -> None:
        self._housekeeping.sweep()
        self._compare()
        now = time.monotonic()
        if now >= self._next_reconcile:
            self._next_reconcile = now + RECONCILE_SECONDS
            self._reconcile()

    def _compare(self) -> None:
        """Drop from memory what is not in the table any more.

        A part at a time, so that it takes no longer however much there is.
        """
        if not self._compared:
            self._compared = [*self._keys, *(self._waiting.keys() - self._keys.keys())]
        asked, self._compared = self._compared[:CONFIRMED], self._compared[CONFIRMED:]
        if not asked:
            return
        there = read(airflow_sessions, lambda session: queue.owned_among(session, self.owner, asked))
        for job_id in set(asked) - there:
            self._let_go(job_id)

    def _reconcile(self) -> None:
        """Take over callbacks of dead schedulers."""
        silent = float(self.conf.getint("scheduler", "scheduler_health_check_threshold"))

        def take_over(session: Session) -> dict[str, str]:
            dead = queue.dead_owners(session, self.owner, silent_seconds=silent)
            return queue.adopt_callbacks(session, self.owner, dead)

        for job_id, callback_id in write(airflow_sessions, take_over).items():
            self._hold(job_id, compat.callback_key(callback_id))
            self._callbacks.add(job_id)

    # Airflow hands over or takes back what is under way.

    def try_adopt_task_instances(self, tis: Sequence[TaskInstance]) -> Sequence[TaskInstance]:
        """Take over the tasks of a scheduler that is gone; return those of which we have no job.

        Done in the scheduler's own session, so that both tables change together; on SQLite another connection would
        wait for the scheduler's, for ever.
        """
        if not tis:
            return []
        ids = {ti: str(ti.id) for ti in tis}
        adopted = self._in_session_of(tis[0], lambda session: queue.adopt(session, sorted(ids.values()), self.owner))
        rejected = []
        for ti, ti_id in ids.items():
            if ti_id not in adopted:
                rejected.append(ti)
                continue
            job_id, try_number = adopted[ti_id]
            self._unconfirmed.add(job_id)
            self._hold(job_id, compat.task_key(self, ti, try_number=try_number))
        return rejected

    def revoke_task(self, *, ti: TaskInstance) -> None:
        """Take a task back that has been queued for too long."""
        job_id = self._current.get(compat.task_key(self, ti))
        if job_id is None:
            return
        why = "Airflow has taken the task back: it was queued for too long"
        try:
            self._in_session_of(ti, lambda session: queue.revoke(session, job_id, why))
        except DBAPIError as error:
            # Airflow must not be disturbed here. If the job is started after all, Airflow refuses the start.
            self.log.warning("Job %s could not be revoked now: %s", job_id, type(error).__name__)
            self._forgotten[job_id] = why
        self._let_go(job_id)

    def _in_session_of(self, ti: TaskInstance, work: Callable[[Session], _T]) -> _T:
        session = object_session(ti)
        if session is not None:
            return work(session)
        return write(airflow_sessions, work)

    def end(self) -> None:
        """Stop without touching any job: agents go on, and the next scheduler adopts."""
        with suppress(_Passing):
            self._try(self._send_cancels)

    def terminate(self) -> None:
        """Stop at once, likewise without touching any job."""

    def get_task_log(self, ti: TaskInstance, try_number: int) -> tuple[list[str], list[str]]:
        """Return a note on where the log of a running task comes from; Airflow then calls at no other place.

        The log itself comes through Airflow's remote log reader; only where ours could not be installed it is returned
        here.
        """
        jobs = read(airflow_sessions, lambda session: find_jobs(session, ti_id=str(ti.id)))
        if not jobs or try_number != ti.try_number:
            return [], []
        sources = [f"Edge agent {job.agent_name or '(none yet)'}, job {job.id}" for job in jobs]
        if compat.log_reader_installed():
            return sources, []
        return sources, ["".join(f"{line}\n" for line in job_lines(job)) for job in jobs]

    @staticmethod
    def get_cli_commands() -> list[GroupCommand]:
        """Return ``airflow edge-agents``."""
        return get_edge_agents_commands()


class _Passing(Exception):
    """The database refused something that will be tried again."""


def _word(value: object) -> str | None:
    return str(value)[:250] if value else None
