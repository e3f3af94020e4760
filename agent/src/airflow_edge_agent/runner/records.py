"""A job's folder, as the runner writes it: which process it is, how it ended, and nothing left of its temp files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import child, processes
from .files import write_whole
from .outcome import Report
from .wire import JobResult, Outcome

RESULT_FILE = "result.json"
PID_FILE = "pid.json"

LEFTOVER_SECONDS = 5.0
"""How long the result of a job waits for the end of processes that it left behind and that were killed."""

_RUNNER_DIED = "the runner died; its task was ended"


def is_shared(folder: Path) -> bool:
    """Tell whether the group of that folder is to have what is made in it: it was made for a daemon of another user.

    :raises OSError: there is no such folder.
    """
    mode = folder.stat().st_mode
    return bool(mode & stat.S_ISGID and mode & stat.S_IWGRP)


def make_folder(folder: Path) -> None:
    """Make a job's folder; one that is there already is taken.

    :raises OSError: it cannot be made, or is none.
    """
    # The mask of this process decides whether the group keeps its rights.
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o770)
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise NotADirectoryError(f"{folder} is no folder")


def write_pid_file(folder: Path, process: processes.Process) -> None:
    """Write down which process leads the job, and that it is this runner's.

    :raises OSError: it cannot be written.
    """
    runner = processes.look(os.getpid())
    assert runner is not None
    content = {
        "pid": process.pid,
        "start_time": process.start_time,
        "boot_id": processes.boot_id(),
        "runner": {"pid": runner.pid, "start_time": runner.start_time},
    }
    write_whole(folder / PID_FILE, content, sync=False)


def make_result(
    job_id: str,
    report: Report,
    *,
    cpu_seconds: float = 0.0,
    peak_memory_bytes: int = 0,
    wall_seconds: float = 0.0,
    io_read_bytes: int | None = None,
    io_write_bytes: int | None = None,
) -> JobResult:
    """Make a result that has come about now."""
    return JobResult(
        job_id=job_id,
        outcome=report.outcome,
        exit_code=report.exit_code,
        detail=report.detail,
        cpu_seconds=round(cpu_seconds, 6),
        peak_memory_bytes=peak_memory_bytes,
        wall_seconds=round(wall_seconds, 6),
        finished_at=datetime.now(UTC).isoformat(),
        io_read_bytes=io_read_bytes,
        io_write_bytes=io_write_bytes,
    )


def write_result(folder: Path, result: JobResult) -> None:
    """Write ``result.json`` so that it is there in full or not at all, whatever happens."""
    try:
        write_whole(folder / RESULT_FILE, result.as_dict(), sync=True)
    except OSError as error:
        # The daemon still gets the result through the socket, if it is there.
        print(f"edge-runner: cannot write the result of job {result.job_id}: {error}", file=sys.stderr)  # noqa: T201 -- a program's stderr


def remove_temp(folder: Path) -> None:
    """Remove what the job had for its temporary files."""
    temp = folder / child.TEMP_FOLDER
    try:
        temp.rmdir()
    except OSError:
        shutil.rmtree(temp, ignore_errors=True)


def clean_up_after_another(folder: Path) -> list[str]:
    """End the jobs of runners that were killed, and record them as lost.

    Jobs without any process left are recorded, too, if their runner died in this boot. Where even that is not known,
    the daemon knows what to make of them.

    :return: the ids of these jobs.
    """
    boot = processes.boot_id()
    cleaned = []
    for pid_file in sorted(folder.glob(f"*/{PID_FILE}")):
        job_folder = pid_file.parent
        if (job_folder / RESULT_FILE).exists():
            continue
        try:
            content = json.loads(pid_file.read_text(encoding="utf-8"))
            leader, runner = _identity(content), _identity(content["runner"])
            of_boot = str(content["boot_id"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if of_boot != boot or _is_at_work(*runner):
            continue
        _end_family(*leader)
        remove_temp(job_folder)
        write_result(job_folder, make_result(job_folder.name, Report(Outcome.LOST, None, _RUNNER_DIED)))
        cleaned.append(job_folder.name)
    return cleaned


def _identity(content: Any) -> tuple[int, int]:
    return int(content["pid"]), int(content["start_time"])


def _is_at_work(pid: int, start_time: int) -> bool:
    process = processes.look(pid)
    return process is not None and process.start_time == start_time and not process.dead


def _end_family(pid: int, start_time: int) -> None:
    """Kill a process, its offspring and its session, and wait for their end."""
    leader = processes.look(pid)
    if leader is not None and leader.start_time != start_time:
        # The pid is another process's by now, and pids of living sessions are not given away: nobody is left.
        return
    hit = processes.kill_family(pid, session=pid, since=start_time)
    deadline = time.monotonic() + LEFTOVER_SECONDS
    while any(processes.lives(process) for process in hit) and time.monotonic() < deadline:
        time.sleep(0.01)
