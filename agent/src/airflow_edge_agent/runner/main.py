"""The runner's command line and what it makes of its process before anything else runs."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

from . import cgroups, child, memory, origin, processes, records, sdk, server, sockets, succession, warm, work

EXIT_UNUSABLE_FOLDER = 73

_NOT_FOR_TASKS = ("WATCHDOG_PID", "WATCHDOG_USEC", "CREDENTIALS_DIRECTORY", "INVOCATION_ID", "JOURNAL_STREAM")
"""Variables by which a service manager speaks to the runner."""

PROGRAM = Path(__file__).with_name("__main__.py")


def main(
    *,
    warm_up: Callable[[], Iterator[None]] = warm.steps,
    body: child.Body = sdk.supervise,
    program: Path = PROGRAM,
) -> int:
    """Run the runner, and return its exit code.

    :param warm_up: loads, in steps, what every job needs.
    :param body: works on one job, in a process of its own.
    :param program: what a successor is started from.
    """
    options = _parse()
    notifier = sockets.Notifier()
    try:
        shared = records.is_shared(options.jobs_dir)
        _prepare_process(shared=shared)
        _prepare_environment(options.jobs_dir)
        setup = _set_up(options, notifier, program, shared=shared)
    except sockets.Taken as reason:
        return _fail(server.EXIT_TAKEN, str(reason))
    except sockets.WrongSocket as reason:
        return _fail(server.EXIT_UNUSABLE, str(reason))
    except OSError as error:
        return _fail(EXIT_UNUSABLE_FOLDER, f"cannot use {error.filename or options.socket}: {error.strerror or error}")
    _hide_main()
    code = server.Runner(setup, warm_up=warm_up, body=body).run()
    if work.thread_count() > 0:
        # They sleep before a call that they will not make any more. The interpreter would wait for them.
        sys.stderr.flush()
        os._exit(code)
    return code


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="edge-runner", description="Runs Airflow workloads for an edge agent.")
    parser.add_argument("--socket", type=Path, help="where to listen; not needed where systemd passes a socket")
    parser.add_argument("--jobs-dir", type=Path, required=True, help="folder that holds a folder per job")
    parser.add_argument("--idle-seconds", type=float, required=True, help="exit after so long without a job")
    parser.add_argument("--peer-uid", type=int, action="append", default=[], help="user who may connect, instead of us")
    parser.add_argument("--peer-user", action="append", default=[], help="the same, by name")
    parser.add_argument(
        "--stop-without-agent-seconds",
        type=float,
        default=0.0,
        help="end jobs when no agent has been there for so long; 0: never",
    )
    parser.add_argument(
        "--successor",
        action="append",
        default=[],
        metavar="WORD",
        help="what a successor is started with, a word of the command line each; by default as this one was",
    )
    handed = parser.add_argument_group("what a runner hands over to its successor")
    handed.add_argument("--listen-fd", type=int, help="listening socket")
    handed.add_argument("--lock-fd", type=int, action="append", default=[], help="a lock")
    handed.add_argument("--ready-fd", type=int, help="pipe that is to hear when this runner is ready")
    handed.add_argument("--predecessor", type=int, default=0, help="pid")
    handed.add_argument("--keep-socket", action="store_true", help="the socket is not the runner's to remove")
    options = parser.parse_args()
    options.jobs_dir = options.jobs_dir.absolute()
    if options.socket is not None:
        options.socket = options.socket.absolute()
    return options


def _set_up(options: argparse.Namespace, notifier: sockets.Notifier, program: Path, *, shared: bool) -> server.Setup:
    allowed = sockets.allowed_peers(options.peer_uid, options.peer_user)
    listener, locks, path = _listener_and_locks(options, shared=shared)
    dead = records.clean_up_after_another(options.jobs_dir)
    groups = cgroups.detect()
    if isinstance(groups, cgroups.Cgroups):
        groups.remove_stale(dead)
    successor_options = [
        "--jobs-dir",
        str(options.jobs_dir),
        f"--idle-seconds={options.idle_seconds:g}",
        f"--stop-without-agent-seconds={options.stop_without_agent_seconds:g}",
        *(f"--peer-uid={uid}" for uid in options.peer_uid),
        *(f"--peer-user={name}" for name in options.peer_user),
        *([f"--socket={path}"] if path is not None else ["--keep-socket"]),
    ]
    return server.Setup(
        jobs_folder=options.jobs_dir,
        listener=listener,
        locks=locks,
        socket_path=path,
        generation_path=options.jobs_dir.parent / sockets.GENERATION_SOCKET.format(pid=os.getpid()),
        shared=shared,
        allowed=allowed,
        idle_seconds=options.idle_seconds,
        stop_without_agent_seconds=options.stop_without_agent_seconds,
        groups=groups,
        notifier=notifier,
        program=options.successor or (sys.executable, "-P", str(program)),
        options=successor_options,
        ready_to=options.ready_fd,
        predecessor=succession.Predecessor(options.predecessor),
        # Before anything of the task runtime is loaded: what changes meanwhile must be seen as a change.
        files=origin.marks(),
    )


def _listener_and_locks(options: argparse.Namespace, *, shared: bool) -> tuple[socket.socket, list[int], Path | None]:
    """Return the listener, the locks, and the socket's path if it is ours to remove."""
    if options.ready_fd is not None:
        os.set_inheritable(options.ready_fd, False)  # noqa: FBT003 -- it takes no name
    if options.listen_fd is not None:
        for lock in options.lock_fd:
            os.set_inheritable(lock, False)  # noqa: FBT003 -- it takes no name
        return sockets.adopt(options.listen_fd), options.lock_fd, None if options.keep_socket else options.socket
    of_jobs = sockets.lock(options.jobs_dir, options.jobs_dir, folder=True)
    if (descriptor := sockets.inherited_by_systemd()) is not None:
        return sockets.adopt(descriptor), [of_jobs], None
    if options.socket is None:
        raise sockets.WrongSocket("--socket is needed where systemd passes no socket")
    path: Path = options.socket
    of_socket = sockets.lock(path.with_name(path.name + ".lock"), path)
    return sockets.listen(path, shared=shared), [of_socket, of_jobs], path


def _prepare_process(*, shared: bool) -> None:
    os.umask(0o007 if shared else 0o077)
    memory.use_one_arena()
    # Without a session of its own the end of the daemon's terminal would be ours; a leader has one already.
    with contextlib.suppress(PermissionError):
        os.setsid()
    processes.become_subreaper()
    processes.hide_memory()
    processes.set_name("edge-runner")
    os.chdir("/")


def _prepare_environment(jobs_folder: Path) -> None:
    for name in _NOT_FOR_TASKS:
        os.environ.pop(name, None)
    # The SDK puts a job's log at a path below this one.
    os.environ["AIRFLOW__LOGGING__BASE_LOG_FOLDER"] = str(jobs_folder)
    # What of this stays is decided by the process's mask.
    os.environ["AIRFLOW__LOGGING__FILE_TASK_HANDLER_NEW_FILE_PERMISSIONS"] = "0o660"
    os.environ["AIRFLOW__LOGGING__FILE_TASK_HANDLER_NEW_FOLDER_PERMISSIONS"] = "0o770"


def _hide_main() -> None:
    """Give tasks a ``__main__`` of their own: multiprocessing would run ours again in every process it spawns."""
    sys.modules["__main__"] = types.ModuleType("__main__")


def _fail(code: int, text: str) -> int:
    work.say(text)
    return code
