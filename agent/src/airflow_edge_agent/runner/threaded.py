"""Runs the Task SDK's supervisor for many tasks in one process, on a thread each.

The SDK is written for one task per supervising process. What is process-wide there is made the thread's own here: the
fork of the task's process, which goes to the zygote; the handlers of signals, of which a thread can have none; the
supervisor's log; and the secrets it masks. All of it is put into the names that the SDK's own modules look up, and
nothing of it reaches a task's process. :func:`install` looks first whether this SDK is as expected.
"""

from __future__ import annotations

import contextlib
import enum
import importlib
import inspect
import io
import os
import select
import signal
import sys
import threading
import types
from collections.abc import Callable
from typing import Any, NoReturn, TextIO, TypeAlias, cast

from . import processes
from .outcome import Observed, Terminated

_LOCALS = frozenset({"child_requests", "child_stdout", "child_stderr", "child_logs", "target"})
"""What the SDK calls the far ends of a task's sockets, and what is to run, where it forks."""

_FORK_MAIN = ("requests", "child_stdout", "child_stderr", "log_fd", "target")

_SUPERVISOR = "airflow.sdk.execution_time.supervisor"


Usage: TypeAlias = tuple[int, float, int]
"""Wait status of a process, its CPU seconds, its peak memory in bytes."""


class Unsupported(Exception):
    """The installed Task SDK, or its configuration, wants a supervising process per job. The message says why."""


class Supervision:
    """What belongs to one supervised task, for the thread that supervises it.

    :param fork: forks the task's process; takes the far ends of its sockets.
    :param reap: waits for a process without blocking; returns its status, CPU seconds and peak memory in bytes.
    :param on_process: is told the task's process, before the SDK goes on.
    :param output: takes what the supervisor says.
    """

    def __init__(
        self,
        *,
        fork: Callable[..., int],
        reap: Callable[[int], Usage | None],
        on_process: Callable[[processes.Process], None],
        output: TextIO,
    ) -> None:
        self.output = output
        self.seen = Observed()
        self.aborted = False
        self.process: processes.Process | None = None
        self.handle = -1
        """pidfd of the task's process; readable when it has ended."""
        self.cpu_seconds = 0.0
        self.peak_memory_bytes = 0
        self.exit_code: int | None = None
        self._fork = fork
        self._reap = reap
        self._on_process = on_process
        self._lock = threading.Lock()

    def fork(self, **sockets: int) -> int:
        """Fork the task's process, once.

        :raises Terminated: the job is to end.
        """
        self.check()
        pid = self._fork(**sockets)
        self.handle = os.pidfd_open(pid)
        process = processes.look(pid)
        # Nobody but this thread waits for it, so it is there, if only as a zombie.
        assert process is not None
        with self._lock:
            self.process = process
        self._on_process(process)
        if not self.aborted:
            return pid
        self.kill()
        raise Terminated

    def check(self) -> None:
        """Stop the thread that calls this if its job is to end.

        :raises Terminated: it is.
        """
        if self.aborted:
            raise Terminated

    def abort(self) -> None:
        """End the task with all it has started, and let the supervisor say nothing more to anybody."""
        with self._lock:
            self.aborted = True
        self.kill()

    def terminate(self) -> None:
        """Ask the task to end, as the SDK's supervisor would, or abort it if it does not run yet."""
        if self.seen.started and self.process is not None:
            processes.send(self.process, signal.SIGTERM)
        elif self.seen.delivered is None:
            self.abort()

    def kill(self) -> None:
        """End the task with all it has started."""
        if self.process is not None and self.exit_code is None:
            processes.kill_family(self.process.pid, session=self.process.pid, since=self.process.start_time)

    def reap(self) -> int | None:
        """Return the exit code of the task's process, negative for a signal; ``None`` while it lives."""
        with self._lock:
            if self.exit_code is None and self.process is not None and (found := self._reap(self.process.pid)):
                status, self.cpu_seconds, self.peak_memory_bytes = found
                self.exit_code = os.waitstatus_to_exitcode(status)
            return self.exit_code

    def close(self) -> None:
        """Give back what it has open."""
        handle, self.handle = self.handle, -1
        if handle >= 0:
            os.close(handle)
        with contextlib.suppress(OSError):
            self.output.close()


class _Local(threading.local):
    supervision: Supervision | None = None


_local = _Local()


def current() -> Supervision | None:
    """Return what this thread supervises."""
    return _local.supervision


@contextlib.contextmanager
def supervising(supervision: Supervision) -> Any:
    """Make this thread the one that supervises that task."""
    _local.supervision = supervision
    try:
        yield
    finally:
        _local.supervision = None


def task_main(*, requests: int, stdout: int, stderr: int, logs: int) -> NoReturn:
    """Be a task's process, in a child of the zygote: go on where the SDK's supervisor would after its own fork."""
    from socket import socket  # noqa: PLC0415 -- loaded long ago, and of no use to others here

    module = importlib.import_module(_SUPERVISOR)
    ends = (socket(fileno=requests), socket(fileno=stdout), socket(fileno=stderr), logs)
    module._fork_main(*ends, module._subprocess_main)  # noqa: SLF001 -- its presence and its shape are checked at start
    os._exit(1)


def check() -> None:
    """Make sure that the SDK is one that can be supervised on threads.

    :raises Unsupported: it is not.
    """
    try:
        module = importlib.import_module(_SUPERVISOR)
        code = module.WatchedSubprocess.start.__func__.__code__
        if not set(code.co_varnames) >= _LOCALS or "fork" not in code.co_names:
            raise Unsupported("its supervisor forks in another way")
        begin, main = module._fork_main, module._subprocess_main  # noqa: SLF001 -- this is the check of it
        if tuple(inspect.signature(begin).parameters) != _FORK_MAIN or not callable(main):
            raise Unsupported("its tasks begin in another way")
        if module.os is not os or module.signal is not signal or not hasattr(module.psutil, "Process"):
            raise Unsupported("its supervisor uses other modules")
        masker = _masker()
        if not {"patterns", "replacer"} <= set(dir(masker)):
            raise Unsupported("it masks secrets in another way")
        if importlib.import_module("airflow.sdk.log").load_remote_log_handler() is not None:
            raise Unsupported("remote logging is configured for tasks, which takes turns in a process's environment")
    except (ImportError, AttributeError, TypeError) as error:
        raise Unsupported(f"it lacks a part: {error}") from None


def install(configure_logging: Callable[[TextIO], None]) -> None:
    """Make this process one that supervises on threads. The zygote must have been forked before.

    :param configure_logging: makes the SDK's loggers write to a stream.
    """
    module: Any = importlib.import_module(_SUPERVISOR)
    module.os = _Os(os)
    module.signal = _Signal(signal)
    module.psutil = _Psutil(module.psutil)
    sys.stderr = cast("TextIO", ThreadOutput(sys.stderr))
    configure_logging(sys.stderr)
    _mask_per_thread(_masker())


def _masker() -> Any:
    module = importlib.import_module("airflow.sdk._shared.secrets_masker.secrets_masker")
    return module._secrets_masker()  # noqa: SLF001 -- the one of the process, which no public name returns


class _Proxy(types.ModuleType):
    """A module with some names replaced."""

    def __init__(self, module: types.ModuleType) -> None:
        super().__init__(module.__name__)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _Os(_Proxy):
    def fork(self) -> int:
        supervision = current()
        if supervision is None:
            raise OSError("the runner does not fork by itself")
        # No variable may hold the frame: it would keep the sockets, too, until the garbage collector comes by.
        names = sys._getframe(1).f_locals  # noqa: SLF001 -- in CPython a public function, in spite of its name
        requests = names["child_requests"]
        pid = supervision.fork(
            requests=requests.fileno(),
            stdout=names["child_stdout"].fileno(),
            stderr=names["child_stderr"].fileno(),
            logs=names["child_logs"].fileno(),
        )
        # The other ends the SDK closes itself; this one it only forgets. Open, it would hide the task's end.
        requests.close()
        return pid


class _Signal(_Proxy):
    def signal(self, number: int, handler: Any) -> Any:
        # The runner signals a task itself. Its own handlers stay.
        if threading.current_thread() is threading.main_thread():
            return signal.signal(number, handler)
        return signal.SIG_DFL


class _Psutil(_Proxy):
    def __init__(self, module: types.ModuleType) -> None:
        super().__init__(module)
        self.Process = _make_process_class(module)


def _make_process_class(psutil: Any) -> Any:
    ends = enum.IntEnum("End", {number.name: -number.value for number in signal.Signals})  # type: ignore[misc] # names of this system

    class TaskProcess(psutil.Process):  # type: ignore[misc] # psutil is the task runtime's
        """The SDK's handle of a task's process; notes what the process has used when it has ended."""

        def wait(self, timeout: float | None = None) -> int | None:
            supervision = current()
            if supervision is None or supervision.process is None or supervision.process.pid != self.pid:
                waited: int | None = super().wait(timeout)
                return waited
            if timeout != 0:
                select.select([supervision.handle], [], [], timeout)
            code = supervision.reap()
            if code is None:
                raise psutil.TimeoutExpired(timeout, pid=self.pid)
            try:
                # The supervisor asks it for its name.
                return ends(code) if code < 0 else code
            except ValueError:
                return code

    return TaskProcess


class ThreadOutput(io.TextIOBase):
    """A text stream that leads to what the writing thread supervises, and to a stream of its own where it does not."""

    encoding = "utf-8"

    def __init__(self, other: Any) -> None:
        self._other = other

    def write(self, text: str) -> int:
        """Write."""
        supervision = current()
        target = self._other if supervision is None else supervision.output
        with contextlib.suppress(OSError, ValueError):
            # A full disk must not end the supervisor of a task that has nothing to do with it.
            target.write(text)
            target.flush()
        return len(text)

    def flush(self) -> None:
        """Do nothing: each write has been passed on."""

    def fileno(self) -> int:
        """Return the descriptor of its own stream."""
        return int(self._other.fileno())

    def isatty(self) -> bool:
        """Return whether its own stream is a terminal."""
        return bool(self._other.isatty())


class _Masks(threading.local):
    def __init__(self) -> None:
        self.patterns: set[str] = set()
        self.replacer: Any = None


def _mask_per_thread(masker: Any) -> None:
    """Give each thread secrets of its own to mask: each job begins by forgetting all, and must not make others leak."""
    masks = _Masks()

    def of_thread(name: str) -> property:
        return property(lambda _: getattr(masks, name), lambda _, value: setattr(masks, name, value))

    patterns, replacer = masker.patterns, masker.replacer
    own = {"patterns": of_thread("patterns"), "replacer": of_thread("replacer")}
    masker.__class__ = type("ThreadSecretsMasker", (type(masker),), own)
    masker.patterns, masker.replacer = patterns, replacer
