"""A runner as a process, and a client of it, for tests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from airflow_edge_agent.runner import wire
from harness.waiting import wait_until

SECONDS = 30.0
"""Longest wait for anything."""

_E = TypeVar("_E", wire.Hello, wire.Ready, wire.Leaving, wire.Problem, wire.Started, wire.Finished, wire.Refused)


class Client:
    """A connection to a runner."""

    def __init__(self, path: Path) -> None:
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.settimeout(SECONDS)
        try:
            self.connection.connect(str(path))
        except OSError:
            self.connection.close()
            raise
        self.events: list[wire.Event] = []
        self.ended = False
        self._lines = wire.LineBuffer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.connection.close()

    def send(self, *commands: wire.Command) -> None:
        self.connection.sendall(b"".join(wire.encode(command) for command in commands))

    def run(
        self,
        workload: dict[str, Any],
        *,
        job_id: str | None = None,
        kind: wire.Kind = "task",
        token: str = "the-token",
        server: str = "http://localhost/",
    ) -> str:
        job_id = job_id or str(uuid.uuid4())
        self.send(wire.Run(job_id=job_id, kind=kind, workload=workload, token=token, server=server))
        return job_id

    def signal(self, job_id: str, number: Literal[15, 9]) -> None:
        self.send(wire.Signal(job_id=job_id, signal=number))

    def next(self, kind: type[_E], job_id: str | None = None) -> _E:
        """Return the first event of that kind (and job) that was not yet returned."""
        deadline = time.monotonic() + SECONDS
        while True:
            for event in self.events:
                if isinstance(event, kind) and (job_id is None or getattr(event, "job_id", None) == job_id):
                    self.events.remove(event)
                    return event
            if self.ended or time.monotonic() > deadline:
                raise AssertionError(f"no {kind.__name__} came; what came: {self.events}")
            self._receive()

    def result(self, job_id: str) -> wire.JobResult:
        return self.next(wire.Finished, job_id).result

    def until_end(self) -> list[wire.Event]:
        """Read until the runner hangs up."""
        while not self.ended:
            self._receive()
        return self.events

    def _receive(self) -> None:
        try:
            data = self.connection.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            self.ended = True
        self.events += [wire.decode_event(line) for line in self._lines.feed(data)]


class RunnerProcess:
    """A running runner."""

    def __init__(self, base: Path, command: list[str], env: dict[str, str], idle_seconds: float, *more: str) -> None:
        self.base = base
        self.socket = base / "r.sock"
        self.jobs = base / "jobs"
        self.jobs.mkdir(exist_ok=True)
        options = [
            "--socket",
            str(self.socket),
            "--jobs-dir",
            str(self.jobs),
            "--idle-seconds",
            str(idle_seconds),
            *more,
        ]
        with (base / "runner.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *options], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def log(self) -> str:
        return (self.base / "runner.log").read_text()

    def connect(self) -> Client:
        def attempt() -> Client | None:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                return Client(self.socket)
            assert self.process.poll() is None, self.log
            return None

        client = wait_until(attempt, seconds=SECONDS, what="the runner's socket", poll_seconds=0.01)
        assert client is not None
        return client

    def wait(self) -> int:
        return self.process.wait(SECONDS)

    def end(self) -> None:
        """End it, with its jobs."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """Yield a folder whose path is short enough for a socket's."""
    with tempfile.TemporaryDirectory(prefix="edge-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextlib.contextmanager
def plain_runner(
    base: Path, *more: str, idle_seconds: float = 60.0, slow_start: Path | None = None, **variables: str
) -> Iterator[RunnerProcess]:
    """Start a runner that does without Airflow: what its jobs do is in their workloads."""
    program = str(Path(__file__).with_name("plain_runner.py"))
    env = {"PATH": os.environ["PATH"], "NOTIFY_SOCKET": "/nowhere", "SLOW_START": str(slow_start or "")}
    runner = RunnerProcess(base, [sys.executable, program], env | variables, idle_seconds, *more)
    try:
        yield runner
    finally:
        runner.end()
