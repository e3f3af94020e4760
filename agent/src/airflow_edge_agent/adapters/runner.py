"""The runner: a program of its own, spoken to over a unix socket.

It outlives the daemon: it is started in a session of its own, and the next daemon finds it by its socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

from airflow_edge_agent.adapters.results import read_result
from airflow_edge_agent.ports import (
    RunnerEnded,
    RunnerError,
    RunnerEvent,
    RunnerGone,
    RunnerReady,
    RunnerRefused,
    RunnerStarted,
)
from airflow_edge_agent.protocol.frames import Offer
from airflow_edge_agent.protocol.limits import JobLimits

_SIGNALS = {"TERM": 15, "KILL": 9}
_START_SECONDS = 20.0
"""How long a new runner may take until it listens (it loads the task runtime after that)."""
_POLL_SECONDS = 0.05
_MAX_LINE_BYTES = 16 * 1024 * 1024

EXIT_TAKEN = 75
"""Exit code of a runner that finds another one at work."""

RUNNER_SOCKET = "runner.sock"

PROGRAM = Path(__file__).parent.parent / "runner" / "__main__.py"


class SubprocessRunner:
    """Starts the runner on demand and speaks with it."""

    def __init__(
        self, *, python: Path, run_dir: Path, jobs_dir: Path, idle_seconds: float, environment: dict[str, str]
    ) -> None:
        self._python = python
        self._socket = run_dir / RUNNER_SOCKET
        self._log = run_dir / "runner.log"
        self._jobs_dir = jobs_dir
        self._idle_seconds = idle_seconds
        self._environment = environment
        self._events: asyncio.Queue[RunnerEvent] = asyncio.Queue()
        self._writer: asyncio.StreamWriter | None = None
        self._jobs: set[str] = set()
        """What the runner at the other end has been given and has not ended."""
        self._readers: set[asyncio.Task[None]] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = asyncio.Lock()

    async def reattach(self) -> dict[str, int]:
        """Connect to a runner that is already there; return its jobs and their pids."""
        try:
            reader = await self._connect()
        except RunnerError:
            return {}  # the first job will tell
        if reader is None:
            return {}
        try:
            hello = await asyncio.wait_for(_read(reader), _START_SECONDS)
            if hello is None or hello.get("ev") != "hello":
                raise ValueError("no hello")  # noqa: TRY301 -- like any other nonsense
            jobs = {str(job["job_id"]): int(job["pid"]) for job in hello["jobs"]}
        except (TimeoutError, OSError, ValueError, KeyError, TypeError):
            await self._drop()
            return {}
        self._jobs.update(jobs)
        if hello.get("ready"):
            self._events.put_nowait(RunnerReady(hello.get("versions") or {}))
        self._listen(reader)
        return jobs

    async def start(self, offer: Offer, server: str, limits: JobLimits | None = None) -> None:
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
            "limits": limits.model_dump(exclude_none=True) if limits is not None and limits.any else None,
        }
        # An idle runner may leave in the very moment we speak to it: then a new one takes the job.
        for last_try in (False, True):
            async with self._starting:
                if self._writer is None:
                    await self._launch()
            jobs = self._jobs
            jobs.add(offer.job_id)
            try:
                await self._write(message)
            except RunnerError:
                jobs.discard(offer.job_id)
                if last_try:
                    raise
            else:
                return

    async def signal(self, job_id: str, signal: Literal["TERM", "KILL"]) -> None:
        """Signal a job."""
        with contextlib.suppress(RunnerError):
            await self._write({"op": "signal", "job_id": job_id, "signal": _SIGNALS[signal]})

    async def events(self) -> AsyncIterator[RunnerEvent]:
        """Iterate over what the runner reports."""
        while True:
            yield await self._events.get()

    async def close(self) -> None:
        """Tell an idle runner to end, and hang up."""
        with contextlib.suppress(RunnerError):
            await self._write({"op": "stop"})
        await self._drop()

    async def _write(self, message: dict[str, Any]) -> None:
        writer = self._writer
        if writer is None:
            raise RunnerError("the runner is not running")
        try:
            writer.write(json.dumps(message).encode() + b"\n")
            await writer.drain()
        except OSError as error:
            # Its reader sees the end as well, and tells what has become of its other jobs.
            self._hang_up(writer)
            raise RunnerError(f"the runner does not listen ({error})") from None

    async def _launch(self) -> None:
        reader = await self._connect()
        if reader is None:
            self._spawn()
            deadline = asyncio.get_running_loop().time() + _START_SECONDS
            while (reader := await self._connect()) is None:
                if self._process is not None and self._process.poll() == EXIT_TAKEN:
                    self._spawn()  # its predecessor has left its socket, but not quite its process
                elif self._process is not None and self._process.poll() is not None:
                    raise RunnerError(f"the runner ended at once: {self._last_words()}")
                if asyncio.get_running_loop().time() > deadline:
                    raise RunnerError(f"the runner did not start within {_START_SECONDS:.0f} s; see {self._log}")
                await asyncio.sleep(_POLL_SECONDS)
        self._listen(reader)

    def _spawn(self) -> None:
        command = [str(self._python), "-P", str(PROGRAM), "--socket", str(self._socket)]
        command += ["--jobs-dir", str(self._jobs_dir), "--idle-seconds", f"{self._idle_seconds:g}"]
        try:
            # A file, not our stderr: the runner outlives us, and a broken pipe would kill it.
            with os.fdopen(os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as log:
                self._process = subprocess.Popen(  # noqa: S603 -- the program is ours, the Python the operator's choice
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment,
                    cwd=self._jobs_dir,
                    start_new_session=True,
                    close_fds=True,
                )
        except OSError as error:
            raise RunnerError(f"{self._python}: cannot be run ({error.strerror}); check runner.python") from None

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            if lines:
                return lines[-1][:500]
        return "it said nothing"

    async def _connect(self) -> asyncio.StreamReader | None:
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._socket), limit=_MAX_LINE_BYTES)
        except OSError:
            return None
        peer = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", peer)[1] != os.geteuid():
            writer.close()
            raise RunnerError(f"{self._socket}: belongs to another user's process; remove it")
        self._writer = writer
        self._jobs = set()
        return reader

    def _listen(self, reader: asyncio.StreamReader) -> None:
        assert self._writer is not None
        task = asyncio.create_task(self._read_events(reader, self._writer, self._jobs), name="runner reader")
        self._readers.add(task)
        task.add_done_callback(self._readers.discard)

    async def _read_events(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, jobs: set[str]) -> None:
        problem, process = None, self._process
        try:
            while (message := await _read(reader)) is not None:
                match message.get("ev"):
                    case "hello" if message.get("ready"):
                        self._events.put_nowait(RunnerReady(message.get("versions") or {}))
                    case "ready":
                        self._events.put_nowait(RunnerReady(message.get("versions") or {}))
                    case "problem":
                        problem = str(message.get("detail"))
                    case "started":
                        self._events.put_nowait(RunnerStarted(str(message["job_id"]), int(message["pid"])))
                    case "finished":
                        jobs.discard(str(message["job_id"]))
                        told = read_result(str(message["job_id"]), json.dumps(message.get("result")).encode())
                        self._events.put_nowait(RunnerEnded(str(message["job_id"]), told))
                    case "refused":
                        jobs.discard(str(message["job_id"]))
                        self._events.put_nowait(RunnerRefused(str(message["job_id"]), str(message.get("detail"))))
        except (OSError, ValueError, KeyError, TypeError):
            pass  # a runner that talks nonsense is as good as gone
        self._hang_up(writer)
        self._events.put_nowait(RunnerGone(problem, frozenset(jobs)))
        if process is not None:
            # It closed its socket, so it is about to end; it must not stay behind as a zombie.
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, 5)
            if self._process is process:
                self._process = None

    def _hang_up(self, writer: asyncio.StreamWriter) -> None:
        writer.close()
        if self._writer is writer:
            self._writer = None

    async def _drop(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        for task in list(self._readers):
            task.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)


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
