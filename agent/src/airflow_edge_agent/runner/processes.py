"""Linux processes: who they are, what descends from them, and how to end them all.

A process is named by its pid and its start time, because pids are used again.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from dataclasses import dataclass
from pathlib import Path

_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36

# Loaded here, once: in each forked child it would cost a millisecond.
_LIBC = ctypes.CDLL(None)

_PROC = Path("/proc")

_MOST_OOM_POINTS = 1000

_MOST_ROUNDS = 50
"""How often :func:`kill_family` looks again for processes that were forked while it stopped others."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process at one moment."""

    pid: int
    parent: int
    session: int
    start_time: int
    """Clock ticks since boot."""
    dead: bool
    """Ended, and not yet waited for by its parent."""


def look(pid: int) -> Process | None:
    """Return the process of that pid, or ``None`` when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The second field is the program's name in parentheses, and may hold blanks and parentheses itself.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return Process(
        pid=pid,
        parent=int(fields[1]),
        session=int(fields[3]),
        start_time=int(fields[19]),
        dead=fields[0] in (b"Z", b"X"),
    )


def everything() -> dict[int, Process]:
    """Return all processes of the host by pid."""
    found = {}
    for name in os.listdir(_PROC):  # noqa: PTH208 -- thousands of entries: no Path objects for them
        if name.isdigit() and (process := look(int(name))) is not None:
            found[process.pid] = process
    return found


def own_children() -> set[int]:
    """Return the pids of the direct children of this process, dead ones included.

    Those that another thread than the first has forked are not among them. What is adopted goes to the first.
    """
    pid = os.getpid()
    try:
        return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_bytes().split()))
    except OSError:
        # A kernel without CONFIG_PROC_CHILDREN.
        return {process.pid for process in everything().values() if process.parent == pid}


def family(root: int, *, session: int | None = None, since: int = 0) -> list[Process]:
    """Return the living descendants of ``root`` and the living members of ``session``, ``root`` itself first.

    :param since: leave out members of the session that are older than this, in clock ticks since boot.
    """
    processes = everything()
    offspring: dict[int, list[Process]] = {}
    for process in processes.values():
        offspring.setdefault(process.parent, []).append(process)
    found: dict[int, Process] = {}
    waiting = [processes[root]] if root in processes else []
    if session is not None:
        waiting += [p for p in processes.values() if p.session == session and p.start_time >= since]
    while waiting:
        process = waiting.pop(0)
        if process.pid not in found:
            found[process.pid] = process
            waiting += offspring.get(process.pid, [])
    return [process for process in found.values() if not process.dead]


def send(process: Process, number: int) -> bool:
    """Send a signal to exactly this process, and tell whether it was there to receive it."""
    try:
        handle = os.pidfd_open(process.pid)
    except (ProcessLookupError, PermissionError):
        return False
    try:
        # Between the look and now the pid may have gone to another process; the handle cannot change any more.
        current = look(process.pid)
        if current is None or current.start_time != process.start_time:
            return False
        signal.pidfd_send_signal(handle, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(handle)
    return True


def kill_family(root: int, *, session: int | None = None, since: int = 0) -> list[Process]:
    """Kill ``root``, all its descendants and the members of ``session``, and return who was hit.

    All are stopped before the first is killed, so that none can fork itself away meanwhile.
    """
    stopped: dict[tuple[int, int], Process] = {}
    for _ in range(_MOST_ROUNDS):
        new = [
            process
            for process in family(root, session=session, since=since)
            if (process.pid, process.start_time) not in stopped and process.pid != os.getpid()
        ]
        if not new:
            break
        for process in new:
            send(process, signal.SIGSTOP)
            stopped[process.pid, process.start_time] = process
    return [process for process in stopped.values() if send(process, signal.SIGKILL)]


def lives(process: Process) -> bool:
    """Tell whether exactly this process is still at work."""
    now = look(process.pid)
    return now is not None and now.start_time == process.start_time and not now.dead


def boot_id() -> str:
    """Return the identity of this boot of the host; empty when the kernel does not tell."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def become_subreaper() -> None:
    """Make this process the parent of descendants whose own parent ends, instead of the host's init."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def hide_memory() -> None:
    """Keep other processes of the same user out of this one's memory, environment and descriptors."""
    _prctl(_PR_SET_DUMPABLE, 0)


def prefer_as_oom_victim(by: int) -> None:
    """Make it likelier, by so many points of 1000, that the kernel ends this process when memory is short.

    A process that hides its memory may not write that file of its own, so it shows itself for a moment.
    """
    _prctl(_PR_SET_DUMPABLE, 1)
    with contextlib.suppress(OSError, ValueError):
        file = Path("/proc/self/oom_score_adj")
        file.write_text(str(min(_MOST_OOM_POINTS, int(file.read_text()) + by)))
    hide_memory()


def set_name(name: str) -> None:
    """Set the name that ``ps`` and ``top`` show, at most 15 characters."""
    _prctl(_PR_SET_NAME, ctypes.create_string_buffer(name.encode()))


def _prctl(option: int, value: object) -> None:
    # A kernel or sandbox that refuses costs us comfort, never correctness: sessions are followed as well.
    with contextlib.suppress(AttributeError):
        _LIBC.prctl(option, value, 0, 0, 0)
