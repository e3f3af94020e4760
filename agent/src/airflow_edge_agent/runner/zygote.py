"""The zygote: a warm, single-threaded process that holds nothing of any job, and that all of them are forked from.

The runner forks it when everything is loaded and before it has read a word about a job. So what a job's process
inherits is the same for all, and no token or workload of another job is in its memory. What it makes are the runner's
children, not its own. If the runner dies, it ends what is left of its jobs while their family trees are still whole.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import struct
import threading
from pathlib import Path
from typing import NoReturn, Protocol

from . import child, processes, records
from .siblings import Cloner

_ANSWER = struct.Struct("i")
_MOST_REQUEST_BYTES = 32 * 1024
_MOST_DESCRIPTORS = 8
_RUNNER_ENDS_SECONDS = 10.0


class TaskMain(Protocol):
    """What a task's process does with the far ends of its supervisor's sockets."""

    def __call__(self, *, requests: int, stdout: int, stderr: int, logs: int) -> NoReturn:
        """Run the task."""


class Zygote:
    """The runner's side: asks for processes, and knows which of the runner's children came of it."""

    def __init__(self, jobs_folder: Path, body: child.Body, task_main: TaskMain) -> None:
        """Fork it.

        :param jobs_folder: where to look for the jobs of a runner that died.
        :raises OSError: it cannot be forked.
        """
        self._connection, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        runner = os.getpid()
        pid = os.fork()
        if pid == 0:
            _be_zygote(far_end, runner, jobs_folder, body, task_main)
        far_end.close()
        self.pid = pid
        self.alive = True
        self.lock = threading.Lock()
        """Held while a process comes or goes: then :attr:`made` and the kernel's list of children agree."""
        self.made: set[int] = set()
        """Pids of its processes that nobody has waited for yet."""

    def fork_job(self, place: child.Place, source: int, report_to: int) -> int:
        """Fork a process that supervises a job, and return its pid.

        :param source: file that holds the job.
        :raises OSError: it could not be forked, or could not find its place.
        """
        return self._fork("job", place, [source, report_to])

    def fork_task(self, place: child.Place, *, requests: int, stdout: int, stderr: int, logs: int) -> int:
        """Fork a process that runs a task, supervised by the caller, and return its pid.

        :raises OSError: it could not be forked, or could not find its place.
        """
        return self._fork("task", place, [requests, stdout, stderr, logs])

    def reap(self, pid: int) -> tuple[int, float, int] | None:
        """Wait for one of its processes without blocking.

        :return: wait status, CPU seconds, peak memory in bytes; or ``None``, it lives.
        :raises ChildProcessError: it is no such process.
        """
        with self.lock:
            found, status, usage = os.wait4(pid, os.WNOHANG)
            if found == 0:
                return None
            self.made.discard(pid)
        return status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024

    def has_died(self) -> bool:
        """Tell whether it is gone, so that nothing can be started any more."""
        if self.alive:
            try:
                self.alive = os.waitpid(self.pid, os.WNOHANG)[0] == 0
            except ChildProcessError:
                self.alive = False
        return not self.alive

    def _fork(self, kind: str, place: child.Place, descriptors: list[int]) -> int:
        request = {
            "kind": kind,
            "folder": str(place.folder),
            "runner": place.runner,
            "procs": place.procs,
            "statsd_port": place.statsd_port,
        }
        status_from, status_to = os.pipe()
        try:
            with self.lock:
                pid = self._ask(json.dumps(request).encode(), [status_to, *descriptors])
                self.made.add(pid)
        except OSError:
            os.close(status_from)
            raise
        finally:
            os.close(status_to)
        with os.fdopen(status_from, "rb") as status:
            if problem := status.read(_MOST_REQUEST_BYTES):
                raise OSError(errno.EIO, problem.decode(errors="replace"))
        return pid

    def _ask(self, request: bytes, descriptors: list[int]) -> int:
        try:
            socket.send_fds(self._connection, [request], descriptors)
            answer = self._connection.recv(_ANSWER.size)
        except OSError:
            answer = b""
        if len(answer) != _ANSWER.size:
            self.alive = False
            raise OSError(errno.ESRCH, "the runner's zygote has died")
        pid: int = _ANSWER.unpack(answer)[0]
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return pid


def _be_zygote(
    connection: socket.socket, runner: int, jobs_folder: Path, body: child.Body, task_main: TaskMain
) -> NoReturn:
    try:
        alive = os.pidfd_open(runner)
        if os.getppid() == runner:
            _forget_runner({connection.fileno(), alive})
            _serve(connection, body, task_main)
            # It closes its end a moment before it has ended.
            select.select([alive], [], [], _RUNNER_ENDS_SECONDS)
            records.clean_up_after_another(jobs_folder)
    finally:
        os._exit(0)


def _serve(connection: socket.socket, body: child.Body, task_main: TaskMain) -> None:
    """Fork what is asked for, until the runner has ended."""
    cloner = Cloner()
    while True:
        request, descriptors, _, _ = socket.recv_fds(
            connection, _MOST_REQUEST_BYTES, _MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
        if not request:
            return
        try:
            answer = cloner.fork()
        except OSError as error:
            answer = -(error.errno or errno.EAGAIN)
        if answer == 0:
            connection.close()
            _be_child(request, descriptors, body, task_main)
        for descriptor in descriptors:
            os.close(descriptor)
        try:
            connection.send(_ANSWER.pack(answer))
        except OSError:
            return


def _forget_runner(keep: set[int]) -> None:
    processes.hide_memory()
    processes.set_name("edge-zygote")
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Whoever ends a whole group of processes means the runner, which needs us to the last.
        signal.signal(number, signal.SIG_IGN)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 -- names of descriptors, not files to work with
        if (descriptor := int(name)) > 2 and descriptor not in keep:  # noqa: PLR2004 -- standard streams stay
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _be_child(request: bytes, descriptors: list[int], body: child.Body, task_main: TaskMain) -> NoReturn:
    told = json.loads(request)
    place = child.Place(
        folder=Path(told["folder"]), runner=told["runner"], procs=told["procs"], statsd_port=told["statsd_port"]
    )
    status, *rest = descriptors
    if told["kind"] == "job":
        child.be_job(place, status=status, source=rest[0], report_to=rest[1], body=body)
    child.enter(place, status, set(rest))
    requests, stdout, stderr, logs = rest
    try:
        task_main(requests=requests, stdout=stdout, stderr=stderr, logs=logs)
    finally:
        child.leave(1)
