"""The jobs of a runner: starting, signalling and reaping what works on them, and recording how they ended."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from . import cgroups, child, processes, records, sdk
from .limits import GroupUsage, tell_oom, tell_unenforced
from .outcome import AS_ASKED, Report
from .wire import Event, Finished, JobResult, Outcome, Refused, Run, RunningJob, Started
from .work import ProcessWork, ThreadWork, Work
from .zygote import Zygote

LOG_FILE = "task.log"

_GROUP_ENDS_SECONDS = 1.0
"""How long killed processes of a cgroup are waited for. They are gone from the process table already, as a rule."""


@dataclass(slots=True, kw_only=True)
class _Job:
    run: Run
    folder: Path
    begun: float
    group: cgroups.JobCgroup | None
    work: Work
    told: bool = False
    """Whether the daemon has heard of its process."""


class Jobs:
    """All jobs of one runner.

    Between two calls nothing happens here: the owner calls :meth:`reap` whenever something may have ended, and again
    not later than :meth:`due` says.

    :param emit: takes what the daemon is to hear.
    :param wake: makes the owner call :meth:`reap` soon; called on any thread.
    """

    def __init__(self, folder: Path, emit: Callable[[Event], None], wake: Callable[[], None]) -> None:
        self._folder = folder
        self._emit = emit
        self._wake = wake
        self._jobs: dict[str, _Job] = {}
        self.zygote: Zygote | None = None
        """Forks the jobs' processes. Nothing is started before it is there."""
        self.on_threads = False
        """Whether threads of this process may supervise tasks."""
        self.groups: cgroups.Cgroups | None = None
        self.strangers: set[int] = set()
        """Pids of children of this process that belong to no job."""

    def __len__(self) -> int:
        return len(self._jobs)

    def running(self) -> tuple[RunningJob, ...]:
        """Return the jobs that have no result yet."""
        found = []
        for job in self._jobs.values():
            process = job.work.process or processes.look(os.getpid())
            assert process is not None
            found.append(RunningJob(job_id=job.run.job_id, pid=process.pid, start_time=process.start_time))
        return tuple(found)

    def start(self, run: Run) -> None:
        """Begin with a job, or tell ``refused``. When it has a process of its own, ``started`` is told."""
        folder = self._folder / run.job_id
        if (folder / records.RESULT_FILE).exists() or run.job_id in self._jobs:
            self._emit(Refused(job_id=run.job_id, detail="this job has been started before"))
            return
        group = None
        try:
            records.make_folder(folder)
            group = self._make_group(run, folder)
            work = self._begin(run, folder, group)
        except OSError as error:
            if group is not None:
                group.remove()
            self._emit(Refused(job_id=run.job_id, detail=f"no process could be started for the job: {error}"))
            return
        self._jobs[run.job_id] = job = _Job(run=run, folder=folder, begun=time.monotonic(), group=group, work=work)
        self._tell_started(job)

    def _make_group(self, run: Run, folder: Path) -> cgroups.JobCgroup | None:
        if self.groups is None:
            return None
        group = self.groups.create(run.job_id, run.limits)
        tell_unenforced(folder / LOG_FILE, group.unenforced)
        return group

    def _begin(self, run: Run, folder: Path, group: cgroups.JobCgroup | None) -> Work:
        assert self.zygote is not None
        procs = None if group is None else str(group.procs)
        place = child.Place(folder=folder, runner=os.getpid(), procs=procs, statsd_port=run.statsd_port)
        if self.on_threads and sdk.fits_a_thread(run):
            return ThreadWork(run, place, self.zygote, self._wake)
        return ProcessWork(run, place, self.zygote)

    def _tell_started(self, job: _Job) -> None:
        if not job.told and (process := job.work.process) is not None:
            job.told = True
            self._emit(Started(job_id=job.run.job_id, pid=process.pid, start_time=process.start_time))

    def signal(self, job_id: str, number: int, *, why: str = AS_ASKED) -> None:
        """Ask a job to end (SIGTERM), or end it with all it has started (SIGKILL).

        :param why: goes into its result.
        """
        job = self._jobs.get(job_id)
        if job is None:
            self._emit(Refused(job_id=job_id, detail="no such job is running here"))
            return
        job.work.signal(number, why)
        if number == signal.SIGKILL and job.group is not None:
            job.group.kill()

    def signal_all(self, number: int, *, why: str = AS_ASKED) -> None:
        """Send a signal to every job."""
        for job_id in list(self._jobs):
            self.signal(job_id, number, why=why)

    def never_started(self, job_id: str, detail: str) -> None:
        """Record the end of a job that was ended before anything was done about it."""
        folder = self._folder / job_id
        with contextlib.suppress(OSError):
            records.make_folder(folder)
        result = records.make_result(job_id, Report(Outcome.KILLED, None, detail))
        records.write_result(folder, result)
        self._emit(Finished(job_id=job_id, result=result))

    def due(self) -> float | None:
        """Return the monotonic time at which :meth:`reap` must be called, if nothing happens before."""
        works = [job.work for job in self._jobs.values()]
        ends = [work.ended + records.LEFTOVER_SECONDS for work in works if work.ended is not None]
        return min(ends + [due for work in works if (due := work.due()) is not None], default=None)

    def reap(self) -> None:
        """See what has ended, kill what it left behind, and finish the jobs that are over."""
        for job in self._jobs.values():
            job.work.poll()
            self._tell_started(job)
        left = self._kill_leftovers()
        for job in [job for job in self._jobs.values() if job.work.ended is not None]:
            assert job.work.ended is not None
            if not left or time.monotonic() >= job.work.ended + records.LEFTOVER_SECONDS:
                self._finish(job)

    def _kill_leftovers(self) -> bool:
        """Kill our children that no job's supervisor knows, and tell whether there were any that live.

        Every job's leading process adopts what its workload abandons, so they come to us when that has ended. Their own
        children come when they are gone, and are killed in the next round.
        """
        if self.zygote is None:
            return False
        with self.zygote.lock:
            known = self.zygote.made | self.strangers | {self.zygote.pid}
            unknown = processes.own_children() - known
        left = False
        for pid in unknown:
            try:
                found, _, usage = os.wait4(pid, os.WNOHANG)
            except ChildProcessError:
                continue
            if found == 0:
                left = True
                processes.kill_family(pid)
            elif (job := self._some_ended()) is not None:
                job.work.cpu_seconds += usage.ru_utime + usage.ru_stime
                job.work.peak_memory_bytes = max(job.work.peak_memory_bytes, usage.ru_maxrss * 1024)
        return left

    def _some_ended(self) -> _Job | None:
        # A leftover belongs to a job whose process has ended; to which, if there are two, only matters for the bill.
        return next((job for job in self._jobs.values() if job.work.ended is not None), None)

    def _finish(self, job: _Job) -> None:
        report = job.work.report()
        usage = GroupUsage()
        if job.group is not None:
            job.group.kill()
            job.group.wait_empty(_GROUP_ENDS_SECONDS)
            usage = job.group.usage()
            job.group.remove(_GROUP_ENDS_SECONDS)
            if (sentence := tell_oom(job.folder / LOG_FILE, usage, job.run.limits)) is not None:
                report = replace(report, detail=f"{sentence}; {report.detail}" if report.detail else sentence)
        del self._jobs[job.run.job_id]
        result = _result(job, report, usage)
        records.write_result(job.folder, result)
        # Before the daemon hears of it: from then on the folder is the daemon's to remove.
        records.remove_temp(job.folder)
        job.work.close()
        self._emit(Finished(job_id=job.run.job_id, result=result))


def _result(job: _Job, report: Report, usage: GroupUsage) -> JobResult:
    work = job.work
    return records.make_result(
        job.run.job_id,
        report,
        # The supervising thread is not in the job's cgroup.
        cpu_seconds=work.cpu_seconds if usage.cpu_seconds is None else usage.cpu_seconds + work.supervisor_cpu_seconds,
        peak_memory_bytes=work.peak_memory_bytes if usage.peak_memory_bytes is None else usage.peak_memory_bytes,
        wall_seconds=(work.ended or time.monotonic()) - job.begun,
        io_read_bytes=usage.io_read_bytes,
        io_write_bytes=usage.io_write_bytes,
    )
