"""Transactions of the agent API: short, retried when the database asks for it, the same on every database.

Where rows can be locked, a transaction locks the agent's row first and rows of jobs after it, so two of them never wait
for each other. SQLite has no row locks: there a writing transaction takes the write lock at its beginning.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from airflow.utils.session import create_session
from airflow.utils.sqlalchemy import with_row_locks
from sqlalchemy import Select
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.orm import Session

Sessions = Callable[[], AbstractContextManager[Session]]
"""Opens a session that commits at its end, and rolls back on an exception."""

T = TypeVar("T")
Q = TypeVar("Q", bound=Select[*tuple[Any, ...]])

_ATTEMPTS = 5
_LONGEST_WAIT_SECONDS = 0.4
# Serialization failure, deadlock and lock time-out of PostgreSQL; lock time-out, deadlock and NOWAIT of MySQL.
_RETRYABLE_CODES = frozenset({"40001", "40P01", "55P03", 1205, 1213, 3572})


def airflow_sessions() -> AbstractContextManager[Session]:
    """Open a session on Airflow's metadata database."""
    session: AbstractContextManager[Session] = create_session(scoped=False)
    return session


def read(sessions: Sessions, work: Callable[[Session], T]) -> T:
    """Run reading work, again when the database asks for it.

    :raises sqlalchemy.exc.DBAPIError: when it fails for good.
    """
    return _run(sessions, work, write=False)


def write(sessions: Sessions, work: Callable[[Session], T]) -> T:
    """Run writing work as one transaction, again when the database asks for it.

    The work must have no effect outside of the database: it may run several times.

    :raises sqlalchemy.exc.DBAPIError: when it fails for good.
    """
    return _run(sessions, work, write=True)


def _run(sessions: Sessions, work: Callable[[Session], T], *, write: bool) -> T:
    attempt = 1
    while True:
        try:
            with sessions() as session:
                if write and session.get_bind().dialect.name == "sqlite":
                    session.connection().exec_driver_sql("BEGIN IMMEDIATE")
                return work(session)
        except DBAPIError as error:
            if attempt >= _ATTEMPTS or not is_passing(error):
                raise
        # Two that collided must not collide again.
        time.sleep(random.uniform(0.1, 1) * min(_LONGEST_WAIT_SECONDS, 0.05 * 2**attempt))  # noqa: S311  no secret
        attempt += 1


def is_passing(error: DBAPIError) -> bool:
    """Tell whether the same transaction may succeed if it is run again."""
    if error.connection_invalidated or isinstance(error, IntegrityError):
        # A unique key that two transactions inserted at once: the second run finds the row of the first.
        return True
    cause: Any = error.orig
    # Some drivers tell the SQL standard's code, some the server's own, some both: psycopg2, psycopg 3, MySQL's.
    codes = {getattr(cause, name, None) for name in ("pgcode", "sqlstate", "errno")}
    codes.update(code for code in getattr(cause, "args", ())[:1] if isinstance(code, int | str))
    if codes & _RETRYABLE_CODES:
        return True
    text = str(cause).lower()
    return isinstance(error, OperationalError) and ("database is locked" in text or "database table is locked" in text)


def locked(query: Q, session: Session, *, skip_locked: bool = False) -> Q:
    """Make a query lock its rows, where the database can."""
    if session.get_bind().dialect.name in {"mysql", "mariadb"}:
        # Airflow's own function locks nothing where rows cannot be locked of one table among several, as in MariaDB.
        return query.with_for_update(skip_locked=skip_locked)
    result: Q = with_row_locks(query, session, skip_locked=skip_locked)
    return result
