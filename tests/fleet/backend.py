"""The server's side of the simulation: PostgreSQL, an api-server, and a process inside of Airflow."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx
import psutil
import psycopg2

from fleet.gauge import Database, Tree
from harness.ports import reserve_port
from harness.postgres import Postgres
from harness.processes import Keeper, Managed, ProcessError, die_with_parent
from harness.site import START_SECONDS, AirflowSite
from harness.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

TESTS = Path(__file__).resolve().parents[1]
SCHEDULING = ("scheduler", "dag-processor")
OWN = "edge-agents api-server"
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
    :param own: whether agents have a server of their own, ``airflow edge-agents api-server``, and not Airflow's.
    """

    def __init__(
        self,
        root: Path,
        *,
        environment: Path,
        executor: str,
        settings: dict[str, str],
        own: bool = False,
        bundles: dict[str, Path] | None = None,
        progress: Callable[[str], None],
    ) -> None:
        self._stack = ExitStack()
        self._own = own
        self._server: Managed | None = None
        self._port = 0
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
        if self._server is not None:
            self._server.signal(signal.SIGTERM)
        if self._inside is not None:
            self._inside.terminate()
            self._inside.communicate()  # closes the pipes as well
        self.database.close()
        self._stack.close()

    def start(self) -> None:
        """Start the api-server, and the process inside of Airflow."""
        self.site.start(() if self._own else ("api-server",))
        if self._own:
            self._port = reserve_port()
            self._serve()
            self.wait_server()
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

    def start_scheduler(self) -> None:
        """Start a real scheduler and what reads its Dags; the process inside of Airflow leaves its tasks alone."""
        self.ask("step_aside")
        self.site.add(SCHEDULING)

    def stop_scheduler(self) -> None:
        """End them."""
        for name in SCHEDULING:
            self.site.stop_component(name)

    @property
    def scheduler(self) -> Tree:
        """The scheduler's processes."""
        return Tree(psutil.Process(self.site.components["scheduler"].pid))

    @property
    def url(self) -> str:
        """Base URL for agents."""
        return f"http://127.0.0.1:{self._port}" if self._own else self.site.url

    def stop_server(self) -> None:
        """End what serves agents."""
        self._serving.stop()

    def start_server(self) -> None:
        """Start what serves agents again, without waiting for it to be ready."""
        if self._own:
            self._serve()
        else:
            self.site.start_component("api-server")

    def wait_server(self) -> None:
        """Wait until what serves agents answers.

        :raises ProcessError: it has ended.
        """
        server = self._serving
        healthy = self._healthy if self._own else self.site.api.healthy
        wait_until(
            lambda: not server.running or healthy(),
            seconds=START_SECONDS,
            what=f"{server.name} to answer",
            seen=lambda: server.tail(3),
        )
        if not server.running:
            raise ProcessError(f"{server.name} ended while it was starting, log: {server.log}")

    def _serve(self) -> None:
        self._server = self.site.keeper.spawn(
            OWN,
            [self._environment / "bin" / "airflow", "edge-agents", "api-server", "--port", str(self._port)],
            env=self.site.env(),
            cwd=self._root,
            log=self.site.logs / "edge-agents.log",
        )

    def _healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=2).is_success
        except httpx.TransportError:
            return False

    @property
    def _serving(self) -> Managed:
        if not self._own:
            return self.site.components["api-server"]
        assert self._server is not None
        return self._server

    @property
    def api_server(self) -> Tree:
        """The processes that serve agents."""
        return Tree(psutil.Process(self._serving.pid))

    @property
    def postgresql(self) -> Tree:
        """The database's processes."""
        return Tree(psutil.Process(self.postgres.pid))

    def log_faults(self) -> list[str]:
        """Return what serves agents has logged as error."""
        text = self._serving.log.read_text(errors="replace")
        return [line[:300] for line in text.splitlines() if "[error" in line or "Traceback" in line]
