"""The runner's command line and what it makes of its process before anything else runs."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

from . import child, jobs, processes, sdk, server, warm

EXIT_UNUSABLE_FOLDER = 73

_NOT_FOR_TASKS = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
"""Variables by which a service manager speaks to the daemon."""


def main(*, warm_up: Callable[[], Iterator[None]] = warm.steps, body: child.Body = sdk.supervise) -> int:
    """Run the runner, and return its exit code.

    :param warm_up: loads, in steps, what every job needs.
    :param body: works on one job, in a process of its own.
    """
    options = _parse()
    _prepare_process()
    _prepare_environment(options.jobs_dir)
    try:
        runner = server.Runner(
            socket_path=options.socket,
            jobs_folder=options.jobs_dir,
            idle_seconds=options.idle_seconds,
            warm_up=warm_up,
            body=body,
        )
        jobs.clean_up_after_another(options.jobs_dir)
    except server.Taken as reason:
        return _fail(server.EXIT_TAKEN, str(reason))
    except OSError as error:
        return _fail(EXIT_UNUSABLE_FOLDER, f"cannot use {error.filename or options.socket}: {error.strerror or error}")
    _hide_main()
    return runner.run()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="edge-runner", description="Runs Airflow workloads for an edge agent.")
    parser.add_argument("--socket", type=Path, required=True, help="where to listen")
    parser.add_argument("--jobs-dir", type=Path, required=True, help="folder that holds a folder per job")
    parser.add_argument("--idle-seconds", type=float, required=True, help="exit after so long without a job")
    options = parser.parse_args()
    options.jobs_dir = options.jobs_dir.absolute()
    options.socket = options.socket.absolute()
    return options


def _prepare_process() -> None:
    os.umask(0o077)
    # Without a session of its own the end of the daemon's terminal would be ours; a leader has one already.
    with contextlib.suppress(PermissionError):
        os.setsid()
    processes.become_subreaper()
    processes.set_name("edge-runner")
    os.chdir("/")


def _prepare_environment(jobs_folder: Path) -> None:
    for name in _NOT_FOR_TASKS:
        os.environ.pop(name, None)
    # The SDK puts a job's log at a path below this one.
    os.environ["AIRFLOW__LOGGING__BASE_LOG_FOLDER"] = str(jobs_folder)
    os.environ["AIRFLOW__LOGGING__FILE_TASK_HANDLER_NEW_FILE_PERMISSIONS"] = "0o600"
    os.environ["AIRFLOW__LOGGING__FILE_TASK_HANDLER_NEW_FOLDER_PERMISSIONS"] = "0o700"


def _hide_main() -> None:
    """Give tasks a ``__main__`` of their own: multiprocessing would run ours again in every process it spawns."""
    sys.modules["__main__"] = types.ModuleType("__main__")


def _fail(code: int, text: str) -> int:
    print(f"edge-runner: {text}", file=sys.stderr)  # noqa: T201 -- a program's stderr
    return code
