"""The runner's loop: warm-up, jobs, signals, succession, and its own end."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import cgroups, child, clients, jobs, sdk, sockets, succession, threaded, warm, wire, zygote
from .work import say

EXIT_DONE = 0
EXIT_TAKEN = 75
"""Another runner serves this socket or these jobs."""
EXIT_UNUSABLE = 78
"""This task runtime cannot run tasks."""

_RECEIVE_BYTES = 64 * 1024
_FIRST_JOB_SECONDS = 10.0
"""How long a runner waits at least for its first job: a daemon has started it because it has one."""

_PROBLEM_SECONDS = 10.0
"""How long a runner that cannot work waits for a daemon to tell it so."""

_SUCCESSOR_SECONDS = 120.0
"""How long a successor may take to become ready."""

_KILL_SECONDS = 10.0
"""Time between telling jobs to end because the runner was told to, and ending them."""

_STOP_GRACE_SECONDS = 30.0
"""Time between telling jobs without an agent to end, and ending them."""


_STOPPED = "because the runner was told to stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a runner is given."""

    jobs_folder: Path
    listener: socket.socket
    locks: Sequence[int]
    socket_path: Path | None
    """Name of the socket, if it is this runner's to remove."""
    generation_path: Path
    """Where it listens after a successor has taken over."""
    shared: bool
    """Whether files and sockets are for the folder's group as well."""
    allowed: frozenset[int]
    """Users who may connect."""
    idle_seconds: float
    stop_without_agent_seconds: float
    """How long jobs go on without any daemon; 0: as long as they take."""
    groups: cgroups.Cgroups | cgroups.Missing
    notifier: sockets.Notifier
    program: Sequence[str]
    """What a successor is started from."""
    options: Sequence[str]
    """A successor's command line."""
    ready_to: int | None
    """Where a predecessor waits to hear that this one is ready."""
    predecessor: succession.Predecessor
    files: dict[str, str] = field(default_factory=dict)
    """What this runner is loaded from."""


class Runner:
    """One runner, from its warm-up to its end."""

    def __init__(self, setup: Setup, *, warm_up: Callable[[], Iterator[None]], body: child.Body) -> None:
        self._setup = setup
        self._warm_up = warm_up
        self._body = body
        self._listener = setup.listener
        self._wakeup, self._wakeup_writer = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._clients = clients.Clients(self._selector, allowed=setup.allowed, greet=self._hello, obey=self._obey)
        self._jobs = jobs.Jobs(setup.jobs_folder, self._clients.broadcast, self._wake)
        self._waiting: dict[str, wire.Run] | None = {}
        """Jobs that came while others may still be cancelled before they begin; ``None``: they begin at once."""
        self._renew_later = False
        """Asked to renew itself during the warm-up: does so after it."""
        self._versions: wire.Versions | None = None
        self._isolation: wire.Isolation | None = None
        self._stopping = False
        """Told to end by a signal: takes nothing more."""
        self._kill_due: float | None = None
        """When jobs that do not heed that are ended."""
        self._unneeded = False
        """Told by a daemon that it has no more work: does not wait for the idle time to pass."""
        self._leaving = False
        """A successor has taken over."""
        self._successor: succession.Successor | None = None
        self._successor_due = 0.0
        self._busy_until = time.monotonic()
        self._patient_seconds = max(setup.idle_seconds, _FIRST_JOB_SECONDS)
        self._alone_since: float | None = None
        self._told_to_stop = False
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        for end in (self._wakeup, self._wakeup_writer):
            end.settimeout(0)
        self._selector.register(self._wakeup, selectors.EVENT_READ, self._woken)
        _install_signals(self._wakeup_writer.fileno())

    def run(self) -> int:
        """Warm up, serve until there is nothing to do any more, and return the exit code."""
        begun = time.monotonic()
        try:
            for _ in self._warm_up():
                self._serve(0)
                if self._stopping:
                    return EXIT_DONE
            warm.freeze()
            self._fork_zygote()
            self._versions = warm.versions()
            seconds = round(time.monotonic() - begun, 3)
        except warm.UnusableRuntime as problem:
            self._give_up(str(problem))
            return EXIT_UNUSABLE
        else:
            self._clients.broadcast(
                wire.Ready(versions=self._versions, warmup_seconds=seconds, isolation=self._isolation)
            )
            if self._setup.ready_to is not None:
                # The unit is ready already, and listens to its main process alone, which is our predecessor still.
                succession.say_ready(self._setup.ready_to)
            else:
                self._setup.notifier.send("READY=1\nSTATUS=ready")
            self._read_what_waited()
            self._start_waiting()
            self._busy_until = time.monotonic()
            if self._renew_later:
                self._renew()
            while not self._done():
                self._serve(self._patience())
            return EXIT_DONE
        finally:
            self._end()

    def _end(self) -> None:
        # The interpreter drops our handlers before it ends, and being told twice must not change the exit code.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        # First the name, so that a daemon that finds no socket starts the next runner at once.
        if self._leaving:
            self._setup.generation_path.unlink(missing_ok=True)
        elif self._setup.socket_path is not None:
            self._setup.socket_path.unlink(missing_ok=True)
        if not self._leaving:
            self._setup.notifier.send("STOPPING=1")
        if self._successor is not None:
            self._successor.abandon()
        self._clients.close()

    def _fork_zygote(self) -> None:
        if (threads := warm.count_threads()) > 1:
            say(f"importing the task runtime started {threads - 1} threads: forked tasks may hang")
        self._jobs.zygote = zygote.Zygote(self._setup.jobs_folder, self._body, threaded.task_main)
        groups = self._setup.groups
        own_supervisor = None
        if self._body is sdk.supervise:
            try:
                threaded.check()
                threaded.install(warm.configure_logging)
                self._jobs.on_threads = True
            except threaded.Unsupported as reason:
                own_supervisor = str(reason)
        if isinstance(groups, cgroups.Cgroups):
            self._jobs.groups = groups
            missing = groups.missing
        else:
            missing = (groups.reason,)
        self._isolation = wire.Isolation(
            cgroups=self._jobs.groups is not None, missing=missing, own_supervisor=own_supervisor
        )

    # When to do what --------------------------------------------------------------------------------------------------

    def _done(self) -> bool:
        if len(self._jobs) > 0 or not self._setup.predecessor.has_ended():
            return False
        if self._stopping or self._leaving:
            return True
        if not self._idle_long_enough():
            return False
        # What a daemon has sent before it could know that we are about to leave still counts.
        self._serve(0)
        return len(self._jobs) == 0 and self._idle_long_enough()

    def _idle_long_enough(self) -> bool:
        if self._successor is not None:
            return False
        return self._unneeded or time.monotonic() >= self._busy_until + self._patient_seconds

    def _patience(self) -> float | None:
        now = time.monotonic()
        dues = [self._stop_due(), self._kill_due]
        if len(self._jobs) > 0:
            dues.append(self._jobs.due())
        else:
            dues.append(self._busy_until + self._patient_seconds)
            if not self._setup.predecessor.has_ended():
                # Rarely: only where a predecessor still has jobs, and this runner has none.
                dues = [now + 1.0]
        if self._successor is not None:
            dues.append(self._successor_due)
        known = [due for due in dues if due is not None]
        return max(0.0, min(known) - now) if known else None

    def _serve(self, timeout: float | None) -> bool:
        """Do what there is to do, waiting for it for so long, and tell whether there was anything."""
        selected = self._selector.select(timeout)
        for key, events in selected:
            if isinstance(key.data, clients.Client):
                self._clients.attend(key.data, events)
            else:
                key.data()
        now = time.monotonic()
        if (due := self._jobs.due()) is not None and now >= due:
            self._jobs.reap()
        if self._successor is not None and now >= self._successor_due:
            self._drop_successor("it does not become ready")
        if self._kill_due is not None and now >= self._kill_due:
            self._kill()
        self._look_for_agent(now)
        return bool(selected)

    def _woken(self) -> None:
        received: set[int] = set()
        with contextlib.suppress(BlockingIOError):
            received = set(self._wakeup.recv(_RECEIVE_BYTES))
        if received & {signal.SIGTERM, signal.SIGINT}:
            # systemd tells only its main process, and this one goes last.
            self._setup.predecessor.stop()
            if self._stopping:
                self._kill()
            else:
                self._stop()
                self._jobs.signal_all(signal.SIGTERM, why=_STOPPED)
                self._kill_due = time.monotonic() + _KILL_SECONDS
        if signal.SIGHUP in received:
            self._renew()
        before = len(self._jobs)
        self._jobs.reap()
        if before > 0:
            self._busy_until = time.monotonic()
        if self._jobs.zygote is not None and self._jobs.zygote.has_died():
            # Nothing can be started here any more; what runs is not touched by that.
            self._renew()

    def _wake(self) -> None:
        # Zero is no signal's number. If the buffer is full, the main thread has been woken often enough.
        with contextlib.suppress(OSError):
            self._wakeup_writer.send(b"\0")

    # Jobs without an agent --------------------------------------------------------------------------------------------

    def _look_for_agent(self, now: float) -> None:
        if len(self._clients) > 0 or len(self._jobs) == 0:
            self._alone_since, self._told_to_stop = None, False
            return
        if self._alone_since is None:
            self._alone_since = now
        due = self._stop_due()
        if due is not None and now >= due:
            seconds = self._setup.stop_without_agent_seconds
            number = signal.SIGKILL if self._told_to_stop else signal.SIGTERM
            self._jobs.signal_all(number, why=f"because the agent had been away for {seconds:g} s")
            self._told_to_stop = True

    def _stop_due(self) -> float | None:
        seconds = self._setup.stop_without_agent_seconds
        if seconds <= 0 or self._alone_since is None:
            return None
        return self._alone_since + seconds + (_STOP_GRACE_SECONDS if self._told_to_stop else 0)

    # What daemons say -------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        self._clients.accept(self._listener)

    def _hello(self) -> wire.Hello:
        return wire.Hello(
            pid=os.getpid(),
            ready=self._versions is not None,
            versions=self._versions,
            jobs=self._jobs.running(),
            isolation=self._isolation,
            leaving=self._leaving,
            files=self._setup.files,
        )

    def _obey(self, client: clients.Client, command: wire.Command) -> None:
        match command:
            case wire.Run():
                self._run(command)
            case wire.Signal():
                self._signal(command)
            case wire.Stop():
                self._unneeded = True
            case wire.Renew():
                if (problem := self._renew()) is not None:
                    self._clients.send(client, wire.Refused(job_id=None, detail=problem))

    def _run(self, run: wire.Run) -> None:
        # Another daemon may have come after the one that needed us no more.
        self._unneeded = False
        self._patient_seconds = self._setup.idle_seconds
        if self._stopping:
            self._clients.broadcast(wire.Refused(job_id=run.job_id, detail="this runner is stopping"))
        elif self._waiting is None:
            # Also when leaving: what was on its way here is run here.
            self._jobs.start(run)
            self._busy_until = time.monotonic()
        elif run.job_id in self._waiting:
            self._clients.broadcast(wire.Refused(job_id=run.job_id, detail="this job is about to be started"))
        else:
            self._waiting[run.job_id] = run

    def _signal(self, command: wire.Signal) -> None:
        if self._waiting is not None and self._waiting.pop(command.job_id, None) is not None:
            name = signal.Signals(command.signal).name
            self._jobs.never_started(command.job_id, f"ended by {name}, as asked, before it was started")
        else:
            self._jobs.signal(command.job_id, command.signal)

    def _read_what_waited(self) -> None:
        """Take all that was said during the warm-up before anything of it is begun: a job may have been cancelled.

        Not a word of it was read before the zygote was there, which must have heard of no job.
        """
        self._clients.read()
        while self._serve(0):
            pass

    def _start_waiting(self) -> None:
        waiting, self._waiting = self._waiting, None
        for run in (waiting or {}).values():
            self._jobs.start(run)

    def _stop(self) -> None:
        self._stopping = True
        self._refuse_waiting("this runner is stopping")

    def _kill(self) -> None:
        self._jobs.signal_all(signal.SIGKILL, why=_STOPPED)
        # Should more of them come out of the zygote just now.
        self._kill_due = time.monotonic() + 1.0

    def _refuse_waiting(self, detail: str) -> None:
        for job_id in list(self._waiting or ()):
            self._clients.broadcast(wire.Refused(job_id=job_id, detail=detail))
        if self._waiting:
            self._waiting.clear()

    def _give_up(self, detail: str) -> None:
        say(detail)
        self._read_what_waited()
        # First the problem: who hears only that a job is refused gives it to the next runner.
        self._clients.broadcast(wire.Problem(detail=detail))
        self._refuse_waiting(detail)
        deadline = time.monotonic() + _PROBLEM_SECONDS
        while not self._clients and not self._stopping and (left := deadline - time.monotonic()) > 0:
            self._serve(left)
            self._clients.broadcast(wire.Problem(detail=detail))

    # Succession -------------------------------------------------------------------------------------------------------

    def _renew(self) -> str | None:
        """Start a successor; return why there is none, if there is a reason."""
        if self._waiting is not None:
            # What is being loaded may be old already.
            self._renew_later = True
            return None
        if self._stopping or self._leaving or self._successor is not None:
            return None
        try:
            self._successor = succession.Successor(
                program=self._setup.program,
                options=self._setup.options,
                listener=self._listener.fileno(),
                locks=self._setup.locks,
                notify_address=self._setup.notifier.address,
            )
        except OSError as error:
            problem = f"no successor could be started: {error}"
            say(problem)
            return problem
        self._successor_due = time.monotonic() + _SUCCESSOR_SECONDS
        self._jobs.strangers.add(self._successor.pid)
        self._selector.register(self._successor.fileno(), selectors.EVENT_READ, self._hand_over)
        return None

    def _hand_over(self) -> None:
        successor = self._successor
        assert successor is not None
        if not successor.is_ready():
            self._drop_successor("it ended before it was ready")
            return
        try:
            listener = sockets.listen(self._setup.generation_path, shared=self._setup.shared)
        except OSError as error:
            self._drop_successor(f"{self._setup.generation_path}: {error.strerror}")
            return
        self._selector.unregister(successor.fileno())
        self._selector.unregister(self._listener)
        self._listener.close()
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._successor, self._leaving = None, True
        # The unit is the successor's from now on; it does not end before us.
        self._setup.notifier.send(f"MAINPID={successor.pid}")
        successor.let_go()
        self._clients.broadcast(wire.Leaving())

    def _drop_successor(self, why: str) -> None:
        successor, self._successor = self._successor, None
        assert successor is not None
        self._selector.unregister(successor.fileno())
        successor.abandon()
        self._jobs.strangers.discard(successor.pid)
        problem = f"the successor is given up, and this runner goes on: {why}"
        say(problem)
        self._clients.broadcast(wire.Refused(job_id=None, detail=problem))


def _install_signals(writer: int) -> None:
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Only a handler of its own makes the interpreter write the number to the wakeup descriptor.
        signal.signal(number, lambda _number, _frame: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
