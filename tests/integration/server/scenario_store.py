"""Tables, agents, logs and purge."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

from airflow import settings
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, insert, inspect, select

from airflow_edge_agent.protocol.states import AgentState
from airflow_edge_server import compat
from airflow_edge_server.log_io import EdgeLogIO
from airflow_edge_server.store import agents, logs, purge
from airflow_edge_server.store.db import EdgeAgentDBManager, schema_problem
from airflow_edge_server.store.models import EdgeAgentJob, EdgeAgentLog, metadata
from integration.server import scenes

TABLES = {
    "edge_agent",
    "edge_agent_join_token",
    "edge_agent_credential",
    "edge_agent_job",
    "edge_agent_log",
    "edge_agent_metric",
    "edge_agent_event",
}


def migrations_make_what_the_models_say() -> None:
    with scenes.db() as session:
        EdgeAgentDBManager(session).resetdb(skip_init=True)
    assert not TABLES & set(inspect(settings.engine).get_table_names())
    assert "are missing in the metadata database: run `airflow db migrate`" in str(schema_problem())
    with scenes.db() as session:
        EdgeAgentDBManager(session).initdb(use_migration_files=True)
    with settings.engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "include_object": lambda _o, name, kind, *_: kind != "table" or name in metadata.tables,
            },
        )
        assert compare_metadata(context, metadata) == []
        made = {
            table: sorted(index["name"] for index in inspect(connection).get_indexes(table)) for table in sorted(TABLES)
        }
    # Each in a session of its own: a revision that has been read stays locked, and dropping would wait for ever.
    assert schema_problem() is None
    with scenes.db() as session:
        EdgeAgentDBManager(session).resetdb()
    with settings.engine.connect() as connection:
        from_models = {
            table: sorted(index["name"] for index in inspect(connection).get_indexes(table)) for table in sorted(TABLES)
        }
    assert made == from_models


def the_first_tables_are_upgraded_with_what_is_in_them() -> None:
    with scenes.db() as session:
        EdgeAgentDBManager(session).resetdb(skip_init=True)
    with scenes.db() as session:
        EdgeAgentDBManager(session).upgradedb(to_revision="3f1c9a6d0b52", use_migration_files=True)
    problem = schema_problem()
    assert problem is not None
    assert "outdated" in problem
    now = datetime.now(UTC)
    values = {"ti_id": "t", "workload": {}, "owner": "o", "queue": "q", "queued_at": now}
    with scenes.db() as session:
        # Not through the model: it knows columns that these tables do not have yet.
        session.execute(insert(metadata.tables["edge_agent_job"]).values(id="j", kind="task", **values))
    with scenes.db() as session:
        EdgeAgentDBManager(session).upgradedb()
    assert schema_problem() is None
    with scenes.db() as session:
        session.add(EdgeAgentJob(id="k", kind="connection_test", **values))
    assert {(job.kind, job.limits) for job in scenes.jobs()} == {("task", None), ("connection_test", None)}


def an_unknown_revision_is_named() -> None:
    version = EdgeAgentDBManager.version_table_name
    with scenes.db() as session:
        head = EdgeAgentDBManager(session).get_script_object().get_current_head()
    with settings.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {version} SET version_num = 'fffffffffff1'")
    try:
        problem = schema_problem()
        assert problem is not None
        assert "fffffffffff1" in problem
        assert "\n" not in problem
    finally:
        with settings.engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE {version} SET version_num = '{head}'")
    assert schema_problem() is None


def maintenance_changes_at_once_only_what_is_not_connected() -> None:
    scenes.agent("here", state="running")
    scenes.agent("away", state="offline")
    for name, on, state in (
        ("here", True, AgentState.RUNNING),
        ("away", True, AgentState.OFFLINE_MAINTENANCE),
        ("away", False, AgentState.OFFLINE),
        ("away", False, AgentState.OFFLINE),
    ):
        with scenes.db() as session:
            agents.set_maintenance(session, name, on=on, comment="why" if on else None, by="me")
        row = scenes.agent_row(name)
        assert (row.state, row.maintenance_wanted) == (state, on)
    row = scenes.agent_row("here")
    assert (row.maintenance_comment, row.maintenance_by) == ("why", "me")
    assert row.maintenance_since is not None
    with scenes.db() as session:
        assert agents.set_maintenance(session, "nobody", on=True, comment=None, by=None) is None


def _logged(pieces: list[bytes], *, dispatches: int = 1, state: str = "running") -> tuple[list[str], str]:
    edge = scenes.executor()
    (ti_id,) = scenes.dag_run()
    path = ""
    ids = []
    for number in range(dispatches):
        scenes.queue(edge, [ti_id])
        job = scenes.job_of(ti_id)
        path = job.workload["log_path"]
        scenes.set_job(job.id, queued_at=datetime.now(UTC) + timedelta(seconds=number))
        scenes.start(job.id)
        if state == "finished":
            scenes.finish(job.id)
        ids.append(job.id)
    for job_id in ids:
        scenes.write_log(job_id, pieces)
    return ids, path


def _read(path: str, state: str, inner: object = None) -> tuple[list[str], list[str]]:
    sources, streams = EdgeLogIO(inner).stream(path, SimpleNamespace(state=state))
    return sources, [line for stream in streams for line in stream]


def logs_are_exact_across_pieces() -> None:
    text = "".join(f"line {number} \u00e4\u20ac\U0001f6a2\n" for number in range(5_000)).encode()
    # Cut in the middle of lines and of characters.
    ids, path = _logged([text[start : start + 1_013] for start in range(0, len(text), 1_013)], state="finished")
    _, lines = _read(path, "success")
    assert "".join(f"{line}\n" for line in lines).encode() == text
    assert b"".join(logs.read_bytes(ids[0])) == text


def a_growing_line_is_held_back() -> None:
    ids, path = _logged([b"whole\n", b"half of a l"])
    assert _read(path, "running")[1] == ["whole"]
    with scenes.db() as session:
        session.add(EdgeAgentLog(job_id=ids[0], offset=17, data=b"ine\nand the e"))
    scenes.set_job(ids[0], log_next_offset=30)
    assert _read(path, "running")[1] == ["whole", "half of a line"]
    scenes.finish(ids[0])
    scenes.set_job(ids[0], log_bytes=40)
    # Finished, but the rest of the log is on its way.
    assert _read(path, "success")[1] == ["whole", "half of a line"]
    scenes.set_job(ids[0], log_bytes=30)
    assert _read(path, "success")[1] == ["whole", "half of a line", "and the e"]


def dispatches_of_one_try_follow_each_other() -> None:
    ids, path = _logged([b"one\n"], dispatches=2, state="finished")
    scenes.set_job(ids[0], queued_at=datetime.now(UTC) + timedelta(hours=1))
    with scenes.db() as session:
        session.add(EdgeAgentLog(job_id=ids[0], offset=4, data=b"last\n"))
    assert _read(path, "success")[1] == ["one", "one", "last"]


def a_finished_task_without_log_says_so() -> None:
    ids, path = _logged([])
    assert _read(path, "running")[1] == []
    scenes.finish(ids[0], "lost", exit_code=None, detail="host rebooted")
    sources, lines = _read(path, "failed")
    assert sources == lines == ["No log has been delivered by agent a1; its job ended as: lost (host rebooted)"]


def other_logs_come_from_the_configured_reader() -> None:
    inner = SimpleNamespace(
        read=lambda path, _ti: (["from afar"], [f"text of {path}\nsecond"]), processors=("p",), upload=lambda *_: None
    )
    assert _read("no/such/path", "success", inner) == (["from afar"], ["text of no/such/path", "second"])
    assert _read("no/such/path", "success") == ([], [])
    assert EdgeLogIO(inner).processors == ("p",)
    _, path = _logged([b"ours\n"], state="finished")
    assert _read(path, "running", inner)[1] == ["ours"]
    assert _read(path, "success", inner)[1] == ["ours", f"text of {path}", "second"]

    def broken(*_: object) -> None:
        raise OSError("no")

    assert _read(path, "success", SimpleNamespace(read=broken))[1] == ["ours"]


def the_reader_takes_over_in_this_process() -> None:
    from airflow.logging_config import get_remote_task_log  # noqa: PLC0415

    edge = scenes.executor()
    (ti_id,) = scenes.dag_run()
    scenes.queue(edge, [ti_id])
    scenes.write_log(scenes.job_of(ti_id).id, [b"hello\n"])
    with scenes.db() as session:
        row = scenes.ti(session, ti_id)
        sources, texts = edge.get_task_log(row, 1)
        assert (len(sources), texts) == (1, ["hello\n"])
        assert compat.install_log_reader()
        assert compat.install_log_reader()
        assert isinstance(get_remote_task_log(), EdgeLogIO)
        assert not isinstance(get_remote_task_log().inner, EdgeLogIO)
        sources, texts = edge.get_task_log(row, 1)
        assert (len(sources), texts) == (1, [])


def airflow_shows_the_log_once() -> None:
    from airflow.models.taskinstance import TaskInstance  # noqa: PLC0415
    from airflow.utils.log import file_task_handler  # noqa: PLC0415

    assert compat.install_log_reader()
    edge = scenes.executor()
    (ti_id,) = scenes.dag_run()
    scenes.queue(edge, [ti_id])
    scenes.set_ti(ti_id, state="running", hostname="edge-host.invalid")
    job = scenes.job_of(ti_id)
    scenes.start(job.id)
    text = "".join(f'{{"timestamp":"2026-01-01T00:00:{n:02}Z","event":"line {n}"}}\n' for n in range(60)).encode()
    scenes.write_log(job.id, [text[:100], text[100:]])

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the agent's host must not be asked for the log")

    original = file_task_handler._fetch_logs_from_service
    file_task_handler._fetch_logs_from_service = never
    try:
        handler = file_task_handler.FileTaskHandler(base_log_folder="/nonexistent")
        for state in ("running", "success"):
            scenes.set_ti(ti_id, state=state)
            if state == "success":
                scenes.finish(job.id)
            with scenes.db() as session:
                row = session.scalars(select(TaskInstance).where(TaskInstance.id == scenes._uuid(ti_id))).one()
                stream, seen = handler.read(row, 1)
                messages = [message.event for message in stream]
            assert [m for m in messages if m.startswith("line")] == [f"line {n}" for n in range(60)], state
            assert seen["end_of_log"] is (state == "success")
    finally:
        file_task_handler._fetch_logs_from_service = original


def minted_tokens_start_only_their_task() -> None:
    import jwt  # noqa: PLC0415

    claims = jwt.decode(compat.mint_token("0190-ti"), options={"verify_signature": False})
    assert (claims["sub"], claims["scope"]) == ("0190-ti", "workload")
    assert claims["exp"] - claims["iat"] == 600


def purge_keeps_what_is_young() -> None:
    def add(number: int, days: float, *, log: bool, state: str = "finished") -> None:
        job_id = f"00000000-0000-0000-0000-{number:012}"
        with scenes.db() as session:
            session.add(
                EdgeAgentJob(
                    id=job_id,
                    kind="task",
                    state=state,
                    owner="x",
                    queue="default",
                    ti_id=job_id,
                    workload={},
                    queued_at=datetime.now(UTC) - timedelta(days=days),
                    finished_at=datetime.now(UTC) - timedelta(days=days) if state == "finished" else None,
                )
            )
        if log:
            scenes.write_log(job_id, [b"x" * 100, b"y" * 100])

    add(1, 1, log=True)
    add(2, 10, log=True)
    add(3, 10, log=False)
    add(4, 40, log=True)
    add(5, 40, log=True, state="running")
    for number in range(100, 100 + 2 * purge.BATCH_JOBS):
        add(number, 8, log=False)
    rounds = 0
    more = True
    while more:
        with scenes.db() as session:
            done = purge.purge_batch(session, job_days=7, log_days=30)
        assert done.jobs <= purge.BATCH_JOBS
        more = done.more
        rounds += 1
    assert rounds == 3
    assert [int(job.id[-3:]) for job in sorted(scenes.jobs(), key=lambda job: job.id)] == [1, 2, 5]
    with scenes.db() as session:
        assert session.scalar(select(func.count()).select_from(EdgeAgentLog)) == 6
