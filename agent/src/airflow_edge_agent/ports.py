"""What the agent needs of the world, as interfaces, and the faults the world may answer with.

Adapters implement these; each interface's implementations pass one contract suite. An adapter turns its library's
exceptions into the ones below: here it is decided, once, what can be waited out and what cannot.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from airflow_edge_agent.core.events import JobEnded
from airflow_edge_agent.core.maintenance import MaintenanceMemory
from airflow_edge_agent.core.tasks import TaskKey
from airflow_edge_agent.protocol.frames import AgentFrame, Hello, Metrics, Offer, ServerFrame
from airflow_edge_agent.protocol.limits import JobLimits

Presence = Callable[[], list[AgentFrame]]
"""Makes the frames that say how the agent is right now: a status and a heartbeat."""


class TransportError(Exception):
    """The server could not be reached or did not answer as it should; trying again later may help.

    The message is one line for the operator: what happened and what to do about it.
    """

    retry_after_seconds: float = 0.0


class NotReached(TransportError):
    """Nothing was sent: there was no connection to the server."""


class CredentialRefused(TransportError):
    """The server does not take our credential."""


class Throttled(TransportError):
    """The server has had enough of us for now, and says when to come again. It has not looked at what was sent."""


class CarrierUnsupported(TransportError):
    """The server is there, but this kind of connection does not come through to it. Another kind may."""


class ServerLeft(TransportError):
    """The server went away in good order, e.g. for a restart, and told all of its agents at once."""


class Link(Protocol):
    """An open connection that carries frames both ways."""

    carrier: str
    """What carries the frames, for people."""

    async def send(self, frames: list[AgentFrame]) -> None:
        """Send frames at once.

        :raises TransportError: the link is broken.
        """

    async def receive(self) -> list[ServerFrame]:
        """Wait for frames.

        :raises TransportError: the link is broken.
        """

    async def close(self) -> None:
        """Let go of it. Never raises."""


class Transport(Protocol):
    """A way to the server."""

    async def connect(self, hello: Hello, presence: Presence) -> Link:
        """Say hello and return the link; the server's answer comes through :meth:`Link.receive`.

        :param presence: asked whenever the link wants to send a sign of life.
        :raises TransportError: no server there.
        """

    async def close(self) -> None:
        """Release what the transport holds."""


@dataclass(frozen=True, slots=True)
class RelayCall:
    """What a job asks of Airflow's Execution API."""

    method: str
    target: bytes
    """Path and query, as they came."""
    headers: list[tuple[bytes, bytes]]
    """Names in lower case."""
    body: bytes | AsyncIterator[bytes]
    """A long one comes in pieces, and can be read once."""


@dataclass(frozen=True, slots=True)
class RelayReply:
    """What it is answered."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: AsyncIterator[bytes]
    refused: bool = False
    """It is the agent API's own, which did not pass the call on."""

    @classmethod
    def plain(cls, status: int, message: str = "", **headers: str) -> RelayReply:
        """Make an answer of our own, as the Execution API words its errors."""
        text = json.dumps({"detail": {"reason": "relay", "message": message}}).encode() if message else b""
        given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        if text:
            given.append((b"content-type", b"application/json"))
        if status != _NO_CONTENT:
            given.append((b"content-length", b"%d" % len(text)))
        return cls(status, given, _once(text))


_NO_CONTENT = 204


async def _once(data: bytes) -> AsyncIterator[bytes]:
    if data:
        yield data


RelayHandler = Callable[[RelayCall], AbstractAsyncContextManager[RelayReply]]
"""Answers a job's call; what the answer holds open is closed at the end of the context."""


class ExecutionApi(Protocol):
    """The way to Airflow's Execution API through the agent API."""

    def relay(self, job_id: str, fence: int, call: RelayCall) -> AbstractAsyncContextManager[RelayReply]:
        """Pass a call on, with our own credential; its target is a path below the Execution API.

        :raises TransportError: no answer came from there. Nobody knows whether the call was acted upon, unless it is a
            :class:`NotReached`.
        """


@dataclass(frozen=True)
class RunnerReady:
    """The runner has loaded the task runtime."""

    versions: dict[str, str]
    isolation: dict[str, Any] | None = None
    """What keeps its jobs apart, as it says: ``cgroups``, ``missing``, ``own_supervisor``."""


@dataclass(frozen=True)
class RunnerNotRenewed:
    """No successor has taken over from the runner, which goes on as it is."""

    detail: str


@dataclass(frozen=True)
class RunnerStarted:
    """The runner forked a job."""

    job_id: str
    pid: int


@dataclass(frozen=True)
class RunnerEnded:
    """A job is over; its result file is written, unless the disk was full."""

    job_id: str
    ended: JobEnded | None = None
    """How, as the runner says it."""


@dataclass(frozen=True)
class RunnerRefused:
    """The runner did not start a job."""

    job_id: str
    detail: str


@dataclass(frozen=True)
class RunnerUnusable:
    """The runner cannot work. Said before it refuses the jobs that waited for it, and before it goes."""

    problem: str


@dataclass(frozen=True)
class RunnerGone:
    """The runner's connection ended. ``problem``: why it cannot work, if it said so."""

    problem: str | None
    jobs: frozenset[str] = frozenset()
    """The jobs that this very runner had. Others may have gone to its successor already."""


RunnerEvent = RunnerReady | RunnerNotRenewed | RunnerStarted | RunnerEnded | RunnerRefused | RunnerUnusable | RunnerGone


class RunnerError(Exception):
    """The runner could not be started or reached. The message is one line for the operator."""


class Runner(Protocol):
    """The program that runs jobs."""

    async def reattach(self) -> dict[str, int]:
        """Connect to a runner that an earlier daemon left, if there is one; return its jobs and their pids."""

    async def start(
        self, offer: Offer, server: str, limits: JobLimits | None = None, relay: Path | None = None
    ) -> None:
        """Hand over a job, starting the runner if it is not there.

        :param server: base URL of Airflow's Execution API.
        :param limits: what the job may use; ``None``: as much as there is.
        :param relay: socket through which the job reaches the Execution API; ``None``: not through us.
        :raises RunnerError: it could not be handed over; nothing of it ran.
        """

    async def signal(self, job_id: str, signal: Literal["TERM", "KILL"]) -> None:
        """Signal a job. A job that is not there (any more) is no error."""

    async def renew(self, *, if_changed: bool = False) -> bool:
        """Let the runner be replaced by one from what is on disk now. Its jobs go on, new ones go to its successor.

        :param if_changed: only if its code or its task runtime is not what it was loaded from.
        :return: whether that was asked of a runner. One that is not there is loaded from disk anyway.
        """

    def events(self) -> AsyncIterator[RunnerEvent]:
        """Iterate over what the runner reports, without end."""

    async def close(self) -> None:
        """Let go of the runner. One with jobs goes on; an idle one is told to end."""


@dataclass(frozen=True)
class StoredJob:
    """A job's files, as an earlier run of the daemon left them."""

    job_id: str
    fence: int
    slots: int
    label: str
    boot_id: str
    handed_over: bool
    """Whether the runner has begun with it."""
    ended: JobEnded | None
    task: TaskKey | None = None
    disconnect_lease_seconds: float = 0.0


class StoreError(Exception):
    """The state directory does not do what it should. The message is one line for the operator."""


MAX_FINAL_BYTES = 16 * 1024 * 1024
"""Most bytes of the body of a final state that is kept on disk."""

FINAL_TARGET = re.compile(rb"task-instances/[0-9a-fA-F-]{36}/state(\?[!-~]{0,1000})?")
"""The call by which a task tells its final state, as a path below the Execution API; its method is PATCH."""


RENDERED_TARGET = re.compile(rb"task-instances/[0-9a-fA-F-]{36}/rtif(\?[!-~]{0,1000})?")
"""The call by which a task tells what its templates became; its method is PUT."""


@dataclass(frozen=True, slots=True)
class KeptCall:
    """A call of a task that has been answered, and that Airflow hears later."""

    target: bytes
    """Path below the Execution API."""
    headers: list[tuple[bytes, bytes]]
    body: bytes
    at: float
    """When it was kept, by wall time: of several, the first is delivered first."""


class FinalState(KeptCall):
    """The call by which a task tells Airflow the state it ends in; kept while the server is away."""

    __slots__ = ()

    @property
    def state(self) -> str:
        """Airflow's name of the state."""
        try:
            return str(json.loads(self.body)["state"])[:100]
        except (ValueError, KeyError, TypeError):
            return "unknown"


class JobStore(Protocol):
    """The agent's memory of its jobs across restarts: a directory for each."""

    def add(self, offer: Offer, boot_id: str) -> None:
        """Write down an accepted job, without its token, before it starts.

        :raises StoreError: e.g. the disk is full.
        """

    def load(self) -> list[StoredJob]:
        """Read all jobs that have not been forgotten."""

    def handed_over(self, job_id: str) -> bool:
        """Tell whether the runner has begun with the job."""

    def ended(self, job_id: str) -> JobEnded | None:
        """Read the result that the runner wrote; ``None`` if there is none."""

    def log_size(self, job_id: str) -> int:
        """Return the log's length in bytes; 0 if there is none."""

    def read_log(self, job_id: str, offset: int, limit_bytes: int) -> bytes:
        """Read a piece of the log; empty if there is nothing at that offset."""

    def shed_log(self, job_id: str, offset: int, count: int) -> int:
        """Drop about ``count`` bytes of the log from ``offset`` on, leave a marker line there; return the new length.

        Nothing at or beyond ``offset`` may have been read for the server.

        :raises StoreError: it cannot be done here, or the disk is full.
        """

    def note_sent(self, job_id: str, offset: int) -> None:
        """Remember across restarts that nothing of the log beyond this was ever sent. Never raises."""

    def sending(self, job_id: str, end: int) -> None:
        """Forget what was noted, if it will not be true any more when the log is sent up to ``end``. Never raises."""

    def sent(self, job_id: str) -> int | None:
        """Return what was noted; ``None``: nothing, so all of it may have been sent."""

    def append_log(self, job_id: str, text: str) -> int:
        """Append a line of the agent's own to the log and return the log's length. Best effort."""

    def keep_final(self, job_id: str, final: FinalState) -> None:
        """Write a job's final state down so that it outlives a crash of the host.

        :raises StoreError: e.g. the disk is full.
        """

    def has_final(self, job_id: str) -> bool:
        """Tell whether a final state is kept, by us or, while no daemon was there, by the runner."""

    def final(self, job_id: str) -> FinalState | None:
        """Return it; ``None``: there is none that can be used."""

    def drop_final(self, job_id: str) -> None:
        """Remove it. Never raises."""

    def keep_rendered(self, job_id: str, call: KeptCall) -> None:
        """Write down what a job's templates became so that it outlives the daemon; with a final state, the host, too.

        :raises StoreError: e.g. the disk is full.
        """

    def has_rendered(self, job_id: str) -> bool:
        """Tell whether it is kept."""

    def rendered(self, job_id: str) -> KeptCall | None:
        """Return it; ``None``: there is none that can be used."""

    def drop_rendered(self, job_id: str) -> None:
        """Remove it. Never raises."""

    def record_end(self, ended: JobEnded) -> None:
        """Write down how a job ended, in place of what the runner wrote. Best effort."""

    def note_contact(self) -> None:
        """Remember across restarts that the server was there just now. Never raises."""

    def contact_seconds_ago(self) -> float:
        """Return how long ago that was noted, by wall time; 0: not known."""

    def check(self) -> str | None:
        """Say in one line why no further job could be written down; ``None`` if one could."""

    def forget(self, job_id: str) -> None:
        """Remove a job's files. Never raises."""


class HealthProbe(Protocol):
    """Measures what automatic maintenance goes by."""

    def figures(self) -> dict[str, float]:
        """Return the figures of now, by the names of the thresholds; what is not available is left out."""


class MetricsProbe(Protocol):
    """Measures the host."""

    def measure(self) -> Metrics:
        """Return the figures of now; what is not available is ``None``."""


class Notifier(Protocol):
    """Tells the service manager how we are."""

    watchdog_seconds: float | None
    """Within this time the service manager wants a sign of life; ``None``: it wants none."""

    def ready(self, status: str) -> None:
        """Say that start-up, or a reload, is complete."""

    def status(self, status: str) -> None:
        """Say in one line what goes on."""

    def reloading(self) -> None:
        """Say that the configuration is being read again; :meth:`ready` ends it."""

    def stopping(self, status: str) -> None:
        """Say that the way out has begun."""

    def extend(self, seconds: float) -> None:
        """Ask for this much time, from now on, for the step under way."""

    def alive(self) -> None:
        """Give the sign of life that the watchdog waits for."""


class MaintenanceStore(Protocol):
    """Keeps maintenance over restarts."""

    def load(self) -> MaintenanceMemory:
        """Read what was kept; nothing if there is nothing.

        :raises StoreError: it cannot be read or understood.
        """

    def save(self, memory: MaintenanceMemory) -> None:
        """Keep it.

        :raises StoreError: e.g. the disk is full; what was kept before stays.
        """


@dataclass(frozen=True)
class Caller:
    """Who asks something on the control socket, as the kernel says."""

    uid: int
    user: str
    may_read: bool
    may_change: bool
    trusted: bool
    """Root or the agent's own user."""


class ControlRefused(Exception):
    """A request on the control socket is not granted. The message is one line for the operator."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
