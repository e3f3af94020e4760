"""Transactions: retried when that may help, given up when not, and serial on SQLite."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import psycopg2
import psycopg2.errors
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from airflow_edge_server.store.models import EdgeAgent
from airflow_edge_server.store.transaction import is_passing, write
from integration.server_api.kit import Database


class DeadlockError(psycopg2.OperationalError):
    pgcode = "40P01"


class DriverError(Exception):
    """What MySQL's own driver raises: it tells both codes."""

    def __init__(self, sqlstate: str, errno: int) -> None:
        self.sqlstate, self.errno = sqlstate, errno
        super().__init__(errno, "it did not work", sqlstate)


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (OperationalError("", {}, sqlite3.OperationalError("database is locked")), True),
        (OperationalError("", {}, sqlite3.OperationalError("no such table: x")), False),
        (OperationalError("", {}, DeadlockError()), True),
        (OperationalError("", {}, Exception(1213, "Deadlock found")), True),
        (OperationalError("", {}, DriverError("40001", 1213)), True),
        (OperationalError("", {}, DriverError("HY000", 1205)), True),
        (OperationalError("", {}, DriverError("28000", 1045)), False),
        (OperationalError("", {}, Exception(1045, "Access denied")), False),
        (IntegrityError("", {}, Exception("duplicate key")), True),
        (ProgrammingError("", {}, Exception("syntax")), False),
        (OperationalError("", {}, Exception("gone"), connection_invalidated=True), True),
    ],
)
def test_which_errors_pass(error: DBAPIError, passing: bool) -> None:  # noqa: FBT001  a parameter
    assert is_passing(error) is passing


def test_a_passing_error_is_tried_again(database: Database) -> None:
    runs = 0

    def work(session: Session) -> str:
        nonlocal runs
        runs += 1
        session.add(EdgeAgent(name=f"agent-{runs}"))
        session.flush()
        if runs < 3:
            raise OperationalError("", {}, sqlite3.OperationalError("database is locked"))
        return "done"

    assert write(database.open, work) == "done"
    with database.sessions() as session:
        assert [agent.name for agent in session.query(EdgeAgent)] == ["agent-3"]


def test_another_error_is_raised_at_once_and_nothing_stays(database: Database) -> None:
    runs = 0

    def work(session: Session) -> None:
        nonlocal runs
        runs += 1
        session.add(EdgeAgent(name="agent"))
        session.flush()
        session.execute(text("SELECT no_such_column FROM edge_agent"))

    with pytest.raises(DBAPIError):
        write(database.open, work)
    assert runs == 1
    with database.sessions() as session:
        assert session.query(EdgeAgent).count() == 0


def test_an_error_that_does_not_pass_ends_the_trying(database: Database) -> None:
    runs = 0

    def work(session: Session) -> None:
        nonlocal runs
        runs += 1
        raise OperationalError("", {}, sqlite3.OperationalError("database is locked"))

    with pytest.raises(OperationalError):
        write(database.open, work)
    assert runs == 5


def test_writers_on_sqlite_follow_each_other(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/metadata.db")
    with database.sessions() as session:
        session.add(EdgeAgent(name="agent"))

    def count_up() -> None:
        for _ in range(20):
            write(database.open, add_one)

    def add_one(session: Session) -> None:
        agent = session.get(EdgeAgent, "agent")
        assert agent is not None
        agent.slots_used += 1

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert database.agent("agent").slots_used == 80
    database.dispose()
