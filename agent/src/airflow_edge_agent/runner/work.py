"""The two ways in which a job is worked on: supervised by a process of its own, or by a thread of the runner."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TextIO

from . import child, processes, records, sdk, threaded
from .outcome import AS_ASKED, Report, Terminated, conclude
from .wire import Outcome, Run, encode
from .zygote import Zygote

_PIPE_BYTES = 64 * 1024

_THREAD = "job "

_ABANDON_SECONDS = 1.0
"""How long a thread may take to notice that its task was killed. It may sleep between two calls to a silent server.
Then the job ends without it, and it ends when it wakes."""


class Work(ABC):
    """How one job is going. Used by the runner's main thread alone."""

    def __init__(self) -> None:
        self.process: processes.Process | None = None
        """The process that leads the job's others."""
        self.asked: int | None = None
        """The last signal that was passed on to the job."""
        self.why = AS_ASKED
        self.ended: float | None = None
        """Monotonic time at which its supervisor and its leading process were seen to have ended."""
        self.cpu_seconds = 0.0
        """Of all its processes and its supervisor."""
        self.supervisor_cpu_seconds = 0.0
        """Of that, what a thread of this process has used."""
        self.peak_memory_bytes = 0

    @abstractmethod
    def poll(self) -> None:
        """See what has happened."""

    @abstractmethod
    def signal(self, number: int, why: str) -> None:
        """Ask the job to end (SIGTERM), or end it with all it has started (SIGKILL)."""

    @abstractmethod
    def report(self) -> Report:
        """Return how it ended. For work that has."""

    def due(self) -> float | None:
        """Return the monotonic time at which :meth:`poll` may find something that nothing wakes it for."""
        return None

    def close(self) -> None:  # noqa: B027 -- not every work has something to give back
        """Give back what it has open."""


class ProcessWork(Work):
    """A job in the hands of a process of its own.

    :raises OSError: it could not be forked.
    """

    def __init__(self, run: Run, place: child.Place, zygote: Zygote) -> None:
        super().__init__()
        self._zygote = zygote
        self._status = 0
        self._from, report_to = os.pipe()
        # A file without a name, because it may be longer than what a pipe takes before anybody reads it.
        source = os.memfd_create("job", os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(source), "wb") as file:
                file.write(encode(run))
            os.lseek(source, 0, os.SEEK_SET)
            pid = zygote.fork_job(place, source, report_to)
        except OSError:
            os.close(self._from)
            raise
        finally:
            os.close(source)
            os.close(report_to)
        os.set_blocking(self._from, False)
        self.process = processes.look(pid)
        # It is our child and nobody has waited for it, so it is there, if only as a zombie.
        assert self.process is not None
        records.write_pid_file(place.folder, self.process)

    def poll(self) -> None:
        """See whether the process has ended."""
        assert self.process is not None
        if self.ended is None and (found := self._zygote.reap(self.process.pid)) is not None:
            self.ended = time.monotonic()
            status, self.cpu_seconds, self.peak_memory_bytes = found
            self._status = os.waitstatus_to_exitcode(status)

    def signal(self, number: int, why: str) -> None:
        """Signal the process; its own family goes with it."""
        assert self.process is not None
        if self.ended is not None:
            return
        self.asked, self.why = number, why
        if number == signal.SIGKILL:
            processes.kill_family(self.process.pid, session=self.process.pid, since=self.process.start_time)
        else:
            processes.send(self.process, number)

    def report(self) -> Report:
        """Return what the process has reported, or what its end says."""
        try:
            data = json.loads(os.read(self._from, _PIPE_BYTES))
            report = Report(Outcome(data["outcome"]), data["exit_code"], data["detail"], data["delivered"])
        except (OSError, ValueError, KeyError, TypeError):
            report = None
        return conclude(report, status=self._status, asked=self.asked, why=self.why)

    def close(self) -> None:
        """Close the pipe of its report."""
        os.close(self._from)


class ThreadWork(Work):
    """A task that a thread of this process supervises."""

    def __init__(self, run: Run, place: child.Place, zygote: Zygote, wake: Callable[[], None]) -> None:
        """Start the thread.

        :param wake: makes the main thread poll soon.
        :raises OSError: its log cannot be opened.
        """
        super().__init__()
        self._run = run
        self._place = place
        self._zygote = zygote
        self._wake = wake
        self._asked_at: float | None = None
        self._done: float | None = None
        self._report: Report | None = None
        self._thread_cpu_seconds = 0.0
        output = _open_log(place)
        self._supervision = threaded.Supervision(
            fork=self._fork, reap=zygote.reap, on_process=self._note_process, output=output
        )
        try:
            threading.Thread(target=self._supervise, name=f"{_THREAD}{run.job_id}", daemon=True).start()
        except RuntimeError as error:
            output.close()
            raise OSError(errno.EAGAIN, str(error)) from None

    def poll(self) -> None:
        """See whether there is a process, and whether it and the thread have ended."""
        supervision = self._supervision
        if self.process is None:
            self.process = supervision.process
        if self.ended is not None:
            return
        done = self._done
        if done is not None and supervision.exit_code is None:
            # A supervisor that failed leaves its task behind.
            supervision.kill()
        given_up = done is None and self._asked_at is not None and time.monotonic() >= self._asked_at + _ABANDON_SECONDS
        if done is None and not given_up:
            return
        if supervision.process is None or supervision.reap() is not None:
            self.ended = done or time.monotonic()
            self.supervisor_cpu_seconds = self._thread_cpu_seconds
            self.cpu_seconds = self._thread_cpu_seconds + supervision.cpu_seconds
            self.peak_memory_bytes = supervision.peak_memory_bytes

    def due(self) -> float | None:
        """Return when a thread that does not notice its end is given up."""
        return None if self._asked_at is None or self.ended is not None else self._asked_at + _ABANDON_SECONDS

    def signal(self, number: int, why: str) -> None:
        """Signal the task's process as its supervisor would, or end it with all it has started."""
        if self._done is not None or self.ended is not None:
            return
        self.asked, self.why = number, why
        if number == signal.SIGKILL:
            self._supervision.abort()
        else:
            self._supervision.terminate()
        if self._supervision.aborted:
            self._asked_at = time.monotonic()

    def report(self) -> Report:
        """Return what the thread has found."""
        return conclude(self._report, status=0, asked=self.asked, why=self.why)

    def _fork(self, **sockets: int) -> int:
        return self._zygote.fork_task(self._place, **sockets)

    def _note_process(self, process: processes.Process) -> None:
        records.write_pid_file(self._place.folder, process)
        self._wake()

    def _supervise(self) -> None:
        report: Report | None = None
        try:
            report = sdk.supervise_on_thread(self._run, self._supervision)
        except Terminated:
            pass
        except BaseException as error:  # noqa: BLE001 -- nothing may pass: there is nobody above
            with contextlib.suppress(OSError, ValueError):
                traceback.print_exception(error, file=self._supervision.output)
            report = Report(Outcome.CRASHED, None, f"the supervisor failed: {sdk.explain_error(error, self._run)}")
        self._thread_cpu_seconds = time.thread_time()
        self._report = report
        self._supervision.close()
        self._done = time.monotonic()
        self._wake()


def _open_log(place: child.Place) -> TextIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(place.folder / child.SUPERVISOR_LOG, flags, 0o660), "w", encoding="utf-8")


def thread_count() -> int:
    """Return how many threads are at work on jobs, those that were given up included."""
    return sum(thread.name.startswith(_THREAD) for thread in threading.enumerate())


def say(text: str) -> None:
    """Say something on the runner's own behalf."""
    print(f"edge-runner: {text}", file=sys.stderr, flush=True)  # noqa: T201 -- a program's stderr
