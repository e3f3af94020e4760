"""What happens in Airflow's own environment: enrolment, tasks, and the real executor. Run as a program.

Takes a command per line on standard input and answers each with a line, both JSON. It stands in for the scheduler,
which does not hand over hundreds of tasks in a second, and for what the tasks themselves would tell the Execution API:
their success is written with one statement for all that have ended.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from airflow import settings
from airflow.executors import workloads
from airflow.executors.executor_loader import ExecutorLoader
from airflow.jobs.job import Job
from airflow.models.dag import DagModel
from airflow.models.dagbag import DBDagBag
from airflow.models.dagbundle import DagBundleModel
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.taskinstance import TaskInstance
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG
from airflow.serialization.definitions.dag import SerializedDAG
from airflow.serialization.serialized_objects import LazyDeserializedDAG
from airflow.utils.session import create_session
from airflow.utils.types import DagRunTriggeredByType, DagRunType
from sqlalchemy import select, text
from sqlalchemy.orm import Session, joinedload

SETTLE_SECONDS = 0.25
PART = 500

_CLONE = """
INSERT INTO task_instance ({columns})
SELECT {values} FROM task_instance ti, generate_series(CAST(:first AS integer), CAST(:last AS integer)) AS number
WHERE ti.dag_id = 'fleet' AND ti.map_index = -1
"""

_QUEUED = "UPDATE task_instance SET queued_dttm = clock_timestamp() WHERE map_index >= :first AND map_index < :end"

# By executor: how many jobs are not over, and which tasks have to be told that theirs is.
_OURS = {
    "open": """SELECT count(*) FROM edge_agent_job
        WHERE state IN ('queued', 'offered', 'accepted', 'running') AND queue = :queue""",
    "over": """SELECT NOT EXISTS (SELECT FROM edge_agent_job
        WHERE state IN ('queued', 'offered', 'accepted', 'running') AND queue = 'default')""",
    "settle": """UPDATE task_instance ti SET state = 'success', end_date = now() FROM edge_agent_job j
        WHERE j.owner = :owner AND NOT j.reported AND j.state = 'finished' AND ti.id = CAST(j.ti_id AS uuid)
        AND ti.state <> 'success'""",
    "latency": """SELECT extract(epoch FROM j.{column} - ti.queued_dttm) FROM edge_agent_job j
        JOIN task_instance ti ON ti.id = CAST(j.ti_id AS uuid)
        WHERE j.{column} IS NOT NULL AND ti.map_index >= :first""",
    "last": "SELECT extract(epoch FROM max(finished_at)) FROM edge_agent_job",
}
_PEER = {
    "open": "SELECT count(*) FROM edge_job WHERE state IN ('queued', 'running') AND queue = :queue",
    "over": """SELECT NOT EXISTS (SELECT FROM edge_job WHERE state IN ('queued', 'running') AND queue = 'default')""",
    "settle": """UPDATE task_instance ti SET state = 'success', end_date = now() FROM edge_job j
        WHERE j.state IN ('success', 'failed') AND ti.dag_id = j.dag_id AND ti.task_id = j.task_id
        AND ti.run_id = j.run_id AND ti.map_index = j.map_index AND ti.state <> 'success'""",
}


_STEP_ASIDE = (
    "UPDATE task_instance SET state = 'success' WHERE dag_id = 'fleet'",
    "UPDATE dag_run SET state = 'success' WHERE dag_id = 'fleet'",
    "UPDATE job SET state = 'success' WHERE job_type = 'SchedulerJob'",
    "UPDATE edge_agent_job SET state = 'finished', outcome = 'finished', reported = true WHERE state <> 'finished'",
)


@contextmanager
def _db() -> Iterator[Session]:
    with create_session(scoped=False) as session:
        yield session


class Inside:
    """The scheduler's side of the fleet."""

    def __init__(self) -> None:
        self._next = 0
        self._sync_seconds: list[float] = []
        with _db() as session:
            job = Job(job_type="SchedulerJob", state="running")
            job.latest_heartbeat = datetime.now(UTC)
            session.add(job)
            session.flush()
            job_id = job.id
        executor = ExecutorLoader.import_default_executor_cls()[0](parallelism=1_000_000)
        executor.job_id = job_id
        executor.start()
        self._executor = executor
        self._sql = _OURS if "airflow_edge_server" in type(executor).__module__ else _PEER
        self._make_dag()

    def enroll(self, keys: dict[str, str]) -> dict[str, Any]:
        """Let agents in, as the enrolment does; return the ids of their credentials."""
        from airflow_edge_server.domain.enrolment import MAX_USES, Machine  # noqa: PLC0415  not beside edge3
        from airflow_edge_server.store.enrolment import create_join_token, find_joining, join  # noqa: PLC0415

        ids = {}
        names = sorted(keys)
        for start in range(0, len(names), PART):
            with _db() as session:
                made = create_join_token(
                    session, name_pattern="fleet-*", queues=["*"], valid_seconds=3_600, uses=min(MAX_USES, PART)
                )
                token = find_joining(session, made.text)
                assert token is not None
                for name in names[start : start + PART]:
                    enrolled = join(
                        session,
                        token,
                        name=name,
                        public_key=keys[name],
                        machine=Machine(None, None, None),
                        credential_days=180,
                    )
                    ids[name] = enrolled.credential_id
        return {"ids": ids}

    def burst(self, count: int, queue: str = "default", *, drain: bool = True, patience: float = 600) -> dict[str, Any]:
        """Queue so many tasks in one transaction; sync until all is over."""
        first = self._add_tasks(count, queue)
        began = time.monotonic()
        session = settings.Session()
        self._hand_over(session, first, count)
        made = time.monotonic() - began
        session.execute(text(_QUEUED), {"first": first, "end": first + count})
        session.commit()
        session.close()
        begin_wall, begin = time.time(), time.monotonic()
        answer: dict[str, Any] = {"first": first, "count": count, "made_seconds": made, "began": begin_wall}
        if drain:
            self._sync_until_over(begin + patience)
            answer["drained_seconds"] = time.monotonic() - begin
            answer["left"] = self._count_open()
        return answer | self._sync_figures()

    def steady(self, per_second: float, seconds: float) -> dict[str, Any]:
        """Queue tasks at a steady pace, each lot in a transaction of its own."""
        total = int(per_second * seconds)
        first = self._add_tasks(total, "default")
        begin = time.monotonic()
        done, synced = 0, begin
        while done < total:
            now = time.monotonic()
            due = min(total, int((now - begin) * per_second) + 1)
            if due > done:
                session = settings.Session()
                session.execute(text(_QUEUED), {"first": first + done, "end": first + due})
                self._hand_over(session, first + done, due - done)
                session.commit()
                session.close()
                done = due
            if now - synced >= 1:
                synced = now
                self._sync()
            time.sleep(min(0.05, 1 / per_second))
        self._sync_until_over(time.monotonic() + 60)
        return {"first": first, "count": total, "left": self._count_open()} | self._sync_figures()

    def sync_cost(self, rounds: int, pause: float) -> dict[str, Any]:
        """Call ``sync`` so many times and return what it took."""
        self._sync_seconds = []
        for _ in range(rounds):
            self._sync()
            time.sleep(pause)
        return {"in_flight": self._count_open("nobody")} | self._sync_figures()

    def latency(self, first: int) -> dict[str, Any]:
        """Return how long tasks waited until the server had offered them, and until it knew that they ran."""
        found = {}
        with _db() as session:
            for column in ("offered_at", "started_at"):
                rows = session.execute(text(self._sql["latency"].format(column=column)), {"first": first})
                found[column] = [float(row[0]) for row in rows]
            found["last"] = [float(session.execute(text(self._sql["last"])).scalar_one() or 0)]
        return found

    def queued(self, first: int) -> dict[str, Any]:
        """Return when tasks were queued (seconds since 1970), by map index."""
        statement = "SELECT map_index, extract(epoch FROM queued_dttm) FROM task_instance WHERE map_index >= :first"
        with _db() as session:
            return {str(row[0]): float(row[1]) for row in session.execute(text(statement), {"first": first})}

    def step_aside(self) -> dict[str, Any]:
        """Leave nothing that a real scheduler would take for its own."""
        with _db() as session:
            for statement in _STEP_ASIDE:
                session.execute(text(statement))
        return {}

    def keep_briefly(self, days: float, purge_seconds: float) -> dict[str, Any]:
        """Have what is over deleted soon, so that tables can be seen not to grow."""
        from airflow_edge_server import housekeeping  # noqa: PLC0415  not beside edge3

        for option in ("JOB_RETENTION", "LOG_RETENTION", "METRIC_RETENTION", "EVENT_RETENTION"):
            os.environ[f"AIRFLOW__EDGE_AGENT__{option}"] = str(days)
        housekeeping.PURGE_SECONDS = purge_seconds
        return {}

    # Behind them

    def _sync_until_over(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            self._sync()
            if self._is_over():
                break
            time.sleep(SETTLE_SECONDS)
        self._sync()

    def _is_over(self) -> bool:
        with _db() as session:
            return bool(session.execute(text(self._sql["over"])).scalar_one())

    def _count_open(self, queue: str = "default") -> int:
        with _db() as session:
            return int(session.execute(text(self._sql["open"]), {"queue": queue}).scalar_one())

    def _sync(self) -> None:
        with _db() as session:
            owner = {"owner": self._executor.owner} if self._sql is _OURS else {}
            session.execute(text(self._sql["settle"]), owner)
        began = time.perf_counter()
        self._executor.sync()
        self._sync_seconds.append(time.perf_counter() - began)

    def _sync_figures(self) -> dict[str, Any]:
        times, self._sync_seconds = sorted(self._sync_seconds), []
        if not times:
            return {}
        failed = sum(1 for state, _ in self._executor.get_event_buffer().values() if str(state) == "failed")
        return {
            "syncs": len(times),
            "sync_median_seconds": statistics.median(times),
            "sync_p95_seconds": times[int(len(times) * 0.95)],
            "sync_max_seconds": times[-1],
            "failed": failed,
        }

    def _make_dag(self) -> None:
        with DAG("fleet", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)) as dag:
            BashOperator(task_id="noop", bash_command="true")
        with _db() as session:
            session.add(DagBundleModel(name="fleet"))
            session.flush()
            lazy = LazyDeserializedDAG.from_dag(dag)
            SerializedDAG.bulk_write_to_db("fleet", None, [lazy], session=session)
            session.flush()
            SerializedDagModel.write_dag(lazy, bundle_name="fleet", session=session)
            session.query(DagModel).update({DagModel.is_paused: False})
            session.flush()
            serialized = DBDagBag().get_latest_version_of_dag("fleet", session=session)
            now = datetime.now(UTC)
            serialized.create_dagrun(
                run_id="run",
                logical_date=now,
                data_interval=(now, now),
                run_after=now,
                run_type=DagRunType.MANUAL,
                triggered_by=DagRunTriggeredByType.TEST,
                state="running",
                start_date=now,
                session=session,
            )

    def _add_tasks(self, count: int, queue: str) -> int:
        """Make task instances of one mapped task; return the first one's index."""
        first, self._next = self._next, self._next + count
        changed = {"id": "gen_random_uuid()", "map_index": "number", "state": "'queued'", "try_number": "1"}
        changed |= {"queue": ":queue", "queued_dttm": "now()"}
        with _db() as session:
            columns = [column.name for column in TaskInstance.__table__.columns]
            statement = _CLONE.format(
                columns=", ".join(f'"{name}"' for name in columns),
                values=", ".join(changed.get(name, f'ti."{name}"') for name in columns),
            )
            session.execute(text(statement), {"first": first, "last": first + count - 1, "queue": queue})
        return first

    def _hand_over(self, session: Session, first: int, count: int) -> None:
        """Do what the scheduler does when it hands tasks to its executor."""
        for start in range(first, first + count, PART):
            end = min(start + PART, first + count)
            query = (
                select(TaskInstance)
                .where(TaskInstance.dag_id == "fleet", TaskInstance.map_index >= start, TaskInstance.map_index < end)
                .options(joinedload(TaskInstance.dag_run), joinedload(TaskInstance.dag_model))
            )
            for ti in session.scalars(query):
                made = workloads.ExecuteTask.make(ti, generator=self._executor.jwt_generator)
                self._executor.queue_workload(made, session=session)
            session.flush()
            session.expunge_all()


def main() -> None:
    """Answer commands until there are no more."""
    # Whatever Airflow prints must not get between the answers, not even where something keeps the old stdout.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    inside = Inside()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(inside, command.pop("do"))(**command)
        except Exception as error:  # noqa: BLE001  told to whoever asked
            import traceback  # noqa: PLC0415

            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
