"""The jobs of a runner: forking, signalling and reaping their processes, and recording how they ended."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from . import child, processes
from .outcome import Report, conclude
from .wire import Event, Finished, JobResult, Outcome, Refused, Run, RunningJob, Started

RESULT_FILE = "result.json"

_LEFTOVER_SECONDS = 5.0
"""How long the result of a job waits for the end of processes that it left behind and that were killed."""

_PIPE_BYTES = 64 * 1024


@dataclass(slots=True, kw_only=True)
class _Job:
    job_id: str
    folder: Path
    process: processes.Process
    report_from: int
    begun: float
    asked: int | None = None
    ended: float | None = None
    status: int = 0
    cpu_seconds: float = 0.0
    peak_memory_bytes: int = 0


class Jobs:
    """All jobs of one runner.

    Between two calls nothing happens here: the owner calls :meth:`reap` whenever a child may have ended, and again not
    later than :meth:`due` says.
    """

    def __init__(self, folder: Path, emit: Callable[[Event], None], body: child.Body) -> None:
        self._folder = folder
        self._emit = emit
        self._body = body
        self._jobs: dict[int, _Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def running(self) -> tuple[RunningJob, ...]:
        """Return the jobs that have no result yet."""
        return tuple(
            RunningJob(job_id=job.job_id, pid=pid, start_time=job.process.start_time) for pid, job in self._jobs.items()
        )

    def start(self, run: Run, leave: Callable[[], None]) -> None:
        """Fork the process of a job and tell ``started``, or tell ``refused``.

        :param leave: called in the child, to let go of what belongs to the runner.
        """
        folder = self._folder / run.job_id
        if (folder / RESULT_FILE).exists() or any(job.job_id == run.job_id for job in self._jobs.values()):
            self._emit(Refused(job_id=run.job_id, detail="this job has been started before"))
            return
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            process, report_from = self._fork(run, folder, leave)
        except OSError as error:
            self._emit(Refused(job_id=run.job_id, detail=f"no process could be started for the job: {error}"))
            return
        self._jobs[process.pid] = _Job(
            job_id=run.job_id, folder=folder, process=process, report_from=report_from, begun=time.monotonic()
        )
        self._emit(Started(job_id=run.job_id, pid=process.pid, start_time=process.start_time))

    def _fork(self, run: Run, folder: Path, leave: Callable[[], None]) -> tuple[processes.Process, int]:
        report_from, report_to = os.pipe()
        # The child unblocks them when it has handlers of its own; until then none may reach the runner's.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                child.main(run, folder, report_to, self._body, leave)
        except OSError:
            os.close(report_from)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(report_to)
        os.set_blocking(report_from, False)
        process = processes.look(pid)
        # It is our child and nobody has waited for it, so it is there, if only as a zombie.
        assert process is not None
        return process, report_from

    def signal(self, job_id: str, number: int) -> None:
        """Ask a job to end (SIGTERM), or end it with all it has started (SIGKILL)."""
        job = next((job for job in self._jobs.values() if job.job_id == job_id), None)
        if job is None:
            self._emit(Refused(job_id=job_id, detail="no such job is running here"))
            return
        if job.ended is not None:
            return
        job.asked = number
        if number == signal.SIGKILL:
            processes.kill_family(job.process.pid, session=job.process.pid, since=job.process.start_time)
        else:
            processes.send(job.process, number)

    def signal_all(self, number: int) -> None:
        """Send a signal to every job."""
        for job in list(self._jobs.values()):
            self.signal(job.job_id, number)

    def never_started(self, job_id: str, detail: str) -> None:
        """Record the end of a job that was ended before it had a process."""
        folder = self._folder / job_id
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
        result = _result(job_id, Report(Outcome.KILLED, None, detail))
        _write_result(folder, result)
        self._emit(Finished(job_id=job_id, result=result))

    def due(self) -> float | None:
        """Return the monotonic time at which :meth:`reap` must be called, if nothing happens before."""
        ends = [job.ended + _LEFTOVER_SECONDS for job in self._jobs.values() if job.ended is not None]
        return min(ends, default=None)

    def reap(self) -> None:
        """Wait for all children that have ended, kill what they left behind, and finish their jobs."""
        self._wait()
        ended = [job for job in self._jobs.values() if job.ended is not None]
        if not ended and self._jobs:
            # Every living job's process adopts what its workload abandons, so there is nobody else to look after.
            return
        left = self._kill_leftovers()
        for job in ended:
            assert job.ended is not None
            if not left or time.monotonic() >= job.ended + _LEFTOVER_SECONDS:
                self._finish(job)

    def _wait(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            job = self._jobs.get(pid)
            if job is not None:
                job.ended = time.monotonic()
                job.status = os.waitstatus_to_exitcode(status)
            else:
                job = self._some_ended()
            if job is not None:
                job.cpu_seconds += usage.ru_utime + usage.ru_stime
                job.peak_memory_bytes = max(job.peak_memory_bytes, usage.ru_maxrss * 1024)

    def _some_ended(self) -> _Job | None:
        # A leftover belongs to a job that has ended; to which, if two end at once, only matters for the bill.
        return next((job for job in self._jobs.values() if job.ended is not None), None)

    def _kill_leftovers(self) -> bool:
        """Kill our children that are no job's process, and tell whether there were any.

        Their own children come to us when they are gone, and are killed in the next round.
        """
        alive = {pid for pid, job in self._jobs.items() if job.ended is None}
        left = False
        for process in processes.own_children():
            if process.pid not in alive:
                left = True
                processes.kill_family(process.pid)
        return left

    def _finish(self, job: _Job) -> None:
        report = conclude(_read_report(job.report_from), status=job.status, asked=job.asked)
        del self._jobs[job.process.pid]
        result = _result(job.job_id, report, job)
        _write_result(job.folder, result)
        # Before the daemon hears of it: from then on the folder is the daemon's to remove.
        _remove_temp(job.folder)
        self._emit(Finished(job_id=job.job_id, result=result))


def clean_up_after_another(folder: Path) -> None:
    """End the jobs of a runner that was killed, and record them as lost.

    Jobs without any process left are not touched: the daemon knows what to make of them.
    """
    boot = processes.boot_id()
    for pid_file in sorted(folder.glob(f"*/{child.PID_FILE}")):
        job_folder = pid_file.parent
        if (job_folder / RESULT_FILE).exists():
            continue
        try:
            content = json.loads(pid_file.read_text(encoding="utf-8"))
            pid, start_time, of_boot = int(content["pid"]), int(content["start_time"]), str(content["boot_id"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if of_boot != boot or not _end_family(pid, start_time):
            continue
        _write_result(job_folder, _result(job_folder.name, Report(Outcome.LOST, None, _RUNNER_DIED)))
        _remove_temp(job_folder)


_RUNNER_DIED = "the runner died; its task was ended"


def _end_family(pid: int, start_time: int) -> bool:
    """Kill a process and its session, wait for their end, and tell whether there was anybody."""
    leader = processes.look(pid)
    if leader is not None and leader.start_time != start_time:
        # The pid is another process's by now, and pids of living sessions are not given away: nobody is left.
        return False
    hit = processes.kill_family(pid, session=pid, since=start_time)
    deadline = time.monotonic() + _LEFTOVER_SECONDS
    while any(_lives(process) for process in hit) and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(hit)


def _lives(process: processes.Process) -> bool:
    now = processes.look(process.pid)
    return now is not None and now.start_time == process.start_time and not now.dead


def _read_report(source: int) -> Report | None:
    try:
        data = json.loads(os.read(source, _PIPE_BYTES))
        return Report(Outcome(data["outcome"]), data["exit_code"], data["detail"], data["delivered"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    finally:
        os.close(source)


def _result(job_id: str, report: Report, job: _Job | None = None) -> JobResult:
    return JobResult(
        job_id=job_id,
        outcome=report.outcome,
        exit_code=report.exit_code,
        detail=report.detail,
        cpu_seconds=round(job.cpu_seconds, 6) if job else 0.0,
        peak_memory_bytes=job.peak_memory_bytes if job else 0,
        wall_seconds=round((job.ended or time.monotonic()) - job.begun, 6) if job else 0.0,
        finished_at=datetime.now(UTC).isoformat(),
    )


def _write_result(folder: Path, result: JobResult) -> None:
    """Write ``result.json`` so that it is there in full or not at all, whatever happens."""
    temporary = folder / f".{RESULT_FILE}"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(result.as_dict(), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / RESULT_FILE)
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        # The daemon still gets the result through the socket, if it is there.
        print(f"edge-runner: cannot write the result of job {result.job_id}: {error}", file=sys.stderr)  # noqa: T201 -- a program's stderr


def _remove_temp(folder: Path) -> None:
    temp = folder / child.TEMP_FOLDER
    try:
        temp.rmdir()
    except OSError:
        shutil.rmtree(temp, ignore_errors=True)
