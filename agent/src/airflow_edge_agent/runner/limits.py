"""What one job may use, what it has used, and how its log is told when that was too much."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_LOGGER = "edge-runner"
"""Who speaks, as a reader of a task's log sees it."""

_MIB = 1024 * 1024

# Lower and upper bound of each limit; what is beyond them no kernel would take.
_BOUNDS: dict[str, tuple[int, int]] = {
    "memory_max_bytes": (1, 2**62),
    "memory_high_bytes": (1, 2**62),
    "cpu_quota_percent": (1, 10_000_000),
    "pids_max": (1, 4_194_304),
    "io_weight": (1, 10_000),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one job may use, all its processes together. ``None``: as much as there is."""

    memory_max_bytes: int | None = None
    """Beyond this the kernel ends the whole job."""
    memory_high_bytes: int | None = None
    """Beyond this the job is slowed down, and its memory reclaimed."""
    cpu_quota_percent: float | None = None
    """Of one core: 150 is one and a half."""
    pids_max: int | None = None
    """Processes and threads."""
    io_weight: int | None = None
    """Share of a busy disk relative to other jobs, 1 to 10000; the kernel's own default is 100."""

    @classmethod
    def from_dict(cls, data: object) -> Limits:
        """Read them from the ``limits`` of a ``run`` message; unknown names are ignored.

        :raises ValueError: when it is no object, or a value is out of its bounds.
        """
        if data is None:
            return cls()
        if not isinstance(data, dict):
            raise ValueError("limits: not a JSON object")  # noqa: TRY004 -- what came is wrong, not how we were called
        return cls(**{name: _checked(name, data.get(name)) for name in _BOUNDS})

    def as_dict(self) -> dict[str, Any]:
        """Return those that are set, as a JSON object."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def _checked(name: str, value: object) -> Any:
    kinds: tuple[type, ...] = (int, float) if name == "cpu_quota_percent" else (int,)
    low, high = _BOUNDS[name]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ValueError(f"limits: {name} is no number")  # noqa: TRY004 -- as above
    assert isinstance(value, (int, float))
    if not low <= value <= high:
        raise ValueError(f"limits: {name} is not between {low} and {high}")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupUsage:
    """What a job's cgroup has counted. ``None``: this kernel or this delegation does not count it."""

    cpu_seconds: float | None = None
    """User and system time of all its processes, also of those that nobody waited for."""
    peak_memory_bytes: int | None = None
    """Most memory at one time, page cache included."""
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    oom_kills: int = 0
    """Processes that the kernel ended because memory was short, whoever's limit was reached."""
    at_own_limit: bool = False
    """Whether memory ran out because the job's own limit was reached."""


def describe_oom(usage: GroupUsage, limits: Limits) -> str | None:
    """Say in one sentence that the kernel ended the job for its memory; ``None``: it did not."""
    if not usage.oom_kills:
        return None
    peak = "" if usage.peak_memory_bytes is None else f", peak {in_mib(usage.peak_memory_bytes)}"
    if usage.at_own_limit and limits.memory_max_bytes is not None:
        return f"killed: out of memory, limit {in_mib(limits.memory_max_bytes)}{peak}"
    # The job may have done nothing wrong: say where to look.
    return f"killed: out of memory on this host or in the agent's slice, not at a limit of the job{peak}"


def in_mib(count: int) -> str:
    """Write a number of bytes in MiB, with one digit after the point unless it is none."""
    return f"{count / _MIB:.1f}".removesuffix(".0") + " MiB"


def tell_oom(log: Path, usage: GroupUsage, limits: Limits) -> str | None:
    """Write into a job's log that it was ended for its memory, if it was, and return the sentence.

    Call it once, when the job's processes are gone and before its result is written: so the line is part of the log
    that is shipped.
    """
    sentence = describe_oom(usage, limits)
    if sentence is not None:
        tell(log, sentence, level="error")
    return sentence


def tell_unenforced(log: Path, unenforced: Sequence[str]) -> None:
    """Write into a job's log which of its limits are not kept here, and why. Nothing, if all are."""
    for text in unenforced:
        tell(log, f"limit not enforced: {text}", level="warning")


def tell(log: Path, event: str, *, level: str = "info") -> None:
    """Append a line to a job's log, in the form in which the Task SDK writes it. Best effort: a full disk is no error.

    A line that the job could not finish is ended first.
    """
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    line = json.dumps({"timestamp": now, "level": level, "event": event, "logger": _LOGGER}) + "\n"
    with contextlib.suppress(OSError):
        # The log lies within reach of tasks: a link must lead nowhere, and a FIFO must not stop us.
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(log, flags, 0o660)
        try:
            size = os.fstat(descriptor).st_size
            unfinished = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, (("\n" if unfinished else "") + line).encode())
        finally:
            os.close(descriptor)
