"""The server's side of the simulation: PostgreSQL, an api-server, and a process inside of Airflow."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil
import psycopg2

from fleet.gauge import Database, Tree
from harness.postgres import Postgres
from harness.processes import Keeper, ProcessError, die_with_parent
from harness.site import AirflowSite

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

TESTS = Path(__file__).resolve().parents[1]
_SETTINGS = (
    "shared_preload_libraries=pg_stat_statements",
    "pg_stat_statements.track=top",
    # As for a database of some size: what is measured is not how small the defaults are.
    "shared_buffers=512MB",
    "max_wal_size=4GB",
)


class Backend:
    """Everything that is no agent.

    :param root: a folder of its own; made here.
    :param environment: the virtual environment with Airflow and the executor.
    :param settings: further environment variables of Airflow.
    """

    def __init__(
        self,
        root: Path,
        *,
        environment: Path,
        executor: str,
        settings: dict[str, str],
        components: Sequence[str] = ("api-server",),
        bundles: dict[str, Path] | None = None,
        progress: Callable[[str], None],
    ) -> None:
        self._stack = ExitStack()
        self._components = components
        self._environment = environment
        self._root = root
        keeper = self._stack.enter_context(Keeper())
        self.postgres = self._stack.enter_context(Postgres(settings=_SETTINGS))
        url = self.postgres.create_database()
        self.database = Database(psycopg2.connect(url.replace("+psycopg2", "")))
        self.site = self._stack.enter_context(
            AirflowSite(
                root,
                keeper=keeper,
                environment=environment,
                executor=executor,
                bundles=bundles or {},
                settings=settings,
                database_url=url,
                progress=progress,
            )
        )
        self._inside: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._inside is not None:
            self._inside.terminate()
            self._inside.communicate()  # closes the pipes as well
        self.database.close()
        self._stack.close()

    def start(self) -> None:
        """Start Airflow, and the process inside of it."""
        self.site.start(self._components)
        self.database.prepare()
        log = self.site.logs / "inside.log"
        with log.open("wb") as output:
            self._inside = subprocess.Popen(
                [self._environment / "bin" / "python", "-m", "fleet.inside"],
                env=self.site.keeper.environment(self.site.env()) | {"PYTHONPATH": str(TESTS)},
                cwd=self._root,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                preexec_fn=lambda: die_with_parent(signal.SIGKILL),  # noqa: PLW1509  one system call
            )
        self._answer()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Have the process inside of Airflow do something, and wait for its answer.

        :raises ProcessError: it failed.
        """
        assert self._inside is not None
        assert self._inside.stdin is not None
        self._inside.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._inside.stdin.flush()
        return self._answer()

    async def tell(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Do the same while the simulation goes on."""
        return await asyncio.to_thread(self.ask, do, **arguments)

    def _answer(self) -> dict[str, Any]:
        assert self._inside is not None
        assert self._inside.stdout is not None
        line = self._inside.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "it ended"}
        if "error" in answer:
            raise ProcessError(f"inside of Airflow: {answer['error']}; log: {self.site.logs / 'inside.log'}")
        return answer

    @property
    def api_server(self) -> Tree:
        """The api-server's processes."""
        return Tree(psutil.Process(self.site.components["api-server"].pid))

    @property
    def postgresql(self) -> Tree:
        """The database's processes."""
        return Tree(psutil.Process(self.postgres.pid))

    def log_faults(self) -> list[str]:
        """Return what the api-server has logged as error."""
        text = (self.site.logs / "api-server.log").read_text(errors="replace")
        return [line[:300] for line in text.splitlines() if "[error" in line or "Traceback" in line]
