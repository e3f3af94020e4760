"""A real edge agent: its configuration, its processes and what they use."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil

from harness.processes import MARKER_VARIABLE, Keeper, Managed, ProcessError, descendants, tail
from harness.waiting import wait_until

if TYPE_CHECKING:
    from types import TracebackType

LONGEST_SOCKET_PATH = 100
"""Characters; the kernel takes 107."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What an agent's processes use at one moment."""

    daemon_pss_bytes: int
    runner_pss_bytes: int
    jobs_pss_bytes: int
    job_processes: int


class AgentProcess:
    """One agent with a folder of its own.

    :param root: is created; holds configuration, credential, state and log.
    :param environment: the virtual environment with the agent in it.
    :param runtime: the virtual environment with the Task SDK in it.
    :param token: join token; the agent is enrolled with it before it is started for the first time. Or what another
        agent's credential file holds.
    :param bundles: Dag bundles, name to this agent's own folder.
    :param settings: further top-level settings and sections, which win over those made here.
    :param variables: environment of the daemon.

    ``EDGE_TEST_EXECUTION_API`` says how tasks reach Airflow, where ``settings`` do not.
    """

    def __init__(
        self,
        root: Path,
        *,
        keeper: Keeper,
        environment: Path,
        runtime: Path,
        server_url: str,
        token: str,
        name: str = "edge-1",
        queues: Sequence[str] = ("default",),
        concurrency: int = 4,
        bundles: Mapping[str, Path] | None = None,
        settings: Mapping[str, Any] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.root = root
        self.keeper = keeper
        self.name = name
        self.config = root / "agent.toml"
        self.state_dir = root / "state"
        self.credential_file = self.state_dir / "credential"
        self.log = root / "agent.log"
        self.process: Managed | None = None
        self.program = environment / "bin" / "edge-agent"
        """What is started as the daemon."""
        self._variables = dict(variables or {})
        self._short_dir: tempfile.TemporaryDirectory[str] | None = None
        root.mkdir(parents=True, exist_ok=True)
        self.settings: dict[str, Any] = {
            "server_url": server_url,
            "name": name,
            "queues": list(queues),
            "concurrency": concurrency,
            "state_dir": str(self.state_dir),
            "runtime_dir": str(self._runtime_dir()),
            "allow_root": True,
            "runner": {
                "python": str(runtime / "bin" / "python"),
                "pass_env": [MARKER_VARIABLE],
                # A task's stdin is a socket, so bash takes itself for a remote shell and reads ~/.bashrc: not the
                # developer's, whose start-up files may take locks that a killed task leaves behind.
                "env": {"HOME": str(root)},
            },
            "bundles": {bundle: {"path": str(path)} for bundle, path in (bundles or {}).items()},
        }
        way = os.environ.get("EDGE_TEST_EXECUTION_API")
        self.configure(({"execution_api": way} if way else {}) | dict(settings or {}))
        self._join_token: str | None = token
        if token.startswith("eac_"):
            self.write_credential(token)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _runtime_dir(self) -> Path:
        wanted = self.state_dir / "run"
        if len(str(wanted / "runner.sock")) <= LONGEST_SOCKET_PATH:
            return wanted
        self._short_dir = tempfile.TemporaryDirectory(prefix="edge-agent-", ignore_cleanup_errors=True)
        return Path(self._short_dir.name)

    # Configuration

    def configure(self, changes: Mapping[str, Any]) -> None:
        """Change settings, sections key by key, and write the file. A running agent does not notice."""
        for key, value in changes.items():
            if isinstance(value, Mapping) and isinstance(self.settings.get(key), dict):
                self.settings[key] = self.settings[key] | dict(value)
            else:
                self.settings[key] = value
        self.config.write_text(to_toml(self.settings))

    def write_credential(self, text: str) -> None:
        """Write the credential file, readable by its owner alone."""
        self._join_token = None
        self.state_dir.mkdir(mode=0o700, exist_ok=True)
        self.credential_file.touch(mode=0o600)
        self.credential_file.write_text(text.strip() + "\n")

    def status(self, seconds: float = 60) -> str:
        """Return what ``edgectl status`` says, as one line."""
        done = subprocess.run(
            [self.program.with_name("edgectl"), "--config", self.config, "status"],
            env=self.keeper.environment(self._variables),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        return " ".join((done.stdout.strip() or done.stderr.strip()).split())

    def enroll(self, token: str, *options: str, seconds: float = 60) -> str:
        """Exchange a join token for a credential, as an operator does, and return what edgectl says.

        :raises ProcessError: when it fails.
        """
        done = subprocess.run(
            [self.program.with_name("edgectl"), "--config", self.config, "enroll", "--token-file", "-", *options],
            input=token,
            env=self.keeper.environment(self._variables),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if done.returncode:
            raise ProcessError(f"agent {self.name} was not enrolled: {done.stderr.strip()}")
        self._join_token = None
        return done.stdout

    # Life cycle

    def start(self) -> Managed:
        """Start the daemon, without waiting for it to be connected. Enroll it before, if it is not yet."""
        if self._join_token is not None:
            self.enroll(self._join_token)
        self.process = self.keeper.spawn(
            f"agent {self.name}",
            [self.program, "run", "--config", self.config],
            env=self._variables,
            cwd=self.root,
            log=self.log,
        )
        return self.process

    @property
    def running(self) -> bool:
        """Whether the daemon runs."""
        return self.process is not None and self.process.running

    def stop(self, seconds: float = 30) -> int:
        """Stop it cleanly and return its exit code.

        :raises ProcessError: when it is not started, or is still draining after ``seconds``.
        """
        daemon = self._daemon()
        daemon.signal(signal.SIGTERM)
        return daemon.wait(seconds)

    def kill(self) -> None:
        """Kill the daemon with SIGKILL; its runner and the tasks go on."""
        self._daemon().kill()

    def restart(self, *, kill: bool = False) -> Managed:
        """End the daemon, with SIGKILL if ``kill``, and start it again."""
        if kill:
            self.kill()
        elif self.running:
            self.stop()
        return self.start()

    def close(self) -> None:
        """End daemon, runner and tasks."""
        if self.process is not None:
            # What does not end, the keeper ends for good.
            with contextlib.suppress(ProcessError):
                self.process.stop(10)
        for process in self._all():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        if self._short_dir is not None:
            self._short_dir.cleanup()

    def _daemon(self) -> Managed:
        if self.process is None:
            raise ProcessError(f"agent {self.name} has not been started")
        return self.process

    # Watching

    def log_text(self) -> str:
        """Return everything the daemon has written."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def tail(self, lines: int = 15) -> str:
        """Return the last lines of the daemon's log."""
        return tail(self.log, lines)

    def wait_for_log(self, pattern: str, *, seconds: float = 30, after: int = 0) -> re.Match[str]:
        """Wait for a regular expression in the daemon's log.

        :param after: look only behind this many characters.
        :raises WaitTimeoutError: with the end of the log.
        """
        found = wait_until(
            lambda: re.search(pattern, self.log_text()[after:]),
            seconds=seconds,
            what=f"/{pattern}/ in the log of agent {self.name}",
            seen=lambda: self.tail(5),
        )
        assert found is not None
        return found

    def runner(self) -> psutil.Process | None:
        """Return the warm runner's process, if there is one."""
        jobs = str(self.state_dir / "runner" / "jobs")
        for process in self.keeper.processes():
            try:
                command = process.cmdline()
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            # A job is forked from the runner and may carry its command line.
            if jobs in command and not _is_job(process, jobs):
                return process
        return None

    def wait_for_runner(self, *, present: bool, seconds: float = 30) -> None:
        """Wait until there is a runner, or none any more."""
        wait_until(
            lambda: (self.runner() is not None) is present,
            seconds=seconds,
            what=f"the runner of agent {self.name} to {'start' if present else 'leave'}",
        )

    def job_processes(self) -> list[psutil.Process]:
        """Return all processes of running jobs."""
        runner = self.runner()
        return [process for process in descendants(runner.pid) if not _is_zygote(process)] if runner else []

    def zygotes(self) -> list[psutil.Process]:
        """Return what the runner forks jobs from."""
        runner = self.runner()
        return [process for process in descendants(runner.pid) if _is_zygote(process)] if runner else []

    def usage(self) -> Usage:
        """Measure the memory of the agent's processes: PSS, shared pages counted by share."""
        runner, jobs = self.runner(), self.job_processes()
        daemon = self._daemon()
        return Usage(
            daemon_pss_bytes=_pss(psutil.Process(daemon.pid)) if daemon.running else 0,
            runner_pss_bytes=sum(map(_pss, [*([runner] if runner else []), *self.zygotes()])),
            jobs_pss_bytes=sum(map(_pss, jobs)),
            job_processes=len(jobs),
        )

    def cpu_seconds(self) -> tuple[float, float]:
        """User and system time used so far by the daemon, and by the runner and all that it has started."""
        daemon = _cpu_seconds(psutil.Process(self._daemon().pid)) if self.running else 0.0
        return daemon, sum(map(_cpu_seconds, self._all()))

    def _all(self) -> list[psutil.Process]:
        runner = self.runner()
        return [*self.job_processes(), *self.zygotes(), *([runner] if runner else [])]


def _is_zygote(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return process.name() == "edge-zygote"
    return False


def _is_job(process: psutil.Process, jobs: str) -> bool:
    parent = process.parent()
    try:
        return parent is not None and jobs in parent.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


def to_toml(data: Mapping[str, Any]) -> str:
    """Write nested settings as TOML. JSON's strings, numbers, booleans and lists of them are TOML's, too."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in data.items() if not isinstance(value, Mapping)]
    return "\n".join(lines + _sections(data, "")) + "\n"


def _sections(data: Mapping[str, Any], prefix: str) -> list[str]:
    lines = []
    for key, value in data.items():
        if not isinstance(value, Mapping):
            continue
        name = f"{prefix}{json.dumps(key)}"
        plain = {inner: entry for inner, entry in value.items() if not isinstance(entry, Mapping)}
        lines += ["", f"[{name}]", *(f"{json.dumps(inner)} = {json.dumps(entry)}" for inner, entry in plain.items())]
        lines += _sections(value, f"{name}.")
    return lines
