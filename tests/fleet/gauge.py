"""What is measured from outside: CPU and memory of processes, statements of the database, slopes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg2.extensions

_BY_COST = """
SELECT calls, total_exec_time, rows, regexp_replace(left(query, 400), '\\s+', ' ', 'g')
FROM pg_stat_statements WHERE query NOT LIKE '%%pg_stat%%' ORDER BY total_exec_time DESC LIMIT %s
"""


class Tree:
    """A process with everything below it."""

    def __init__(self, root: psutil.Process) -> None:
        self._root = root

    def _all(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """CPU time that it has used, of ended children as well."""
        total = 0.0
        for process in self._all():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
            if process == self._root:
                total += times.children_user + times.children_system
        return total

    def pss_bytes(self) -> int:
        """Memory, what is shared divided among those who share it."""
        total = 0
        for process in self._all():
            try:
                total += process.memory_full_info().pss
            except psutil.NoSuchProcess:
                continue
        return total

    def descriptors(self) -> int:
        """Open file descriptors."""
        return sum(process.num_fds() for process in self._all())


class Database:
    """What PostgreSQL itself counts."""

    def __init__(self, connection: psycopg2.extensions.connection) -> None:
        self._connection = connection
        self._connection.autocommit = True

    def prepare(self) -> None:
        """Begin to count statements."""
        self._query("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def counters(self) -> tuple[int, int]:
        """Return statements and transactions so far."""
        ((statements,),) = self._query("SELECT coalesce(sum(calls), 0) FROM pg_stat_statements")
        ((transactions,),) = self._query(
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        )
        return int(statements), int(transactions)

    def connections(self) -> int:
        """Return how many clients are connected."""
        ((count,),) = self._query("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
        return int(count)

    def forget(self) -> None:
        """Count statements anew."""
        self._query("SELECT pg_stat_statements_reset()")

    def costly(self, most: int = 20) -> list[dict[str, Any]]:
        """Return the statements that took most time."""
        return [
            {"calls": calls, "total_ms": round(total, 1), "rows": rows, "query": query}
            for calls, total, rows, query in self._query(_BY_COST, (most,))
        ]

    def explain(self, statement: str) -> list[str]:
        """Return how a statement is carried out."""
        return [str(row[0]) for row in self._query(f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) {statement}")]

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement."""
        return self._query(statement)

    def _query(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return list(cursor.fetchall()) if cursor.description else []


@dataclass
class Span:
    """What was used between two moments."""

    seconds: float
    api_cpu: float
    database_cpu: float
    statements: int
    transactions: int


class Meter:
    """Measures what is used from its making on."""

    def __init__(self, api_server: Tree, postgresql: Tree, database: Database) -> None:
        self._parts = (api_server, postgresql, database)
        self._before = self._read()

    def _read(self) -> tuple[float, float, float, int, int]:
        api, postgresql, database = self._parts
        return (time.monotonic(), api.cpu_seconds(), postgresql.cpu_seconds(), *database.counters())

    def span(self) -> Span:
        """Return what was used since."""
        now, was = self._read(), self._before
        return Span(now[0] - was[0], now[1] - was[1], now[2] - was[2], now[3] - was[3], now[4] - was[4])


def slope_per_hour(points: Sequence[tuple[float, float]]) -> float:
    """Return by how much a value grows in an hour, by least squares.

    :param points: seconds and value.
    """
    count = len(points)
    if count < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    square = sum((x - mean_x) ** 2 for x, _ in points)
    return 3_600 * sum((x - mean_x) * (y - mean_y) for x, y in points) / square if square else 0.0


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which this share of all lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")
