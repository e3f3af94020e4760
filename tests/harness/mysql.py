"""A throw-away MariaDB or MySQL server on a port of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pymysql
import pytest

from harness.lasting import Lasting
from harness.ports import reserve_port
from harness.processes import die_with_parent
from harness.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

START_SECONDS = 60.0
_USER = "edge"


class MysqlError(RuntimeError):
    """The server could not be made or started. The message says why."""


class Mysql(Lasting):
    """A server with its data in a temporary folder; started on entry, stopped and deleted on exit."""

    def __init__(self) -> None:
        self.port = 0
        self._password = secrets.token_urlsafe(16)
        self._folder = Path(tempfile.mkdtemp(prefix="edge-mysql-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._count = 0

    @staticmethod
    def missing() -> str | None:
        """Say in one line what must be installed; ``None``: nothing."""
        if _server() is None:
            return "no MariaDB or MySQL server is installed (on Debian: apt-get install mariadb-server-core)"
        if shutil.which("mariadb-install-db") is not None and shutil.which("my_print_defaults") is None:
            return "MariaDB's set-up needs my_print_defaults (on Debian: apt-get install mariadb-client-core)"
        return None

    def create_database(self) -> str:
        """Create an empty database and return its SQLAlchemy URL."""
        self._count += 1
        name = f"edge_{self._count}"
        connection = self._connect()
        try:
            with connection.cursor() as cursor:
                cursor.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")
        finally:
            connection.close()
        return f"mysql+pymysql://{_USER}:{self._password}@127.0.0.1:{self.port}/{name}?charset=utf8mb4"

    def close(self) -> None:
        """Stop the server at once and delete all it has."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        server = _server()
        if server is None:
            raise MysqlError(str(self.missing()))
        data, log, first = self._folder / "data", self._folder / "server.log", self._folder / "first.sql"
        # It refuses to run as root unless told to.
        user = ["--user=root"] if os.geteuid() == 0 else []
        _make(server, data, user)
        first.touch(0o600)
        first.write_text(
            f"CREATE USER '{_USER}'@'127.0.0.1' IDENTIFIED BY '{self._password}';\n"
            f"GRANT ALL ON *.* TO '{_USER}'@'127.0.0.1';\n"
        )
        self.port = reserve_port()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    server, "--no-defaults", *user, f"--datadir={data}", f"--socket={self._folder / 'socket'}",
                    f"--pid-file={self._folder / 'pid'}", f"--init-file={first}", "--bind-address=127.0.0.1",
                    f"--port={self.port}", "--skip-name-resolve", "--skip-log-bin", "--max-connections=200",
                    "--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=64M",
                ],
                cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                preexec_fn=lambda: die_with_parent(signal.SIGKILL),  # noqa: PLW1509  one system call, safe with threads
            )  # fmt: skip
        process = self._process

        def answers() -> bool:
            if process.poll() is not None:
                raise MysqlError(f"{server.name} ended with {process.returncode}: {log.read_text()[-500:]}")
            try:
                self._connect().close()
            except pymysql.OperationalError:
                return False
            return True

        wait_until(answers, seconds=START_SECONDS, what=f"{server.name} to answer")

    def _connect(self) -> pymysql.Connection[pymysql.cursors.Cursor]:
        return pymysql.connect(
            host="127.0.0.1", port=self.port, user=_USER, password=self._password, connect_timeout=5, autocommit=True
        )


def _server() -> Path | None:
    for name in ("mariadbd", "mysqld"):
        # Debian's is in a folder for administrators, which is not on everyone's PATH.
        found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
        if found is not None:
            return Path(found)
    return None


def _make(server: Path, data: Path, user: list[str]) -> None:
    """Make the tables of the server itself.

    :raises MysqlError: when that fails.
    """
    command: list[str | Path] = [server, "--no-defaults", "--initialize-insecure", f"--datadir={data}", *user]
    if (installer := shutil.which("mariadb-install-db")) is not None:
        command = [installer, "--no-defaults", f"--datadir={data}", "--skip-test-db", *user]
    made = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise MysqlError(f"{command[0]} failed: {(made.stderr or made.stdout).strip()[-500:]}")


@pytest.fixture(scope="session")
def mysql_server() -> Iterator[Mysql]:
    """Serve MariaDB or MySQL until the end of the tests; skip where there is none."""
    missing = Mysql.missing()
    if missing is not None:
        pytest.skip(missing)
    with Mysql() as server:
        yield server
