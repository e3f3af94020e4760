"""A cgroup for each job: its limits, its bill, and its sure end.

Needs cgroup v2 and a group that was delegated to the runner (systemd: ``Delegate=yes``). Below that group the runner
lives in ``supervisor/``, and each job in ``job-<id>/``. Where a controller is missing, what it does is missing, and
that is said; the rest works. ``cgroup.kill``, ``populated`` and CPU time need no controller at all.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import select
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .limits import GroupUsage, Limits

SUPERVISOR = "supervisor"
"""The group in which the runner itself lives, with what is no job."""

_PREFIX = "job-"
_CONTROLLERS = {
    "memory": "memory_max and memory_high are not enforced, an out-of-memory kill is not named",
    "cpu": "cpu_quota is not enforced",
    "pids": "pids_max is not enforced",
    "io": "io_weight is not enforced, bytes read and written are not counted",
}
"""What we use, and what is lost without it."""

_NEEDS = {
    "memory_max_bytes": ("memory_max", "memory"),
    "memory_high_bytes": ("memory_high", "memory"),
    "cpu_quota_percent": ("cpu_quota", "cpu"),
    "pids_max": ("pids_max", "pids"),
    "io_weight": ("io_weight", "io"),
}
"""Of each limit: what operators call it, and the controller that keeps it."""

_PERIOD_MICROSECONDS = 100_000
_END_SECONDS = 5.0
"""How long the end of killed processes is waited for: one that sits in the kernel, e.g. for a disk, takes its time."""
_LOOK_SECONDS = 0.05
"""How often to look where the kernel sends no notice."""


@dataclass(frozen=True, slots=True)
class Missing:
    """There are no cgroups to be had. The reason is one line, and says how to mend it."""

    reason: str


class JobCgroup:
    """The cgroup of one job. Used by one thread at a time."""

    def __init__(self, path: Path, unenforced: tuple[str, ...]) -> None:
        self.path = path
        self.procs = path / "cgroup.procs"
        """A new process of the job writes ``0`` here, before anything else."""
        self.unenforced = unenforced
        """The limits that were asked for and are not kept, with the reason; a line each."""
        self._peak = 0

    def kill(self) -> None:
        """Kill every process in it, those in groups that the job has made below it included. Does not wait."""
        if _write(self.path / "cgroup.kill", "1"):
            return
        # Before Linux 5.14. None may fork while the others are killed; those that froze can still be killed.
        _write(self.path / "cgroup.freeze", "1")
        until = time.monotonic() + 1
        while _flag(self.path / "cgroup.events", "frozen") is False and time.monotonic() < until:
            _await_change(self.path / "cgroup.events", _LOOK_SECONDS)
        for pid in self._members():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        _write(self.path / "cgroup.freeze", "0")

    def populated(self) -> bool:
        """Tell whether a living process is in it, or below it."""
        found = _flag(self.path / "cgroup.events", "populated")
        return bool(found) if found is not None else bool(self._members())

    def wait_empty(self, seconds: float) -> bool:
        """Wait until no process is left, and tell whether that came true in time."""
        until = time.monotonic() + seconds
        while self.populated():
            left = until - time.monotonic()
            if left <= 0:
                return False
            _await_change(self.path / "cgroup.events", min(left, _LOOK_SECONDS))
        return True

    def sample(self) -> None:
        """Note how much memory is in use. Only kernels before 5.19, which keep no peak themselves, need it."""
        self._peak = max(self._peak, _number(self.path / "memory.current") or 0)

    def usage(self) -> GroupUsage:
        """Return what was counted so far. Ask before :meth:`remove`."""
        cpu = _table(self.path / "cpu.stat").get("usage_usec")
        peak = _number(self.path / "memory.peak")
        if peak is None:
            self.sample()
            peak = self._peak or None
        events = _table(self.path / "memory.events")
        # Without the local file (before Linux 5.2) the other one says the same: jobs have limits, groups in them none.
        local = _table(self.path / "memory.events.local") or events
        read, written = _io(self.path / "io.stat")
        return GroupUsage(
            cpu_seconds=None if cpu is None else cpu / 1_000_000,
            peak_memory_bytes=peak,
            io_read_bytes=read,
            io_write_bytes=written,
            oom_kills=max(events.get("oom_kill", 0), events.get("oom_group_kill", 0)),
            at_own_limit=local.get("oom", 0) > 0,
        )

    def remove(self, seconds: float = _END_SECONDS) -> bool:
        """Kill what is left in it and remove it; tell whether it is gone.

        :param seconds: how long to wait for the end of its processes.
        """
        until = time.monotonic() + seconds
        while self.path.exists():
            if self.populated():
                self.kill()
                self.wait_empty(max(0.0, min(1.0, until - time.monotonic())))
            for folder in _deepest_first(self.path):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            if not self.path.exists():
                break
            if time.monotonic() >= until:
                return False
            _await_change(self.path / "cgroup.events", _LOOK_SECONDS)
        return True

    def _members(self) -> set[int]:
        found: set[int] = set()
        for folder in _deepest_first(self.path):
            found.update(_pids(folder / "cgroup.procs"))
        return found


class Cgroups:
    """The delegated group, ready for jobs."""

    def __init__(self, path: Path, controllers: frozenset[str], missing: tuple[str, ...]) -> None:
        self.path = path
        self.controllers = controllers
        """Those that jobs have: of memory, cpu, pids, io."""
        self.missing = missing
        """What jobs have to do without, a line each."""
        self._lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._alone = self._try_lock(fcntl.LOCK_EX)

    def create(self, job_id: str, limits: Limits) -> JobCgroup:
        """Make the group of a job. What was left of an earlier one is ended.

        :raises OSError: it cannot be made. The job may run without; then nothing limits it.
        """
        path = self.path / f"{_PREFIX}{job_id}"
        try:
            path.mkdir()
        except FileExistsError:
            JobCgroup(path, ()).remove()
            path.mkdir()
        return JobCgroup(path, tuple(self._apply(path, limits)))

    def remove_stale(self, job_ids: Iterable[str] = ()) -> list[str]:
        """Kill and remove the groups that a runner left which is no more; return the ids of their jobs.

        Call it once, at the start. Another runner may live in the same group: an earlier generation that has jobs, or
        that of a second agent. Then only the groups of ``job_ids`` are taken.

        :param job_ids: jobs that are known to have nobody else to look after them.
        """
        names = {f"{_PREFIX}{job_id}" for job_id in job_ids}
        if self._alone:
            names.update(folder.name for folder in self.path.glob(f"{_PREFIX}*"))
        groups = [JobCgroup(self.path / name, ()) for name in sorted(names) if (self.path / name).is_dir()]
        for group in groups:
            group.kill()
        removed = [group.path.name.removeprefix(_PREFIX) for group in groups if group.remove()]
        # From now on a runner that starts sees that somebody is here.
        self._alone = False
        self._try_lock(fcntl.LOCK_SH)
        return removed

    def _try_lock(self, kind: int) -> bool:
        try:
            fcntl.flock(self._lock, kind | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _apply(self, path: Path, limits: Limits) -> Iterator[str]:
        """Write the limits, and yield a line for each that could not be."""
        if "memory" in self.controllers:
            _write(path / "memory.oom.group", "1")
        for field, value in limits.as_dict().items():
            name, controller = _NEEDS[field]
            if controller not in self.controllers:
                yield f"{name}: there is no {controller} controller here"
            elif (error := _set(path, field, value)) is not None:
                yield f"{name}: {error}"


def _set(path: Path, field: str, value: float) -> str | None:
    match field:
        case "memory_max_bytes":
            # Memory that goes to swap instead would be no limit; without swap accounting there is no such file.
            _write(path / "memory.swap.max", "0")
            return _try_write(path / "memory.max", str(value))
        case "memory_high_bytes":
            return _try_write(path / "memory.high", str(value))
        case "cpu_quota_percent":
            quota = max(1_000, round(value * _PERIOD_MICROSECONDS / 100))
            return _try_write(path / "cpu.max", f"{quota} {_PERIOD_MICROSECONDS}")
        case "pids_max":
            return _try_write(path / "pids.max", str(value))
    if (path / "io.weight").exists():
        return _try_write(path / "io.weight", f"default {value}")
    # The BFQ scheduler's own scale ends at 1000.
    bfq = value if value <= 100 else 100 + (value - 100) * 900 / 9_900  # noqa: PLR2004 -- the default of both scales
    return _try_write(path / "io.bfq.weight", str(round(bfq)))


def detect(
    *, mounts: Path = Path("/proc/self/mountinfo"), membership: Path = Path("/proc/self/cgroup")
) -> Cgroups | Missing:
    """Find the group that was delegated to this process, move the process into ``supervisor/`` and enable controllers.

    Call it in the runner, before it has children: they would have to be moved as well.
    """
    here = _own_group(mounts, membership)
    if isinstance(here, Missing):
        return here
    # A successor is born where its predecessor lives; and systemd can start us there as well (DelegateSubgroup=).
    path = here.parent if here.name == SUPERVISOR else here
    if not (path / "cgroup.type").exists():
        return Missing(
            f"{path} is the root of all cgroups, and belongs to nobody: start the runner in a group of its own"
        )
    for needed in (path, path / "cgroup.procs", path / "cgroup.subtree_control"):
        if not os.access(needed, os.W_OK):
            return Missing(f"{needed} cannot be written: not delegated (systemd: Delegate=yes)")
    try:
        (path / SUPERVISOR).mkdir(exist_ok=True)
        if here == path:
            (path / SUPERVISOR / "cgroup.procs").write_text("0")
        enabled, missing = _enable(path)
        return Cgroups(path, enabled, missing)
    except OSError as error:
        return Missing(f"{error.filename or path}: {error.strerror}")


def _own_group(mounts: Path, membership: Path) -> Path | Missing:
    try:
        mount = next(_unified_mounts(mounts.read_text()), None)
        own = next((line[3:] for line in membership.read_text().splitlines() if line.startswith("0::")), None)
    except OSError as error:
        return Missing(f"{error.filename}: {error.strerror}")
    if mount is None or own is None:
        return Missing("this host has no cgroup v2 mounted (systemd.unified_cgroup_hierarchy=1 on its command line)")
    root, point = mount
    if not Path(own).is_relative_to(root) or ".." in Path(own).parts:
        return Missing(f"the runner's cgroup {own} is not below what is mounted at {point}")
    return point / Path(own).relative_to(root)


def _unified_mounts(text: str) -> Iterator[tuple[Path, Path]]:
    """Yield root and mount point of each mount of cgroup v2."""
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        if after.partition(" ")[0] == "cgroup2":
            fields = [re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), one) for one in before.split()]
            yield Path(fields[3]), Path(fields[4])


def _enable(path: Path) -> tuple[frozenset[str], tuple[str, ...]]:
    """Enable our controllers for the groups below ``path``, each by itself; return which are, and what is missing."""
    there = set(_words(path / "cgroup.controllers"))
    missing = []
    enabled = set()
    for name, loss in _CONTROLLERS.items():
        if name not in there:
            missing.append(f"{name}: not delegated to {path}; {loss}")
        elif (error := _try_write(path / "cgroup.subtree_control", f"+{name}")) is None:
            enabled.add(name)
        elif error == os.strerror(errno.EBUSY):
            missing.append(f"{name}: other programs live in {path} too; {loss}")
        else:
            missing.append(f"{name}: {error}; {loss}")
    return frozenset(enabled), tuple(missing)


# Files of the kernel: small, whole, and gone at any moment.


def _write(path: Path, text: str) -> bool:
    return _try_write(path, text) is None


def _try_write(path: Path, text: str) -> str | None:
    """Write, and return what went wrong."""
    try:
        # Never create: a missing file is a kernel that does not have it.
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _pids(path: Path) -> list[int]:
    # 0 is a process of another pid namespace: nobody here can signal it.
    return [int(word) for word in _words(path) if word.isdigit() and word != "0"]


def _number(path: Path) -> int | None:
    words = _words(path)
    return int(words[0]) if words and words[0].isdigit() else None


def _table(path: Path) -> dict[str, int]:
    words = _words(path)
    return {name: int(value) for name, value in zip(words[::2], words[1::2], strict=False) if value.isdigit()}


def _flag(path: Path, name: str) -> bool | None:
    value = _table(path).get(name)
    return None if value is None else value != 0


def _io(path: Path) -> tuple[int | None, int | None]:
    """Return bytes read and written of all devices together."""
    if not path.exists():
        return None, None
    sums = {"rbytes": 0, "wbytes": 0}
    for word in _words(path):
        name, _, value = word.partition("=")
        if name in sums and value.isdigit():
            sums[name] += int(value)
    return sums["rbytes"], sums["wbytes"]


def _deepest_first(path: Path) -> list[Path]:
    return [Path(folder) for folder, _, _ in os.walk(path, topdown=False)]


def _await_change(events: Path, seconds: float) -> None:
    """Sleep until the kernel says that a group has changed, at most so long."""
    try:
        descriptor = os.open(events, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        time.sleep(seconds)
        return
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLPRI)
        poll.poll(seconds * 1_000)
    finally:
        os.close(descriptor)
