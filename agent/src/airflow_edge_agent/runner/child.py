"""What a freshly forked child does: leave everything of the zygote behind, then work on its one job."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeAlias

from . import processes, statsd
from .outcome import Report, Terminated
from .sdk import explain_error
from .wire import MAX_LINE_BYTES, Outcome, Run, decode_command

TEMP_FOLDER = "tmp"
SUPERVISOR_LOG = "supervisor.log"

_OOM_POINTS = 200
"""Added to a job's out-of-memory score: if the host runs short, a job goes, not the runner or the daemon."""

_EXIT_NOT_ENTERED = 70

Body: TypeAlias = Callable[[Run], Report]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a job's process is to live."""

    folder: Path
    """The job's folder."""
    runner: int
    """Pid of the runner, whose child it is and without whom it shall not begin."""
    procs: str | None
    """``cgroup.procs`` of the job's cgroup, if it has one."""
    statsd_port: int | None = None
    """Where the agent takes what the job tells to StatsD."""


def be_job(place: Place, *, status: int, source: int, report_to: int, body: Body) -> NoReturn:
    """Be the process that supervises one job, to its end.

    :param status: pipe that is closed when this process has found its place, or takes the reason why it has not.
    :param source: file that holds the job, as the daemon sent it.
    :param report_to: pipe that takes the report, as JSON.
    :param body: does the job.
    """
    code = _EXIT_NOT_ENTERED
    try:
        enter(place, status, {source, report_to})
        run = _read(source)
        try:
            report = body(run)
        except Terminated:
            _end_by(signal.SIGTERM)
        except BaseException as error:  # noqa: BLE001 -- nothing may pass: above is the stack of the zygote
            traceback.print_exception(error, file=sys.stderr)
            report = Report(Outcome.CRASHED, None, f"the supervisor failed: {explain_error(error, run)}")
        _send(report, report_to)
        code = 0
    except BaseException as error:  # noqa: BLE001 -- see above
        traceback.print_exception(error, file=sys.stderr)
    finally:
        leave(code)


def leave(code: int) -> NoReturn:
    """End this process, and nothing of what it has inherited."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def enter(place: Place, status: int, keep: set[int]) -> None:
    """Make this process one of its job; on failure tell why and end it.

    :param keep: open descriptors that it needs.
    """
    try:
        _enter(place, keep | {status})
    except BaseException as error:  # noqa: BLE001 -- nothing of the job has run yet, and the runner is to hear of it
        with contextlib.suppress(OSError):
            os.write(status, str(error).encode(errors="replace"))
        os._exit(_EXIT_NOT_ENTERED)
    os.close(status)


def _enter(place: Place, keep: set[int]) -> None:
    if place.procs is not None:
        # First, so that all it uses is counted and nothing it starts can be outside.
        _write(place.procs, b"0")
    os.setsid()
    if os.getppid() != place.runner:
        # Its zygote has looked for processes to end already, perhaps before there was this one.
        raise RuntimeError("the runner has ended")
    # Whatever the workload leaves behind comes to this process, so that its family stays complete.
    processes.become_subreaper()
    processes.prefer_as_oom_victim(_OOM_POINTS)
    processes.set_name("edge-job")
    _reset_signals()
    _close_all_but({0, 1, 2} | keep)
    _redirect(place.folder / SUPERVISOR_LOG)
    temp = place.folder / TEMP_FOLDER
    temp.mkdir(mode=0o700, exist_ok=True)
    os.chdir(temp)
    os.environ["TMPDIR"] = str(temp)
    tempfile.tempdir = None
    if place.statsd_port is not None:
        statsd.lead_to(place.statsd_port)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _write(path: str, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _close_all_but(keep: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 -- names of descriptors, not files to work with
        if (number := int(name)) not in keep:
            with contextlib.suppress(OSError):
                os.close(number)


def _redirect(log: Path) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    # The file is not ours alone: what an earlier process of this user has put there is not to be followed.
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o660)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)


def _read(source: int) -> Run:
    with os.fdopen(source, "rb") as file:
        run = decode_command(file.read(MAX_LINE_BYTES))
    assert isinstance(run, Run)
    return run


def _send(report: Report, report_to: int) -> None:
    data = json.dumps(
        {
            "outcome": report.outcome,
            "exit_code": report.exit_code,
            "detail": report.detail,
            "delivered": report.delivered,
        }
    )
    os.write(report_to, data.encode())
    os.close(report_to)


def _end_by(number: int) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)
