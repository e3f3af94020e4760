"""What all runs of the suite share: one real Airflow, its database, and the agents' credentials."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import sqlalchemy

from harness.postgres import Postgres
from harness.processes import Keeper
from harness.rest import RestError
from harness.site import AirflowSite

DAGS = Path(__file__).parent / "dags"
ENVIRONMENT = Path(sys.prefix)
DAG_ID = "work"
_LOOK_SECONDS = 0.5


class World:
    """One Airflow for all scenarios.

    :param database: ``postgresql`` or ``sqlite``.
    :param scale: all deadlines are multiplied by this; for machines that are slow or busy.
    :param dags: folder of the Dags, and in ``dag_ids`` which of them to wait for.
    :param settings: further environment variables of Airflow.
    """

    def __init__(
        self,
        root: Path,
        *,
        database: str = "postgresql",
        scale: float = 1.0,
        dags: Path = DAGS,
        dag_ids: Sequence[str] = (DAG_ID,),
        settings: Mapping[str, str] | None = None,
        execution_api: str = "relay",
    ) -> None:
        self.root = root
        self.execution_api = execution_api
        """How the agents' tasks reach Airflow."""
        self.database = database
        self.scale = scale
        self.postgres: Postgres | None = None
        self.revived: list[str] = []
        """Components of Airflow that ended by themselves and were started again, as a service manager would."""
        self.dags = dags
        self._dag_ids = dag_ids
        self._settings = dict(settings or {})
        self._stack = ExitStack()
        self._retired: set[str] = set()
        self._busy = threading.Lock()
        self._leaving = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="fault-suite-watcher", daemon=True)

    def __enter__(self) -> Self:
        try:
            if self.database == "postgresql":
                self.postgres = self._stack.enter_context(Postgres(durable=True))
            self.keeper = self._stack.enter_context(Keeper())
            self.site = self._stack.enter_context(
                AirflowSite(
                    self.root / "site",
                    keeper=self.keeper,
                    environment=ENVIRONMENT,
                    bundles={"faults": self.dags},
                    database_url=self.postgres.create_database() if self.postgres else None,
                    settings={
                        # A killed scheduler's work is taken over within a scenario, not within minutes.
                        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
                        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
                        "AIRFLOW__SCHEDULER__JOB_HEARTBEAT_SEC": "2",
                    }
                    | self._settings,
                )
            )
            self.site.start()
            self.engine = sqlalchemy.create_engine(
                self.site.env()["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"], pool_pre_ping=True
            )
            self._stack.callback(self.engine.dispose)
            for dag_id in self._dag_ids:
                self.site.api.wait_for_dag(dag_id, seconds=90 * self.scale)
        except BaseException:
            self._stack.close()
            raise
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving.set()
        self._watcher.join()
        self._stack.close()

    # Agents

    def name(self, number: int) -> str:
        """Return the name of the n-th agent; one that a failed scenario left in an unknown state is not used again."""
        generation = 0
        while (name := f"edge-{number}" + (f"-{generation}" if generation else "")) in self._retired:
            generation += 1
        return name

    def retire(self, name: str) -> None:
        """Use that name no more."""
        self._retired.add(name)

    # Components

    @contextmanager
    def in_hand(self) -> Iterator[None]:
        """Keep the watcher from starting again what a fault has stopped on purpose."""
        with self._busy:
            yield

    def _watch(self) -> None:
        while not self._leaving.wait(_LOOK_SECONDS):
            with self._busy:
                failed = self.site.failed_component()
                if failed is not None and not self._leaving.is_set():
                    self.revived.append(failed.name)
                    self.site.start_component(failed.name)

    # The database

    def rows(self, statement: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Run a query, again while the database is away."""
        deadline = time.monotonic() + 30 * self.scale
        while True:
            try:
                with self.engine.connect() as connection:
                    return [tuple(row) for row in connection.execute(sqlalchemy.text(statement), parameters or {})]
            except sqlalchemy.exc.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    # The REST API

    def trigger(self, folder: Path) -> str:
        """Start a run of the Dag whose bodies write to that folder; return its id."""
        return self.site.api.trigger_dag(DAG_ID, conf={"dir": str(folder)})

    def run_ended(self, run_id: str) -> bool:
        """Whether that run is over, as far as can be asked now."""
        try:
            return self.site.api.run_state(DAG_ID, run_id) in {"success", "failed"}
        except (httpx.TransportError, RestError):
            return False
