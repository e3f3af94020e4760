"""The runner's loop: its socket, its clients, the end of its children, and its own end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from . import child, jobs, warm, wire

EXIT_DONE = 0
EXIT_TAKEN = 75
"""Another runner serves this socket or these jobs."""
EXIT_UNUSABLE = 78
"""This task runtime cannot run tasks."""

_MOST_CLIENTS = 8
_MOST_UNSENT_BYTES = 4 * 1024 * 1024
_RECEIVE_BYTES = 256 * 1024
_FIRST_JOB_SECONDS = 10.0
"""How long a runner waits at least for its first job: a daemon has started it because it has one."""

_PROBLEM_SECONDS = 10.0
"""How long a runner that cannot work waits for a daemon to tell it so."""


class Taken(Exception):
    """Another runner is at work here. The message says where."""


class _Client:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.lines = wire.LineBuffer()
        self.unsent = bytearray()
        self.closing = False
        self.deaf = False
        """It does not read any more. What it had written before it hung up is still to be read."""


class Runner:
    """One runner, from binding its socket to removing it."""

    def __init__(
        self,
        *,
        socket_path: Path,
        jobs_folder: Path,
        idle_seconds: float,
        warm_up: Callable[[], Iterator[None]],
        body: child.Body,
    ) -> None:
        """Take the socket and the jobs folder.

        :raises Taken: when another runner has one of them.
        :raises OSError: when one of them cannot be used.
        """
        self._socket_path = socket_path
        self._idle_seconds = idle_seconds
        self._warm_up = warm_up
        self._locks = [
            _lock(
                os.open(socket_path.with_name(socket_path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600), socket_path
            ),
            _lock(os.open(jobs_folder, os.O_RDONLY | os.O_DIRECTORY), jobs_folder),
        ]
        self._listener = _listen(socket_path)
        self._wakeup, self._wakeup_writer = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._clients: dict[int, _Client] = {}
        self._jobs = jobs.Jobs(jobs_folder, self._broadcast, body)
        self._waiting: dict[str, wire.Run] = {}
        self._versions: wire.Versions | None = None
        self._stopping = False
        """Told to end by a signal: takes nothing more."""
        self._unneeded = False
        """Told by a daemon that it has no more work: does not wait for the idle time to pass."""
        self._busy_until = time.monotonic()
        self._patient_seconds = max(idle_seconds, _FIRST_JOB_SECONDS)
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
                if (self._stopping or self._unneeded) and not self._waiting:
                    return EXIT_DONE
            warm.freeze()
            self._versions = warm.versions()
        except warm.UnusableRuntime as problem:
            self._give_up(str(problem))
            return EXIT_UNUSABLE
        else:
            if (threads := warm.count_threads()) > 1:
                _say(f"importing the task runtime started {threads - 1} threads: forked tasks may hang")
            self._broadcast(wire.Ready(versions=self._versions, warmup_seconds=round(time.monotonic() - begun, 3)))
            self._start_waiting()
            self._busy_until = time.monotonic()
            while not self._done():
                self._serve(self._patience())
            return EXIT_DONE
        finally:
            # First the name, so that a daemon that finds no socket starts the next runner at once.
            self._socket_path.unlink(missing_ok=True)
            self._flush_all()

    def leave(self) -> None:
        """Let go, in a forked child, of all that belongs to the runner."""
        signal.set_wakeup_fd(-1)
        self._selector.close()
        for client in self._clients.values():
            client.connection.close()
        for end in (self._listener, self._wakeup, self._wakeup_writer):
            end.close()
        for lock in self._locks:
            os.close(lock)

    def _done(self) -> bool:
        if len(self._jobs) > 0:
            return False
        if self._stopping:
            return True
        if not self._idle_long_enough():
            return False
        # What a daemon has sent before it could know that we are about to leave still counts.
        self._serve(0)
        return len(self._jobs) == 0 and self._idle_long_enough()

    def _idle_long_enough(self) -> bool:
        return self._unneeded or time.monotonic() >= self._busy_until + self._patient_seconds

    def _patience(self) -> float | None:
        due = self._jobs.due() if len(self._jobs) > 0 else self._busy_until + self._patient_seconds
        return None if due is None else max(0.0, due - time.monotonic())

    def _serve(self, timeout: float | None) -> None:
        for key, events in self._selector.select(timeout):
            if isinstance(key.data, _Client):
                self._attend(key.data, events)
            else:
                key.data()
        if (due := self._jobs.due()) is not None and time.monotonic() >= due:
            self._jobs.reap()

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            received = set(self._wakeup.recv(_RECEIVE_BYTES))
            if received & {signal.SIGTERM, signal.SIGINT}:
                self._stop()
                self._jobs.signal_all(signal.SIGTERM)
        before = len(self._jobs)
        self._jobs.reap()
        if before > 0:
            self._busy_until = time.monotonic()

    # Clients ----------------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        if _peer_uid(connection) != os.geteuid() or len(self._clients) >= _MOST_CLIENTS:
            connection.close()
            return
        connection.settimeout(0)
        client = _Client(connection)
        self._clients[connection.fileno()] = client
        self._selector.register(connection, selectors.EVENT_READ, client)
        hello = wire.Hello(
            pid=os.getpid(), ready=self._versions is not None, versions=self._versions, jobs=self._jobs.running()
        )
        self._send(client, hello)

    def _attend(self, client: _Client, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush(client)
        if not events & selectors.EVENT_READ or client.closing:
            return
        try:
            data = client.connection.recv(_RECEIVE_BYTES)
            if not data:
                self._drop(client)
                return
            for line in client.lines.feed(data):
                self._obey(client, line)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
        except wire.WireError as error:
            # Where one line is broken the next begin is not to be trusted.
            client.closing = True
            self._send(client, wire.Refused(job_id=None, detail=str(error)))

    def _obey(self, client: _Client, line: bytes) -> None:
        try:
            command = wire.decode_command(line)
        except wire.UnknownMessage as error:
            self._send(client, wire.Refused(job_id=None, detail=str(error)))
            return
        match command:
            case wire.Run():
                self._run(command)
            case wire.Signal():
                self._signal(command)
            case wire.Stop():
                self._unneeded = True

    def _run(self, run: wire.Run) -> None:
        # Another daemon may have come after the one that needed us no more.
        self._unneeded = False
        self._patient_seconds = self._idle_seconds
        if self._stopping:
            self._broadcast(wire.Refused(job_id=run.job_id, detail="this runner is stopping"))
        elif self._versions is not None:
            self._jobs.start(run, self.leave)
            self._busy_until = time.monotonic()
        elif run.job_id in self._waiting:
            self._broadcast(wire.Refused(job_id=run.job_id, detail="this job is about to be started"))
        else:
            self._waiting[run.job_id] = run

    def _signal(self, command: wire.Signal) -> None:
        if self._waiting.pop(command.job_id, None) is not None:
            name = signal.Signals(command.signal).name
            self._jobs.never_started(command.job_id, f"ended by {name}, as asked, before it was started")
        else:
            self._jobs.signal(command.job_id, command.signal)

    def _stop(self) -> None:
        self._stopping = True
        for job_id in list(self._waiting):
            del self._waiting[job_id]
            self._broadcast(wire.Refused(job_id=job_id, detail="this runner is stopping"))

    def _start_waiting(self) -> None:
        while self._waiting:
            self._jobs.start(self._waiting.pop(next(iter(self._waiting))), self.leave)

    def _give_up(self, detail: str) -> None:
        _say(detail)
        for job_id in self._waiting:
            self._broadcast(wire.Refused(job_id=job_id, detail=detail))
        self._waiting.clear()
        self._broadcast(wire.Problem(detail=detail))
        deadline = time.monotonic() + _PROBLEM_SECONDS
        while not self._clients and not self._stopping and (left := deadline - time.monotonic()) > 0:
            self._serve(left)
            self._broadcast(wire.Problem(detail=detail))

    # Sending ----------------------------------------------------------------------------------------------------------

    def _broadcast(self, event: wire.Event) -> None:
        for client in list(self._clients.values()):
            self._send(client, event)

    def _send(self, client: _Client, event: wire.Event) -> None:
        if client.deaf:
            return
        client.unsent += wire.encode(event)
        self._flush(client)

    def _flush(self, client: _Client) -> None:
        try:
            while client.unsent:
                sent = client.connection.send(client.unsent)
                del client.unsent[:sent]
        except BlockingIOError:
            pass
        except OSError:
            client.deaf = True
            client.unsent.clear()
        if len(client.unsent) > _MOST_UNSENT_BYTES or (client.closing and not client.unsent):
            self._drop(client)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.unsent else 0)
        self._selector.modify(client.connection, wanted, client)

    def _flush_all(self) -> None:
        # The last events are worth a moment, a daemon that does not read is not worth more.
        for client in list(self._clients.values()):
            with contextlib.suppress(OSError):
                client.connection.settimeout(1.0)
                client.connection.sendall(client.unsent)
                client.connection.close()

    def _drop(self, client: _Client) -> None:
        descriptor = client.connection.fileno()
        if self._clients.pop(descriptor, None) is not None:
            self._selector.unregister(client.connection)
            client.connection.close()


def _say(text: str) -> None:
    print(f"edge-runner: {text}", file=sys.stderr, flush=True)  # noqa: T201 -- a program's stderr


def _lock(descriptor: int, what: Path) -> int:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Taken(f"another runner serves {what}") from None
    return descriptor


def _listen(path: Path) -> socket.socket:
    """Bind the socket. Whoever holds the lock may take the name: what stands there was left by a runner that died."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(_MOST_CLIENTS)
    listener.settimeout(0)
    return listener


def _install_signals(writer: int) -> None:
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        # Only a handler of its own makes the interpreter write the number to the wakeup descriptor.
        signal.signal(number, lambda _number, _frame: None)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)


def _peer_uid(connection: socket.socket) -> int:
    size = struct.calcsize("3i")
    _pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(uid)
