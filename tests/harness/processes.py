"""Start, watch and end real processes; nothing that is started here stays behind."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

MARKER_VARIABLE = "EDGE_HARNESS_MARKER"
"""Environment variable that every started process carries."""

CLEAN_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""What is taken from our own environment: not an ``AIRFLOW_HOME`` or ``PYTHONPATH`` that happens to be set."""


_PR_SET_PDEATHSIG = 1
# Loaded here: between fork and exec nothing should be.
_LIBC = ctypes.CDLL(None)


def die_with_parent(number: int) -> None:
    """Have the kernel send this process a signal when its parent ends, also when that is killed. For ``preexec_fn``."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, number)


class ProcessError(RuntimeError):
    """A process could not be started, or ended when it should not have. The message names its log."""


def tail(path: Path, lines: int = 15) -> str:
    """Return the last lines of a text file, or a remark that there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 64 * 1024))
            content = file.read().decode(errors="replace")
    except FileNotFoundError:
        return "(no log file)"
    return "\n".join(content.splitlines()[-lines:]) or "(empty log)"


class Managed:
    """One started command."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self.pid = 0
        self.exit_code: int | None = None
        """Exit code once it ended, negative for a signal."""
        self.error: str | None = None
        self._answered = threading.Event()
        self._ended = threading.Event()

    def answer(self, message: Mapping[str, Any]) -> None:
        """Take in what the keeper says about this command."""
        if "pid" in message:
            self.pid = message["pid"]
        else:
            self.error = message.get("error")
            self.exit_code = message.get("exit", 127)
            self._ended.set()
        self._answered.set()

    def wait_started(self, seconds: float = 30) -> None:
        """Wait until the command has a process.

        :raises ProcessError: when it cannot be started.
        """
        if not self._answered.wait(seconds) or self.error:
            raise ProcessError(f"{self.name} could not be started: {self.error or 'the keeper does not answer'}")

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return not self._ended.is_set()

    def wait(self, seconds: float) -> int:
        """Wait for its end and return the exit code.

        :raises ProcessError: when it still runs after ``seconds``.
        """
        if not self._ended.wait(seconds):
            raise ProcessError(f"{self.name} (pid {self.pid}) still runs after {seconds:g} s, log: {self.log}")
        assert self.exit_code is not None
        return self.exit_code

    def signal(self, number: int) -> None:
        """Send a signal to this process alone; none if it has ended."""
        if self.running:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    def kill(self) -> None:
        """Kill this very process, and nothing that it started, and wait for its end."""
        self.signal(signal.SIGKILL)
        self.wait(10)

    def kill_tree(self) -> None:
        """Kill this process and everything below it, as a crash of its whole unit would."""
        victims = descendants(self.pid) if self.running else []
        self.kill()
        for victim in victims:
            try:
                victim.kill()
            except psutil.NoSuchProcess:
                continue

    def stop(self, seconds: float = 20) -> int:
        """Ask it to end with SIGTERM, kill it and its children after ``seconds``; return the exit code."""
        self.signal(signal.SIGTERM)
        if not self._ended.wait(seconds):
            self.kill_tree()
        return self.wait(10)

    def tail(self, lines: int = 15) -> str:
        """Return the last lines of its log."""
        return tail(self.log, lines)


class Keeper:
    """Starts commands below a :mod:`harness.keeper` process, and ends them all with it."""

    def __init__(self) -> None:
        self.marker = uuid.uuid4().hex
        self._commands: dict[int, Managed] = {}
        self._reaped: list[str] | None = None
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("keeper.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={MARKER_VARIABLE: self.marker},
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name="keeper-reader", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        """Return a clean environment with ``extra`` and the marker."""
        clean = {name: os.environ[name] for name in CLEAN_VARIABLES if name in os.environ}
        return clean | dict(extra) | {MARKER_VARIABLE: self.marker}

    def spawn(self, name: str, argv: Sequence[str | Path], *, env: Mapping[str, str], cwd: Path, log: Path) -> Managed:
        """Start a command with ``env`` on top of a clean environment; its output is appended to ``log``.

        :raises ProcessError: when it cannot be started.
        """
        command = Managed(name, log)
        with self._lock:
            number = len(self._commands)
            self._commands[number] = command
        request = {
            "id": number,
            "argv": [str(part) for part in argv],
            "env": self.environment(env),
            "cwd": str(cwd),
            "log": str(log),
        }
        self._send(request)
        command.wait_started()
        return command

    def processes(self) -> list[psutil.Process]:
        """Return everything that runs below this keeper, however deep and detached."""
        return descendants(self._process.pid)

    def close(self) -> list[str]:
        """End everything; return the command lines of what did not end on being asked."""
        if self._process.stdin is None or self._process.stdin.closed:
            return self._reaped or []
        self._process.stdin.close()
        self._process.wait()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()
        return self._reaped or []

    def _send(self, request: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            with self._lock:
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise ProcessError("the keeper process has gone; nothing can be started any more") from None

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "reaped" in message:
                self._reaped = message["reaped"]
            else:
                self._commands[message["id"]].answer(message)


def descendants(pid: int) -> list[psutil.Process]:
    """Return all living processes below ``pid``; none if it has gone."""
    try:
        found = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [process for process in found if _alive(process)]


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def marked_processes(marker: str) -> list[psutil.Process]:
    """Return every living process of this user that carries the marker in its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARKER_VARIABLE) == marker and _alive(process):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
