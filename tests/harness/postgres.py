"""A throw-away PostgreSQL server on a port of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2
import pytest

from harness.lasting import Lasting
from harness.ports import reserve_port
from harness.processes import die_with_parent
from harness.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

START_SECONDS = 60.0
_USER = "edge"
_PATHS = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/opt/postgresql*/bin")


class PostgresError(RuntimeError):
    """The server could not be made or started. The message says why."""


def find_binaries() -> Path:
    """Return the folder with ``initdb`` and ``postgres``, the newest version's.

    :raises PostgresError: when there is none.
    """
    found = [
        folder for pattern in _PATHS for folder in Path("/").glob(pattern.lstrip("/")) if (folder / "initdb").exists()
    ]
    if (on_path := shutil.which("initdb")) is not None:
        found.append(Path(on_path).resolve().parent)
    if not found:
        raise PostgresError("PostgreSQL's server is not installed (on Debian: apt-get install postgresql)")
    return max(found, key=lambda folder: [int(n) for n in folder.parent.name.split(".") if n.isdigit()])


class Postgres(Lasting):
    """A cluster in a temporary folder; started on entry, stopped and deleted on exit.

    It runs as the user ``postgres`` if we are root, because it refuses to run as root.

    :param durable: keep what has been committed through :meth:`restart`, at the price of speed.
    :param settings: further settings of the server, each ``name=value``.
    """

    def __init__(self, *, durable: bool = False, settings: Sequence[str] = ()) -> None:
        self._durable = durable
        self._settings = [part for setting in settings for part in ("-c", setting)]
        self.port = 0
        self._password = secrets.token_urlsafe(16)
        self._account = "postgres" if os.geteuid() == 0 else None
        # Not below pytest's folder, which other users may not enter.
        self._folder = Path(tempfile.mkdtemp(prefix="edge-postgres-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._count = 0

    @property
    def pid(self) -> int:
        """Id of the server's first process."""
        assert self._process is not None
        return self._process.pid

    def url(self, database: str) -> str:
        """Return the SQLAlchemy URL of a database."""
        return f"postgresql+psycopg2://{_USER}:{self._password}@127.0.0.1:{self.port}/{database}"

    def create_database(self) -> str:
        """Create an empty database and return its SQLAlchemy URL."""
        self._count += 1
        name = f"edge_{self._count}"
        connection = self._connect()
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(f"CREATE DATABASE {name}")
        finally:
            connection.close()
        return self.url(name)

    def restart(self, *, down_seconds: float = 0) -> None:
        """Stop the server at once, as a crash would, and start it again on the same port.

        :param down_seconds: how long to leave it down.
        """
        self._stop()
        time.sleep(down_seconds)
        self._launch(find_binaries())

    def close(self) -> None:
        """Stop the server at once and delete all it has."""
        self._stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)  # PostgreSQL's immediate shutdown
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def start(self) -> None:
        binaries = find_binaries()
        data = self._folder / "data"
        password_file = self._folder / "password"
        password_file.touch(0o600)
        password_file.write_text(self._password)
        if self._account is not None:
            for path in (self._folder, password_file):
                shutil.chown(path, self._account)
        made = subprocess.run(
            [
                binaries / "initdb", "--pgdata", data, "--username", _USER, "--pwfile", password_file,
                "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync",
            ],
            cwd="/", user=self._account, group=self._account, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if made.returncode != 0:
            raise PostgresError(f"initdb failed: {made.stderr.strip()[-500:]}")
        self.port = reserve_port()
        self._launch(binaries)

    def _launch(self, binaries: Path) -> None:
        data, log = self._folder / "data", self._folder / "server.log"
        commit = "on" if self._durable else "off"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    binaries / "postgres", "-D", data, "-k", self._folder, "-p", str(self.port),
                    "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", f"synchronous_commit={commit}",
                    "-c", "full_page_writes=off", "-c", "max_connections=200",
                    *self._settings,
                ],
                cwd="/", user=self._account, group=self._account, stdout=output, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
                # Also when we are killed. After the change of user, which would undo it.
                preexec_fn=lambda: die_with_parent(signal.SIGQUIT),  # noqa: PLW1509  one system call, safe with threads
            )  # fmt: skip
        process = self._process

        def answers() -> bool:
            if process.poll() is not None:
                raise PostgresError(f"postgres ended with {process.returncode}: {log.read_text()[-500:]}")
            try:
                self._connect().close()
            except psycopg2.OperationalError:
                return False
            return True

        wait_until(answers, seconds=START_SECONDS, what="PostgreSQL to answer")

    def _connect(self) -> psycopg2.extensions.connection:
        return psycopg2.connect(
            host="127.0.0.1", port=self.port, user=_USER, password=self._password, dbname="postgres", connect_timeout=5
        )


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """Serve PostgreSQL until the end of the tests."""
    with Postgres() as server:
        yield server
