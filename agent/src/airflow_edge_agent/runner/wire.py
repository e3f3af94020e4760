"""What the daemon and the runner say to each other: one JSON object per line over a local socket.

Both ends use this module, so it needs nothing but the standard library. Unknown fields are ignored. A command has an
``op``, an event an ``ev``.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Literal, TypeAlias, get_args

from .limits import Limits

MAX_LINE_BYTES = 16 * 1024 * 1024
"""Longest line, its end included. A workload is a few kilobytes; this bounds what a confused peer can make us hold."""

MAX_DETAIL_CHARS = 2_000
"""Longest text of a ``detail``."""

Kind: TypeAlias = Literal["task", "callback", "connection_test"]
"""What Airflow asks an executor to run."""

KINDS: tuple[Kind, ...] = get_args(Kind)

_LAST_PORT = 65_535

_JOB_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class WireError(ValueError):
    """A line is no message. Its text says what is wrong and holds nothing of the content."""


class UnknownMessage(WireError):
    """A well-formed message of a type this side does not know: the other side is newer."""


class Outcome(StrEnum):
    """How a job ended, as far as a runner can tell; the values of the protocol's outcomes of the same names."""

    FINISHED = "finished"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    UNAUTHORIZED = "unauthorized"
    UNDELIVERED = "undelivered"
    KILLED = "killed"
    CRASHED = "crashed"
    NOT_STARTED = "not started"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """The end of a job, as in ``result.json`` and in :class:`Finished`."""

    job_id: str
    outcome: Outcome
    exit_code: int | None
    """Exit code of the workload's process, negative for a signal. ``None``: it never ran, or nobody saw it end."""
    detail: str | None
    cpu_seconds: float
    """User and system time of all its processes that were waited for."""
    peak_memory_bytes: int
    """Highest resident size of its largest process, shared pages included."""
    wall_seconds: float
    finished_at: str
    """UTC, ISO 8601."""
    io_read_bytes: int | None = None
    """What its processes have read from disks and written to them; ``None``: nobody has counted."""
    io_write_bytes: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> JobResult:
        """Read it from a JSON object.

        :raises WireError: when it is not a result.
        """
        values = _object(data, "result")
        try:
            outcome = Outcome(_typed(values, "outcome", str))
        except ValueError:
            raise WireError("outcome: unknown value") from None
        return cls(
            job_id=_job_id(values),
            outcome=outcome,
            exit_code=_optional(values, "exit_code", int),
            detail=_optional(values, "detail", str),
            cpu_seconds=float(_typed(values, "cpu_seconds", (int, float))),
            peak_memory_bytes=_typed(values, "peak_memory_bytes", int),
            wall_seconds=float(_typed(values, "wall_seconds", (int, float))),
            finished_at=_typed(values, "finished_at", str),
            io_read_bytes=_optional(values, "io_read_bytes", int),
            io_write_bytes=_optional(values, "io_write_bytes", int),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningJob:
    """A job that a runner is working on."""

    job_id: str
    pid: int
    start_time: int
    """When that process started, in clock ticks since boot: with the pid it names one process for good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """What the task runtime consists of."""

    python: str
    task_sdk: str
    airflow: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Daemon to runner: start this job. Answered by :class:`Started` or :class:`Refused`."""

    op: ClassVar = "run"
    job_id: str
    kind: Kind
    workload: dict[str, Any] = field(repr=False)
    """Airflow's workload without its token."""
    token: str = field(repr=False)
    server: str
    """Base URL of the Execution API, as the job is to reach it."""
    relay: str | None = None
    """Socket of the agent through which it is reached; ``token`` is then the job's secret there. ``None``: none."""
    patience_seconds: float = 0.0
    """How long the job may wait for an agent that is away; 0: as long as Airflow waits for a heartbeat."""
    limits: Limits = field(default_factory=Limits)
    statsd_port: int | None = None
    """Where on the loopback address the agent takes the metrics of tasks; ``None``: nowhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """Daemon to runner: 15 asks the job to end, 9 ends it with everything it has started."""

    op: ClassVar = "signal"
    job_id: str
    signal: Literal[15, 9]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Daemon to runner: exit as soon as no job runs, unless another one comes before that."""

    op: ClassVar = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Renew:
    """Daemon to runner: let a successor take over, from the code that is on disk now, and end with the last job."""

    op: ClassVar = "renew"


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """What keeps a job apart from the others, and what is missing for it."""

    cgroups: bool
    missing: tuple[str, ...]
    """What jobs have to do without, a line each."""
    own_supervisor: str | None = None
    """Why each job needs a supervising process of its own; ``None``: one process supervises all tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """Runner to daemon, first line of a connection."""

    ev: ClassVar = "hello"
    pid: int
    ready: bool
    versions: Versions | None
    jobs: tuple[RunningJob, ...]
    isolation: Isolation | None = None
    """``None`` before it is known: until then, the runner is not ready."""
    leaving: bool = False
    """It takes no new jobs: a successor does, on the same socket."""
    files: dict[str, str] = field(default_factory=dict)
    """What it was loaded from: paths with marks, see :func:`origin.mark`. Where one has changed, it is out of date."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Runner to daemon: warm-up is over. Jobs sent before were kept and start now."""

    ev: ClassVar = "ready"
    versions: Versions
    warmup_seconds: float
    isolation: Isolation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """Runner to daemon: from now on another runner takes the jobs on this socket. This one ends with its last job."""

    ev: ClassVar = "leaving"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Runner to daemon: this task runtime cannot run tasks, and why. The runner exits."""

    ev: ClassVar = "problem"
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """Runner to daemon: the job has a process of its own."""

    ev: ClassVar = "started"
    job_id: str
    pid: int
    start_time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """Runner to daemon: the job is over, all its processes are gone and ``result.json`` is written."""

    ev: ClassVar = "finished"
    job_id: str
    result: JobResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Runner to daemon: a command was not carried out. For a ``run``, nothing was started."""

    ev: ClassVar = "refused"
    job_id: str | None
    detail: str


Command: TypeAlias = Run | Signal | Stop | Renew
Event: TypeAlias = Hello | Ready | Leaving | Problem | Started | Finished | Refused


def encode(message: Command | Event) -> bytes:
    """Encode a message as one line."""
    kind = {"op": message.op} if isinstance(message, (Run, Signal, Stop, Renew)) else {"ev": message.ev}
    return json.dumps(kind | dataclasses.asdict(message), separators=(",", ":")).encode() + b"\n"


def decode_command(line: bytes) -> Command:
    """Decode what a daemon sent.

    :raises UnknownMessage: when the ``op`` is not known.
    :raises WireError: when it is no command.
    """
    data = _load(line)
    match _typed(data, "op", str):
        case "run":
            kind = data.get("kind")
            if kind not in KINDS:
                raise WireError("kind: no kind of workload that this runner knows")
            return Run(
                job_id=_job_id(data),
                kind=kind,
                workload=_typed(data, "workload", dict),
                token=_typed(data, "token", str),
                server=_typed(data, "server", str),
                relay=_optional(data, "relay", str),
                patience_seconds=float(_typed(data, "patience_seconds", (int, float)))
                if "patience_seconds" in data
                else 0.0,
                limits=_limits(data.get("limits")),
                statsd_port=_port(data),
            )
        case "signal":
            number = data.get("signal")
            if number not in (15, 9) or isinstance(number, float):
                raise WireError("signal: neither 15 nor 9")
            return Signal(job_id=_job_id(data), signal=number)
        case "stop":
            return Stop()
        case "renew":
            return Renew()
    raise UnknownMessage("op: not known to this runner")


def decode_event(line: bytes) -> Event:
    """Decode what a runner sent.

    :raises UnknownMessage: when the ``ev`` is not known.
    :raises WireError: when it is no event.
    """
    data = _load(line)
    match _typed(data, "ev", str):
        case "hello":
            versions = data.get("versions")
            jobs = (_object(job, "job") for job in _typed(data, "jobs", list))
            return Hello(
                pid=_typed(data, "pid", int),
                ready=_typed(data, "ready", bool),
                versions=None if versions is None else _versions(versions),
                jobs=tuple(RunningJob(**_process(job)) for job in jobs),
                isolation=_isolation(data.get("isolation")),
                leaving=bool(_optional(data, "leaving", bool)),
                files={str(path): str(mark) for path, mark in (_optional(data, "files", dict) or {}).items()},
            )
        case "ready":
            return Ready(
                versions=_versions(data.get("versions")),
                warmup_seconds=float(_typed(data, "warmup_seconds", (int, float))),
                isolation=_isolation(data.get("isolation")),
            )
        case "leaving":
            return Leaving()
        case "problem":
            return Problem(detail=_typed(data, "detail", str))
        case "started":
            return Started(**_process(data))
        case "finished":
            return Finished(job_id=_job_id(data), result=JobResult.from_dict(data.get("result")))
        case "refused":
            return Refused(job_id=_optional(data, "job_id", str), detail=_typed(data, "detail", str))
    raise UnknownMessage("ev: not known to this agent")


class LineBuffer:
    """Cuts a stream of bytes into lines."""

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self._data = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> list[bytes]:
        """Add what was received, and return the lines that are complete, without their ends.

        :raises WireError: when a line is longer than the limit.
        """
        # Only the new part can hold a line end, so a long line costs no repeated search.
        searched = len(self._data)
        self._data += data
        lines = []
        begin = 0
        while (end := self._data.find(b"\n", max(begin, searched))) >= 0:
            lines.append(bytes(self._data[begin:end]))
            begin = end + 1
        del self._data[:begin]
        if len(self._data) >= self._limit or any(len(line) >= self._limit for line in lines):
            raise WireError(f"line is longer than {self._limit} bytes")
        return lines


def _load(line: bytes) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        raise WireError("line is not JSON") from None
    return _object(data, "line")


def _object(data: object, what: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise WireError(f"{what} is not a JSON object")
    return data


def _typed(data: dict[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    value = data.get(name)
    # A bool is an int to isinstance, never to a peer that means a number.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise WireError(f"{name}: missing or of the wrong type")
    return value


def _optional(data: dict[str, Any], name: str, kind: type) -> Any:
    return None if data.get(name) is None else _typed(data, name, kind)


def _job_id(data: dict[str, Any]) -> str:
    value = _typed(data, "job_id", str)
    # It becomes a directory name, so nothing but a UUID may pass.
    if not _JOB_ID.fullmatch(value):
        raise WireError("job_id: not a lower-case UUID")
    return str(value)


def _process(data: dict[str, Any]) -> dict[str, Any]:
    return {
        "job_id": _job_id(data),
        "pid": _typed(data, "pid", int),
        "start_time": _typed(data, "start_time", int),
    }


def _versions(data: object) -> Versions:
    values = _object(data, "versions")
    return Versions(
        python=_typed(values, "python", str),
        task_sdk=_typed(values, "task_sdk", str),
        airflow=_optional(values, "airflow", str),
    )


def _port(data: dict[str, Any]) -> int | None:
    port: int | None = _optional(data, "statsd_port", int)
    if port is not None and not 0 < port <= _LAST_PORT:
        raise WireError("statsd_port: no port")
    return port


def _limits(data: object) -> Limits:
    try:
        return Limits.from_dict(data)
    except ValueError as error:
        raise WireError(str(error)) from None


def _isolation(data: object) -> Isolation | None:
    if data is None:
        return None
    values = _object(data, "isolation")
    return Isolation(
        cgroups=_typed(values, "cgroups", bool),
        missing=tuple(str(text) for text in _typed(values, "missing", list)),
        own_supervisor=_optional(values, "own_supervisor", str),
    )
