"""What the core is told (events) and what it wants done (instructions)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from airflow_edge_agent.core.maintenance import MaintenanceMemory, Source
from airflow_edge_agent.core.policy import Limits
from airflow_edge_agent.core.tasks import TaskKey
from airflow_edge_agent.protocol.frames import AgentFrame, Offer, ServerFrame, Usage, Welcome
from airflow_edge_agent.protocol.jobs import Outcome
from airflow_edge_agent.protocol.limits import JobLimits

StopPolicy = Literal["wait", "leave", "end"]
"""What a stop does about running jobs."""

StopKind = Literal["stop", "restart", "shutdown"]
"""What a stop is for, as the service manager says it."""

# --- Events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LinkOpened:
    """The server answered the hello with a welcome."""

    welcome: Welcome


@dataclass(frozen=True)
class FrameArrived:
    """The server sent a frame other than the welcome."""

    frame: ServerFrame


@dataclass(frozen=True)
class LinkLost:
    """The connection broke, or could not be made."""

    reason: str


@dataclass(frozen=True)
class JobStarted:
    """The runner has forked the job's process."""

    job_id: str
    pid: int


@dataclass(frozen=True)
class JobHeard:
    """The server has answered a call that we relayed for the job: it lets it run on."""

    job_id: str


@dataclass(frozen=True)
class JobEnding:
    """The job has done its work, but the server cannot hear its return value or its final state."""

    job_id: str
    waits: bool
    """``False``: it does not wait for that any more."""


@dataclass(frozen=True)
class JobEnded:
    """The job is over, or never began."""

    job_id: str
    outcome: Outcome
    exit_code: int | None = None
    detail: str | None = None
    log_bytes: int = 0
    usage: Usage = field(default_factory=Usage)
    unsaid: bool = False
    """Its final state is on disk, and Airflow has not heard of it yet."""


@dataclass(frozen=True)
class FinalKept:
    """The job's final state has been taken on Airflow's behalf, and is on disk."""

    job_id: str


@dataclass(frozen=True)
class FinalSettled:
    """Airflow has taken the final state that waited on disk, or never will."""

    job_id: str
    state: str
    log_bytes: int = 0
    """Size of the job's log by now."""
    refusal: str | None = None
    """Why it was not taken; ``None``: it was."""
    overruled: bool = False
    """With a refusal: Airflow had decided otherwise."""


@dataclass(frozen=True)
class JobFound:
    """A job of an earlier run of the daemon, found on disk; ``ended`` if it is over, else it still runs."""

    job_id: str
    fence: int
    slots: int
    label: str
    pid: int | None = None
    ended: JobEnded | None = None
    log_bytes: int = 0
    log_sent: int | None = None
    """Nothing of its log beyond this was ever sent. ``None``: not known."""
    task: TaskKey | None = None
    disconnect_lease_seconds: float = 0.0
    heard_seconds_ago: float = 0.0
    """How long ago the daemon before us has last heard of the server."""
    unsaid: bool = False
    """As in :class:`JobEnded`."""


@dataclass(frozen=True)
class LogGrew:
    """The job's log file has this many bytes."""

    job_id: str
    size_bytes: int


@dataclass(frozen=True)
class LogGone:
    """The job's log cannot be read any more from the place that was asked for."""

    job_id: str


@dataclass(frozen=True)
class LogShed:
    """Some of the job's log was dropped; what is left has this many bytes. ``problem``: it could not be done."""

    job_id: str
    size_bytes: int
    problem: str | None = None


@dataclass(frozen=True)
class RuntimeChecked:
    """The task runtime was looked at: ``problem`` says why it cannot run tasks, ``None`` that it can."""

    problem: str | None


@dataclass(frozen=True)
class StopAsked:
    """An operator or the system wants the agent to stop. The second time it is meant seriously."""

    reason: str
    policy: StopPolicy = "wait"


@dataclass(frozen=True)
class DrainAsked:
    """An operator wants no new jobs here until further notice. After the deadline, running ones are ended."""

    by: str
    deadline_seconds: float | None = None


@dataclass(frozen=True)
class ResumeAsked:
    """An operator wants jobs to be taken again."""

    by: str


@dataclass(frozen=True)
class MaintenanceRemembered:
    """What an earlier run of the daemon has kept about maintenance."""

    memory: MaintenanceMemory


@dataclass(frozen=True)
class MaintenanceDecided:
    """Somebody or something on this machine wants maintenance, or the end of it. ``at`` is wall time."""

    on: bool
    by: str
    at: datetime
    comment: str | None = None
    until: datetime | None = None
    source: Source = "operator"


@dataclass(frozen=True)
class LimitsChanged:
    """The agent is configured otherwise from now on."""

    limits: Limits


@dataclass(frozen=True)
class Tick:
    """Time passes."""


Event = (
    LinkOpened
    | FrameArrived
    | LinkLost
    | JobStarted
    | JobHeard
    | JobEnding
    | JobEnded
    | FinalKept
    | FinalSettled
    | JobFound
    | LogGrew
    | LogGone
    | LogShed
    | RuntimeChecked
    | StopAsked
    | DrainAsked
    | ResumeAsked
    | MaintenanceRemembered
    | MaintenanceDecided
    | LimitsChanged
    | Tick
)

# --- Instructions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Send:
    """Send this frame; if the link is down, forget it: what matters is sent again after the next welcome."""

    frame: AgentFrame


@dataclass(frozen=True)
class StartJob:
    """Write the job down, then hand it to the runner."""

    offer: Offer
    limits: JobLimits = field(default_factory=JobLimits)


@dataclass(frozen=True)
class SignalJob:
    """End the job: ``TERM`` asks it, ``KILL`` does not ask."""

    job_id: str
    signal: Literal["TERM", "KILL"]


@dataclass(frozen=True)
class ShipLog:
    """Read this piece of the job's log and send it."""

    job_id: str
    offset: int
    limit_bytes: int


@dataclass(frozen=True)
class ShedLog:
    """Drop this piece of the job's log, which was never sent, and leave a marker."""

    job_id: str
    offset: int
    count: int


@dataclass(frozen=True)
class NoteInLog:
    """Write a line of the agent's own into the job's log."""

    job_id: str
    text: str


@dataclass(frozen=True)
class DropFinal:
    """The final state on disk has been settled. ``ended``: write down first that this is how the job ended."""

    job_id: str
    ended: JobEnded | None = None


@dataclass(frozen=True)
class ForgetJob:
    """Server and agent agree that the job is done: remove its files."""

    job_id: str
    label: str = field(default="", compare=False)
    task: TaskKey | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Say:
    """Log a line for the operator."""

    level: Literal["debug", "info", "warning", "error"]
    message: str
    job_id: str | None = None
    label: str | None = None
    task: TaskKey | None = None
    name: str | None = None
    """The kind of event, for those who look for it by machine."""


@dataclass(frozen=True)
class KeepMaintenance:
    """Write this down, for the next start."""

    memory: MaintenanceMemory


@dataclass(frozen=True)
class Exit:
    """Leave with this exit code."""

    code: int
    reason: str


Instruction = (
    Send | StartJob | SignalJob | ShipLog | ShedLog | NoteInLog | DropFinal | ForgetJob | Say | KeepMaintenance | Exit
)
