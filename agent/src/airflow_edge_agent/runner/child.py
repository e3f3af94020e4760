"""What a freshly forked child does: leave everything of the runner behind, then work on its one job."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeAlias

from . import processes
from .outcome import Report
from .sdk import Terminated, explain_error
from .wire import Outcome, Run

PID_FILE = "pid.json"
TEMP_FOLDER = "tmp"
SUPERVISOR_LOG = "supervisor.log"

_MOST_LIKELY_OOM_VICTIM = 200
"""Added to a job's out-of-memory score: if the host runs short, a job goes, not the runner or the daemon."""

Body: TypeAlias = Callable[[Run], Report]


def main(run: Run, folder: Path, report_to: int, body: Body, leave: Callable[[], None]) -> NoReturn:
    """Be the process of one job, to its end.

    :param folder: the job's folder.
    :param report_to: pipe that takes the report, as JSON.
    :param body: does the job.
    :param leave: lets go of what belongs to the runner.
    """
    code = 70
    try:
        leave()
        _enter(folder, report_to)
        try:
            report = body(run)
        except Terminated:
            _end_by(signal.SIGTERM)
        except BaseException as error:  # noqa: BLE001 -- nothing may pass: above is the stack of the runner
            traceback.print_exception(error, file=sys.stderr)
            report = Report(Outcome.CRASHED, None, f"the supervisor failed: {explain_error(error, run)}")
        _send(report, report_to)
        code = 0
    except BaseException as error:  # noqa: BLE001 -- see above
        # Nothing of the job has run yet, or it has and nobody can be told: the pipe decides which.
        with contextlib.suppress(BaseException):
            _send(Report(Outcome.NOT_STARTED, None, f"could not be started: {explain_error(error, run)}"), report_to)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


def _enter(folder: Path, report_to: int) -> None:
    os.setsid()
    # Whatever the workload leaves behind comes to this process, so that its family stays complete.
    processes.become_subreaper()
    processes.set_name("edge-job")
    _reset_signals()
    _close_all_but({0, 1, 2, report_to})
    _redirect(folder / SUPERVISOR_LOG)
    _write_pid_file(folder / PID_FILE)
    temp = folder / TEMP_FOLDER
    temp.mkdir(mode=0o700, exist_ok=True)
    os.chdir(temp)
    os.environ["TMPDIR"] = str(temp)
    tempfile.tempdir = None
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_MOST_LIKELY_OOM_VICTIM))
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


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
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)


def _write_pid_file(path: Path) -> None:
    me = processes.look(os.getpid())
    assert me is not None
    content = {"pid": me.pid, "start_time": me.start_time, "boot_id": processes.boot_id()}
    path.write_text(json.dumps(content), encoding="utf-8")


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
