"""A real Airflow: api-server, scheduler, dag-processor and, if wanted, triggerer, as real processes."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import secrets
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from harness.ports import reserve_port
from harness.processes import Keeper, Managed, ProcessError, tail
from harness.rest import AirflowApi
from harness.waiting import wait_until

if TYPE_CHECKING:
    from types import TracebackType

EDGE_EXECUTOR = "airflow_edge_server.executor.EdgeExecutor"
COMPONENTS = ("api-server", "scheduler", "dag-processor")
START_SECONDS = 120.0
"""How long the api-server may take to answer: a cold start on a slow machine without bytecode takes most of it."""
USER = "admin"


class SiteError(RuntimeError):
    """Airflow could not be set up. The message says which part, and ``log`` is where it tells why."""

    def __init__(self, message: str, log: Path) -> None:
        self.log = log
        super().__init__(message)


class AirflowSite:
    """One Airflow with a folder of its own.

    :param root: is created; holds Airflow's home, the database if it is SQLite, and all logs.
    :param environment: the virtual environment with Airflow in it.
    :param bundles: Dag bundles, name to folder.
    :param database_url: SQLAlchemy URL; ``None`` for SQLite below ``root``.
    :param settings: further environment variables, which win over those made here.
    :param progress: is told, in a few words, what happens while it starts.
    """

    def __init__(
        self,
        root: Path,
        *,
        keeper: Keeper,
        environment: Path,
        bundles: Mapping[str, Path],
        database_url: str | None = None,
        executor: str = EDGE_EXECUTOR,
        settings: Mapping[str, str] | None = None,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.root = root
        self.keeper = keeper
        self.home = root / "airflow"
        self.logs = root / "logs"
        self.password = secrets.token_urlsafe(12)
        self.port = 0
        self.components: dict[str, Managed] = {}
        self._environment = environment
        self._database_url = database_url or f"sqlite:///{self.home / 'airflow.db'}"
        self._bundles = dict(bundles)
        self._executor = executor
        self._settings = dict(settings or {})
        self._progress = progress
        self._api: AirflowApi | None = None
        self._secrets = {
            # Airflow derives tokens and cookies from these; all components have to share them.
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(32),
            "AIRFLOW__API__SECRET_KEY": secrets.token_urlsafe(32),
            "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(os.urandom(32)).decode(),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Base URL of the api-server."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def api(self) -> AirflowApi:
        """The REST API; only after :meth:`start`."""
        assert self._api is not None, "the site has not been started"
        return self._api

    # Configuration

    def env(self) -> dict[str, str]:
        """Return what configures this Airflow."""
        bundles = [
            {
                "name": name,
                "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
                "kwargs": {"path": str(path)},
            }
            for name, path in self._bundles.items()
        ]
        variables = {
            "AIRFLOW_HOME": str(self.home),
            # Airflow starts parts of itself by name.
            "PATH": f"{self._environment / 'bin'}:{os.environ.get('PATH', os.defpath)}",
            "PYTHONUNBUFFERED": "1",
            "NO_COLOR": "1",
            "AIRFLOW__CORE__EXECUTOR": self._executor,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.home / "passwords.json"),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self._database_url,
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(self.home / "logs"),
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "AIRFLOW__EDGE_AGENT__API_ENABLED": "True",
        }
        if not self._database_url.startswith("sqlite"):
            # Airflow would want an asynchronous driver as well, and nothing that runs here uses it.
            variables["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC"] = ""
        return variables | self._secrets | self._settings

    def cli(self, *arguments: str, seconds: float = 120) -> str:
        """Run an ``airflow`` command and return what it printed.

        :raises SiteError: when it fails.
        """
        log = self.logs / "cli.log"
        try:
            done = subprocess.run(
                [self._environment / "bin" / "airflow", *arguments],
                env=self.keeper.environment(self.env()),
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SiteError(f"'airflow {arguments[0]}' did not end within {seconds:g} s", log) from None
        with log.open("a") as file:
            # Standard output is left out: it may be a credential.
            file.write(f"$ airflow {' '.join(arguments)}\n{done.stderr}exit code {done.returncode}\n")
        if done.returncode != 0:
            raise SiteError(f"'airflow {' '.join(arguments)}' failed with exit code {done.returncode}", log)
        return done.stdout

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement in Airflow's database. Needs SQLAlchemy where this runs."""
        import sqlalchemy  # noqa: PLC0415 - the demo runs in an environment without it

        engine = sqlalchemy.create_engine(self._database_url)
        try:
            with engine.connect() as connection:
                return [tuple(row) for row in connection.execute(sqlalchemy.text(statement))]
        finally:
            engine.dispose()

    def create_join_token(self, name: str, *options: str, queues: str = "*") -> str:
        """Create a join token for an agent with the server's own command line, and return it.

        :param options: further ones of the command.
        :raises SiteError: when the command fails or prints no token.
        """
        output = self.cli("edge-agents", "enroll", "--name", name, "--queues", queues, *options)
        found = re.search(r"\beaj_[0-9a-f]{16}_[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])", output)
        if found is None:
            raise SiteError("'airflow edge-agents enroll' printed no join token", self.logs / "cli.log")
        return found.group()

    # Life cycle

    def start(self, components: Sequence[str] = COMPONENTS) -> None:
        """Make the database, start the components and wait until the API answers.

        :raises SiteError: naming the component that did not start.
        """
        self._prepare()
        self._progress("creating Airflow's database")
        self._migrate()
        self.add(components)

    def add(self, components: Sequence[str]) -> None:
        """Start further components of an Airflow whose database is there, and wait until the API answers.

        :raises SiteError: naming the component that did not start.
        """
        if components:
            self._progress(f"starting {', '.join(components)}")
        others = [name for name in components if name != "api-server"]
        if "api-server" in components:
            self._start_api_server(others)
        else:
            for name in others:
                self.start_component(name)

    def _prepare(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(parents=True, exist_ok=True)
        passwords = self.home / "passwords.json"
        passwords.touch(mode=0o600)
        passwords.write_text(json.dumps({USER: self.password}) + "\n")
        self.port = reserve_port()

    def _migrate(self) -> None:
        log = self.logs / "db-migrate.log"
        command = self.keeper.spawn(
            "airflow db migrate",
            [self._environment / "bin" / "airflow", "db", "migrate"],
            env=self.env(),
            cwd=self.root,
            log=log,
        )
        if command.wait(240) != 0:
            raise SiteError(f"'airflow db migrate' failed with exit code {command.exit_code}", log)

    def _start_api_server(self, others: Sequence[str]) -> None:
        for attempt in range(5):
            server = self.start_component("api-server")
            if attempt == 0:
                # They find the api-server when they need it, so they may as well start at the same time.
                for name in others:
                    self.start_component(name)
            self._api = AirflowApi(self.url, user=USER, password=self.password)
            self._wait_answer(server)
            if server.running:
                return
            self._api.close()
            if "address already in use" not in server.tail(40).lower():
                break
            self.port = reserve_port()
            for name in others:
                # The port is part of their configuration.
                self.restart_component(name)
        raise SiteError("the api-server ended while it was starting", self.logs / "api-server.log")

    def _wait_answer(self, server: Managed) -> None:
        wait_until(
            lambda: not server.running or self.api.healthy(),
            seconds=START_SECONDS,
            what="the api-server to answer",
            seen=lambda: server.tail(3),
        )

    def start_component(self, name: str) -> Managed:
        """Start one component, without waiting for it to be ready."""
        flags = ["--skip-serve-logs"] if name in {"scheduler", "triggerer"} else []
        managed = self.keeper.spawn(
            name,
            [self._environment / "bin" / "airflow", name, *flags],
            env=self.env(),
            cwd=self.root,
            log=self.logs / f"{name}.log",
        )
        self.components[name] = managed
        return managed

    def restart_component(self, name: str, *, kill: bool = False, down_seconds: float = 0) -> None:
        """End one component, with SIGKILL to all of its processes if ``kill``, and start it again.

        :param down_seconds: how long to leave it down.
        """
        self.stop_component(name, kill=kill)
        time.sleep(down_seconds)
        self.start_component(name)
        if name == "api-server":
            self.wait_api()

    def stop_component(self, name: str, *, kill: bool = False) -> None:
        """End one component, with SIGKILL to all of its processes if ``kill``."""
        component = self.components[name]
        if kill:
            component.kill_tree()
        else:
            component.stop()

    def wait_api(self, seconds: float = START_SECONDS) -> None:
        """Wait until the api-server answers."""
        wait_until(self.api.healthy, seconds=seconds, what="the api-server to answer")

    def failed_component(self) -> Managed | None:
        """Return a component that ended by itself, if there is one."""
        return next((component for component in self.components.values() if not component.running), None)

    def raise_if_failed(self) -> None:
        """Check that everything that was started still runs.

        :raises SiteError: naming the component that ended.
        """
        failed = self.failed_component()
        if failed is not None:
            raise SiteError(f"{failed.name} ended with exit code {failed.exit_code}", failed.log)

    def log_tail(self, name: str, lines: int = 15) -> str:
        """Return the last lines of a component's log."""
        return tail(self.logs / f"{name}.log", lines)

    def close(self) -> None:
        """Stop every component; the database and the logs stay."""
        if self._api is not None:
            self._api.close()
        for component in self.components.values():
            component.signal(15)
        for component in self.components.values():
            # What does not end, the keeper ends for good.
            with contextlib.suppress(ProcessError):
                component.stop(15)
