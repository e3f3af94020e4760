"""Logs handed over to remote logging, with a folder that stands for an object store."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow import logging_config
from airflow.models.taskinstance import TaskInstance
from airflow.utils.log.file_task_handler import FileTaskHandler
from sqlalchemy import select, update

from airflow_edge_server.handover import LogHandOver
from airflow_edge_server.log_io import EdgeLogIO
from airflow_edge_server.store import handover, purge
from airflow_edge_server.store.models import EdgeAgentJob, EdgeAgentLog
from airflow_edge_server.store.transaction import airflow_sessions
from harness.folder_log import FolderLogIO
from integration.server import scenes

TEXT = "".join(f'{{"timestamp":"2026-01-01T00:00:{n:02}Z","event":"line {n}"}}\n' for n in range(60)).encode()


class Store(FolderLogIO):
    """A folder that may fail, and counts what it is given."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "never", f"file://{folder}/remote")
        self.uploads: list[str] = []
        self.faults: list[Exception] = []

    def upload(self, path: Any, ti: Any = None) -> None:
        if self.faults:
            raise self.faults.pop()
        self.uploads.append(str(path))
        super().upload(path, ti)


@contextmanager
def _store() -> Iterator[tuple[Store, LogHandOver]]:
    before = logging_config.get_remote_task_log(), logging_config.get_default_remote_conn_id()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        logging_config._ActiveLoggingConfig.set(EdgeLogIO(store), None)
        try:
            yield store, LogHandOver(airflow_sessions, lambda: store)
        finally:
            logging_config._ActiveLoggingConfig.set(*before)


def _finished(*pieces: bytes, dispatches: int = 1, ti_state: str = "success") -> tuple[str, list[str], str]:
    """Make a task whose jobs have ended, with that log each; return it, the jobs and the log's path."""
    edge = scenes.executor()
    (ti_id,) = scenes.dag_run()
    for _ in range(dispatches):
        scenes.queue(edge, [ti_id])
    found = scenes.jobs(ti_id=ti_id)
    for job in found:
        scenes.start(job.id)
        scenes.write_log(job.id, pieces)
        scenes.set_job(job.id, log_bytes=sum(map(len, pieces)))
        scenes.finish(job.id)
    scenes.set_ti(ti_id, state=ti_state)
    return ti_id, [job.id for job in found], found[0].workload["log_path"]


def _all(hand_over: LogHandOver) -> None:
    for _ in range(50):
        if not hand_over.once():
            return
    raise AssertionError("it does not come to an end")


def _due_now() -> None:
    with scenes.db() as session:
        session.execute(update(EdgeAgentJob).values(hand_over_at=datetime.now(UTC) - timedelta(seconds=1)))


def _shown(ti_id: str) -> list[str]:
    """Read the log as Airflow's API does."""
    handler = FileTaskHandler(base_log_folder="/nonexistent")
    with scenes.db() as session:
        row = session.scalars(select(TaskInstance).where(TaskInstance.id == scenes._uuid(ti_id))).one()
        stream, _ = handler.read(row, 1)
        return [message.event for message in stream if message.event.startswith("line")]


LINES = [f"line {n}" for n in range(60)]


def a_complete_log_is_handed_over_and_read_from_there() -> None:
    with _store() as (store, hand_over):
        ti_id, (job_id,), path = _finished(TEXT[:100], TEXT[100:])
        assert _shown(ti_id) == LINES
        _all(hand_over)
        _all(hand_over)
        assert store.uploads == [path]
        assert Path(store.root, path).read_bytes() == TEXT
        assert scenes.jobs(id=job_id)[0].hand_over == "done"
        assert _shown(ti_id) == LINES, "once, not twice"
        with scenes.db() as session:
            assert purge.purge_batch(session, job_days=7, log_days=30, handed_over_days=1).logs == 0
            assert purge.purge_batch(session, job_days=7, log_days=30, handed_over_days=0).logs == 1
        with scenes.db() as session:
            assert session.scalars(select(EdgeAgentLog.job_id)).all() == []
        assert _shown(ti_id) == LINES, "without our tables"


def a_log_that_is_gone_there_is_read_here() -> None:
    with _store() as (store, hand_over):
        ti_id, _, path = _finished(TEXT)
        _all(hand_over)
        Path(store.root, path).unlink()
        assert _shown(ti_id) == LINES


def a_log_is_handed_over_whole_and_not_before_its_try_has_ended() -> None:
    with _store() as (store, hand_over):
        ti_id, jobs, path = _finished(b"one\n", dispatches=2, ti_state="deferred")
        _all(hand_over)
        assert store.uploads == []
        scenes.set_ti(ti_id, state="success")
        scenes.set_job(jobs[1], state="running", finished_at=None)
        _due_now()
        _all(hand_over)
        assert store.uploads == []
        scenes.finish(jobs[1])
        scenes.set_job(jobs[1], log_bytes=8)
        _due_now()
        _all(hand_over)
        assert store.uploads == [], "the rest of the log is on its way"
        scenes.set_job(jobs[1], log_bytes=4)
        _due_now()
        _all(hand_over)
        assert store.uploads == [path]
        assert Path(store.root, path).read_bytes() == b"one\none\n"
        assert {job.hand_over for job in scenes.jobs()} == {"done"}


def what_never_comes_is_not_waited_for() -> None:
    with _store() as (store, hand_over):
        _, (job_id,), path = _finished(b"begun\n")
        scenes.set_job(job_id, log_bytes=None)
        _all(hand_over)
        assert store.uploads == []
        scenes.set_job(job_id, finished_at=datetime.now(UTC) - handover.LATE)
        _due_now()
        _all(hand_over)
        assert store.uploads == [path]


def a_store_that_is_away_is_asked_again_later_and_not_for_ever() -> None:
    with _store() as (store, hand_over):
        ti_id, (job_id,), path = _finished(TEXT)
        store.faults = [OSError("no such bucket")] * 2
        _all(hand_over)
        (job,) = scenes.jobs(id=job_id)
        assert (job.hand_over, job.hand_over_tries) == (None, 1)
        assert job.hand_over_at is not None
        assert job.hand_over_at > datetime.now(UTC) + timedelta(seconds=20)
        assert _shown(ti_id) == LINES
        _due_now()
        _all(hand_over)
        _due_now()
        _all(hand_over)
        assert store.uploads == [path]
        assert scenes.jobs(id=job_id)[0].hand_over == "done"
        _, (job_id,), _ = _finished(TEXT)
        scenes.set_job(job_id, hand_over_tries=handover.MOST_TRIES - 1)
        store.faults = [OSError("no")]
        _all(hand_over)
        assert scenes.jobs(id=job_id)[0].hand_over == "failed"


def a_log_that_arrived_before_its_server_died_is_not_sent_twice() -> None:
    with _store() as (store, hand_over):
        _, (job_id,), path = _finished(TEXT)
        _all(hand_over)
        scenes.set_job(job_id, hand_over=None, hand_over_tries=1)
        _due_now()
        _all(hand_over)
        assert store.uploads == [path]
        assert scenes.jobs(id=job_id)[0].hand_over == "done"


def one_process_works_on_a_log() -> None:
    _finished(TEXT, dispatches=2)
    now = datetime.now(UTC)
    with scenes.db() as session:
        assert isinstance(handover.claim(session, now), handover.DueLog)
    with scenes.db() as session:
        assert not handover.waits(session, now)
        assert handover.waits(session, now + handover.CLAIM), "whoever died over it is succeeded"


def a_handler_that_takes_no_whole_logs_is_no_place_for_them() -> None:
    class Streams:
        """As handlers that only take lines while a task writes them."""

        def upload(self, path: Any, ti: Any = None) -> None:
            raise AssertionError

        def read(self, path: str, ti: Any) -> tuple[list[str], None]:
            return [], None

    _, (job_id,), _ = _finished(TEXT)
    _all(LogHandOver(airflow_sessions, Streams))
    assert (scenes.jobs(id=job_id)[0].hand_over, scenes.jobs(id=job_id)[0].hand_over_tries) == (None, 1)


def jobs_without_log_are_looked_at_once() -> None:
    with _store() as (store, hand_over):
        _, (job_id,), _ = _finished()
        _all(hand_over)
        assert scenes.jobs(id=job_id)[0].hand_over == "none"
        assert store.uploads == []
