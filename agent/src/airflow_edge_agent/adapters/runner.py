"""The runner: a program of its own, spoken to over a unix socket.

It outlives the daemon: it is started in a session of its own, and the next daemon finds it by its socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from airflow_edge_agent.adapters.jobstore import RUNNER_JOBS
from airflow_edge_agent.adapters.local_socket import peer_of
from airflow_edge_agent.adapters.results import read_result
from airflow_edge_agent.ports import (
    RunnerEnded,
    RunnerError,
    RunnerEvent,
    RunnerGone,
    RunnerNotRenewed,
    RunnerReady,
    RunnerRefused,
    RunnerStarted,
    RunnerUnusable,
)
from airflow_edge_agent.protocol.frames import Offer
from airflow_edge_agent.protocol.limits import JobLimits

_SIGNALS = {"TERM": 15, "KILL": 9}
_START_SECONDS = 20.0
"""How long a new runner may take until it listens (it loads the task runtime after that)."""
_POLL_SECONDS = 0.05
_CLOSE_SECONDS = 5.0
_MAX_LINE_BYTES = 16 * 1024 * 1024
_MOST_FILES = 500
_MOST_WORDS = 500

MAX_LOG_BYTES = 1024 * 1024
"""Size of ``runner.log`` from which on it is begun anew; one earlier log is kept beside it."""

EXIT_TAKEN = 75
"""Exit code of a runner that finds another one at work."""

_GENERATIONS = "runner-*.sock"
"""In the runner's folder: runners whose successor has taken over, and that have jobs still."""

PROGRAM = Path(__file__).parent.parent / "runner" / "__main__.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerOptions:
    """What a runner that we start is told."""

    idle_seconds: float
    stop_without_agent_seconds: float = 0.0


@dataclass(slots=True, eq=False)
class _Connection:
    """One runner that we speak with. There may be several: the present one, and earlier ones that have jobs still."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    jobs: set[str] = field(default_factory=set)
    """What it has been given and has not ended."""
    files: dict[str, str] = field(default_factory=dict)
    """What it says it was loaded from."""
    pid: int | None = None
    """Its pid, as it says."""

    def outdated(self) -> bool:
        """Tell whether something else is there now. Of what we may not look at, nothing is known."""
        for path, mark in self.files.items():
            with contextlib.suppress(PermissionError, ValueError):
                if mark_of(Path(path)) != mark:
                    return True
        return False


class SubprocessRunner:
    """Starts the runner on demand and speaks with it.

    :param socket_path: where it listens.
    :param runner_dir: its folder. Its owner is the user it runs as.
    :param foreign: somebody else starts it, when we connect.
    """

    def __init__(
        self,
        *,
        python: Path,
        socket_path: Path,
        runner_dir: Path,
        options: RunnerOptions,
        environment: dict[str, str],
        foreign: bool = False,
    ) -> None:
        self._python = python
        self._socket = socket_path
        self._log = socket_path.with_name("runner.log")
        self._runner_dir = runner_dir
        self._options = options
        self.statsd_port: int | None = None
        """Where jobs that begin from now on may send their metrics; ``None``: nowhere."""
        self._environment = environment
        self._foreign = foreign
        self._events: asyncio.Queue[RunnerEvent] = asyncio.Queue()
        self._current: _Connection | None = None
        """The runner that takes jobs."""
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = asyncio.Lock()

    async def reattach(self) -> dict[str, int]:
        """Connect to the runners that are already there; return their jobs and their pids."""
        found: dict[str, int] = {}
        for path in sorted(self._runner_dir.glob(_GENERATIONS)):
            found |= await self._reattach(path)
        # A foreign one is there as soon as we connect; without jobs there is no need to wake it.
        if not self._foreign or any(self._runner_dir.glob(f"{RUNNER_JOBS}/*/pid.json")):
            found |= await self._reattach(self._socket)
        return found

    async def _reattach(self, path: Path) -> dict[str, int]:
        try:
            connection = await self._connect(path)
        except RunnerError:
            return {}  # the first job will tell
        if connection is None:
            return {}
        try:
            hello = await asyncio.wait_for(_read(connection.reader), _START_SECONDS)
            if hello is None or hello.get("ev") != "hello":
                raise ValueError("no hello")  # noqa: TRY301 -- like any other nonsense
            jobs = {str(job["job_id"]): int(job["pid"]) for job in hello["jobs"]}
        except (TimeoutError, OSError, ValueError, KeyError, TypeError):
            connection.writer.close()
            return {}
        connection.jobs.update(jobs)
        if not hello.get("leaving"):
            self._current = connection
            self._greet(connection, hello)
        self._listen(connection)
        return jobs

    async def start(
        self, offer: Offer, server: str, limits: JobLimits | None = None, relay: Path | None = None
    ) -> None:
        """Hand over a job, starting the runner if it is not there.

        :raises RunnerError: it could not be handed over.
        """
        message = {
            "op": "run",
            "job_id": offer.job_id,
            "kind": offer.kind,
            "workload": offer.workload,
            "token": offer.token,
            "server": server,
            "relay": None if relay is None else str(relay),
            "patience_seconds": offer.disconnect_lease_seconds,
            "limits": limits.model_dump(exclude_none=True) if limits is not None and limits.any else None,
            "statsd_port": self.statsd_port,
        }
        # An idle runner may leave in the very moment we speak to it: then a new one takes the job.
        for last_try in (False, True):
            async with self._starting:
                connection = self._current or await self._launch()
            connection.jobs.add(offer.job_id)
            try:
                await self._write(connection, message)
            except RunnerError:
                connection.jobs.discard(offer.job_id)
                if last_try:
                    raise
            else:
                return

    async def signal(self, job_id: str, signal: Literal["TERM", "KILL"]) -> None:
        """Signal a job."""
        connection = next((one for one in self._connections if job_id in one.jobs), self._current)
        with contextlib.suppress(RunnerError):
            await self._write(connection, {"op": "signal", "job_id": job_id, "signal": _SIGNALS[signal]})

    async def renew(self, *, if_changed: bool = False) -> bool:
        """Let the runner be replaced by one from what is on disk now; return whether that was asked of one."""
        connection = self._current
        if connection is None or (if_changed and not connection.outdated()):
            return False
        # Until the next change there is no reason to ask again.
        connection.files = {}
        try:
            await self._write(connection, {"op": "renew"})
        except RunnerError:
            return False
        return True

    async def events(self) -> AsyncIterator[RunnerEvent]:
        """Iterate over what the runner reports."""
        while True:
            yield await self._events.get()

    async def close(self) -> None:
        """Tell an idle runner to end, and hang up."""
        # One that is being started is told, too.
        with contextlib.suppress(RunnerError, TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS), self._starting:
                await self._write(self._current, {"op": "stop"})
        await self._drop()

    async def _write(self, connection: _Connection | None, message: dict[str, Any]) -> None:
        if connection is None:
            raise RunnerError("the runner is not running")
        try:
            connection.writer.write(json.dumps(message).encode() + b"\n")
            await connection.writer.drain()
        except OSError as error:
            # Its reader sees the end as well, and tells what has become of its other jobs.
            self._hang_up(connection)
            raise RunnerError(f"the runner does not listen ({error})") from None

    async def _launch(self) -> _Connection:
        connection = await self._connect(self._socket)
        if connection is None and self._foreign:
            raise RunnerError(f"{self._socket}: no runner listens there; start edge-runner.socket")
        if connection is None:
            connection = await self._start_own()
        self._current = connection
        self._listen(connection)
        return connection

    async def _start_own(self) -> _Connection:
        self._spawn()
        deadline = asyncio.get_running_loop().time() + _START_SECONDS
        while (connection := await self._connect(self._socket)) is None:
            if self._process is not None and self._process.poll() == EXIT_TAKEN:
                self._spawn()  # its predecessor has left its socket, but not quite its process
            elif self._process is not None and self._process.poll() is not None:
                raise RunnerError(f"the runner ended at once: {self._last_words()}")
            if asyncio.get_running_loop().time() > deadline:
                raise RunnerError(f"the runner did not start within {_START_SECONDS:.0f} s; see {self._log}")
            await asyncio.sleep(_POLL_SECONDS)
        return connection

    def _spawn(self) -> None:
        command = [str(self._python), "-P", str(PROGRAM), "--socket", str(self._socket)]
        command += ["--jobs-dir", str(self._runner_dir / RUNNER_JOBS)]
        command += ["--idle-seconds", f"{self._options.idle_seconds:g}"]
        command += ["--stop-without-agent-seconds", f"{self._options.stop_without_agent_seconds:g}"]
        try:
            # A file, not our stderr: the runner outlives us, and a broken pipe would kill it.
            self._keep_log()
            with os.fdopen(os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
                self._process = subprocess.Popen(  # noqa: S603 -- the program is ours, the Python the operator's choice
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment,
                    cwd=self._runner_dir,
                    start_new_session=True,
                    close_fds=True,
                )
        except OSError as error:
            raise RunnerError(f"{self._python}: cannot be run ({error.strerror}); check runner.python") from None

    def _keep_log(self) -> None:
        """Put aside what the last runner has said."""
        with contextlib.suppress(FileNotFoundError):
            self._log.rename(self._log.with_name(f"{self._log.name}.1"))

    def _bound_log(self) -> None:
        """Begin the log anew when it has become long; the runner has it open, so it must stay the same file."""
        with contextlib.suppress(OSError):
            if not self._foreign and self._log.stat().st_size > MAX_LOG_BYTES:
                shutil.copyfile(self._log, self._log.with_name(f"{self._log.name}.1"))
                os.truncate(self._log, 0)

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            if lines:
                return lines[-1][:500]
        return "it said nothing"

    async def _connect(self, path: Path) -> _Connection | None:
        try:
            reader, writer = await asyncio.open_unix_connection(str(path), limit=_MAX_LINE_BYTES)
        except OSError:
            return None
        if peer_of(writer)[1] not in self._trusted():
            writer.close()
            raise RunnerError(f"{path}: belongs to another user's process; remove it")
        return _Connection(reader, writer)

    def users(self) -> set[int]:
        """Return the users that a runner of ours may have."""
        if not self._foreign:
            return {os.geteuid()}
        with contextlib.suppress(OSError):
            return {self._runner_dir.stat().st_uid}
        return set()

    def _trusted(self) -> set[int]:
        """Return the users whose socket may be the runner's."""
        # The socket that systemd has opened is root's, whoever accepts from it.
        return self.users() | ({0} if self._foreign else set())

    def _listen(self, connection: _Connection) -> None:
        self._connections.add(connection)
        self._run(self._read_events(connection), "runner reader")

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read_events(self, connection: _Connection) -> None:
        problem, process = None, self._process
        jobs = connection.jobs
        try:
            while (message := await _read(connection.reader)) is not None:
                match message.get("ev"):
                    case "hello" | "ready":
                        self._greet(connection, message)
                    case "leaving":
                        # The next job connects to its successor, by the same name.
                        self._current = None if self._current is connection else self._current
                    case "problem":
                        problem = str(message.get("detail"))
                        self._events.put_nowait(RunnerUnusable(problem))
                    case "started":
                        self._events.put_nowait(RunnerStarted(str(message["job_id"]), int(message["pid"])))
                    case "finished":
                        jobs.discard(str(message["job_id"]))
                        told = read_result(str(message["job_id"]), json.dumps(message.get("result")).encode())
                        self._events.put_nowait(RunnerEnded(str(message["job_id"]), told))
                        self._bound_log()
                    case "refused" if message["job_id"] is not None:
                        jobs.discard(str(message["job_id"]))
                        self._events.put_nowait(RunnerRefused(str(message["job_id"]), str(message.get("detail"))))
                    case "refused":
                        self._events.put_nowait(RunnerNotRenewed(str(message.get("detail"))[:_MOST_WORDS]))
        except (OSError, ValueError, KeyError, TypeError):
            pass  # a runner that talks nonsense is as good as gone
        self._hang_up(connection)
        self._events.put_nowait(RunnerGone(problem, frozenset(jobs)))
        # systemd has ended what was left of a foreign one, and starts the next only for a job.
        if jobs and problem is None and self._current is None and not self._foreign:
            self._run(self._clean_up(), "runner cleaner")
        last = not self._connections or (process is not None and connection.pid == process.pid)
        if process is not None and process.poll() is None and last:
            # It closed its socket, so it is about to end; it must not stay behind as a zombie.
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, 5)
        if self._process is process and process is not None and process.poll() is not None:
            self._process = None

    async def _clean_up(self) -> None:
        """Start the next runner at once: it ends what is left of the jobs of one that died."""
        with contextlib.suppress(RunnerError):
            async with self._starting:
                if self._current is None:
                    await self._launch()

    def _greet(self, connection: _Connection, message: dict[str, Any]) -> None:
        """Take in how a runner introduces itself."""
        files, isolation = message.get("files"), message.get("isolation")
        if isinstance(message.get("pid"), int):
            connection.pid = message["pid"]
        if isinstance(files, dict):
            connection.files = {str(path): str(mark) for path, mark in list(files.items())[:_MOST_FILES]}
        if message["ev"] == "ready" or message.get("ready"):
            known = isolation if isinstance(isolation, dict) else None
            self._events.put_nowait(RunnerReady(message.get("versions") or {}, known))

    def _hang_up(self, connection: _Connection) -> None:
        connection.writer.close()
        self._connections.discard(connection)
        if self._current is connection:
            self._current = None

    async def _drop(self) -> None:
        connections, self._connections, self._current = self._connections, set(), None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in connections:
            connection.writer.close()
            with contextlib.suppress(OSError):
                await connection.writer.wait_closed()


def mark_of(place: Path) -> str | None:
    """Return the mark of a file or folder, as the runner makes it (``runner/origin.py``, which is not loaded here).

    :raises PermissionError: we may not look.
    """
    try:
        found = place.stat()
    except PermissionError:
        raise
    except OSError:
        return None
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns}"


async def _read(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """Read one message; ``None`` at the end.

    :raises ValueError: no JSON object, or too long.
    """
    line = await reader.readline()
    if not line:
        return None
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("no object")  # noqa: TRY004 -- what came is wrong, not how we were called
    return message
