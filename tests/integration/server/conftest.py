"""One Airflow per database, each in a process of its own; see lab.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.postgres import Postgres, postgres_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["postgres_server"]

HERE = Path(__file__).parent


class Lab:
    """An Airflow with a migrated database, and a process that runs scenarios in it."""

    def __init__(self, home: Path, database_url: str) -> None:
        self.home = home
        self.database_url = database_url
        self.env = {
            name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTEST", "PYTHON"))
        } | {
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database_url,
            # No asynchronous engine: nothing here uses it, and PostgreSQL's would need one more driver.
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": "",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
            "AIRFLOW__CORE__EXECUTOR": "airflow_edge_server.executor.EdgeExecutor",
            "AIRFLOW__CORE__FERNET_KEY": "",
            "AIRFLOW__API_AUTH__JWT_SECRET": "not secret at all, but long enough to sign with it in tests",
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
            "AIRFLOW__EDGE_AGENT__API_ENABLED": "True",
            "PYTHONPATH": str(HERE.parents[1]),
            "NO_COLOR": "1",
        }
        self._process: subprocess.Popen[str] | None = None
        self._answers: Any = None

    def airflow(
        self, *args: str, check: bool = True, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run Airflow's command line."""
        done = subprocess.run(
            [Path(sys.executable).parent / "airflow", *args],
            env=self.env | dict(env or {}),
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
            stdin=subprocess.DEVNULL,
        )
        if check:
            assert done.returncode == 0, f"airflow {' '.join(args)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def python(self, code: str, **env: str) -> str:
        """Run code in a fresh interpreter and return what it prints."""
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=self.env | env,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    def run(self, scenario: str) -> None:
        """Run ``module:function`` in the lab process, and fail as it fails."""
        self._ensure()
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(scenario) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        if not answer.get("ok"):
            pytest.fail(f"{scenario} on {self.database_url.split(':')[0]}\n{answer.get('trace')}", pytrace=False)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._answers.close()
            self._process = None

    def _ensure(self) -> None:
        if self._process is not None:
            return
        reading, writing = os.pipe()
        with (self.home / "lab.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, HERE / "lab.py"],
                env=self.env | {"LAB_ANSWERS": str(writing)},
                pass_fds=(writing,),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
        os.close(writing)
        self._answers = os.fdopen(reading, encoding="utf-8")
        assert self._read() == {"ready": True}

    def _read(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            pytest.fail(f"the lab process has died:\n{(self.home / 'lab.log').read_text()[-3000:]}", pytrace=False)
        answer: dict[str, Any] = json.loads(line)
        return answer


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab for each database, made by ``airflow db migrate``."""
    home = tmp_path_factory.mktemp(f"airflow-{request.param}")
    if request.param == "sqlite":
        url = f"sqlite:///{home / 'airflow.db'}"
    else:
        server: Postgres = request.getfixturevalue("postgres_server")
        url = server.create_database()
    made = Lab(home, url)
    try:
        made.airflow("db", "migrate")
        yield made
    finally:
        made.close()
