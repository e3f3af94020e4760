"""What the admin API says and is told.

Units are part of the field names: ``_seconds``, ``_bytes``, ``_percent``. Times are UTC. ``null`` means not known, or
not so.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from airflow_edge_agent.protocol.frames import MAX_JOBS, Name, Queue
from airflow_edge_agent.protocol.jobs import JobState, Outcome
from airflow_edge_agent.protocol.states import AgentState

JOB_ID_PATTERN = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"


class _Said(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Asked(BaseModel):
    # A misspelt field must not be taken for one that was left out.
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerVersions(_Said):
    """What software answers."""

    airflow_edge_server: str
    airflow: str


class Me(_Said):
    """The caller, and what he may do."""

    user: str
    can_view: bool
    can_change: bool
    versions: ServerVersions


class Measurement(_Said):
    """How an agent's host is."""

    cpu_percent: float | None = Field(default=None, description="Of all cores together, 0 to 100.")
    load_1_per_core: float | None = None
    memory_percent: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    disk_percent: float | None = Field(default=None, description="Of the disk that holds the agent's state.")
    disk_used_bytes: int | None = None
    disk_total_bytes: int | None = None


class HostMetrics(Measurement):
    """The last measurement of an agent's host."""

    cpu_count: int | None = None
    uptime_seconds: float | None = None
    agent_memory_bytes: int | None = Field(default=None, description="Resident memory of the daemon itself.")
    custom: dict[str, JsonValue] = Field(default={}, description="What the site's own commands have measured.")


class MaintenanceView(_Said):
    """Maintenance of an agent, asked for at either end."""

    wanted: bool = Field(description="Whether the server wants it; false: somebody at the site does.")
    comment: str | None
    by: str | None
    since: datetime | None
    until: datetime | None = Field(description="When it ends by itself; null: when somebody ends it.")


class Overrides(_Said):
    """What the server wants otherwise than the agent's own configuration says."""

    slots: int | None = Field(default=None, description="How many jobs at a time; null: as configured there.")
    queues_added: list[str] = []
    queues_removed: list[str] = []
    drain: bool = Field(default=False, description="It is offered nothing until this is taken back.")


class AwayView(_Said):
    """What is known of an agent that is not connected."""

    since: datetime = Field(description="When it was last heard of.")
    lease_until: datetime | None = Field(
        description="When the first of its jobs is ended, if it has not come back; null: none has a disconnect lease."
    )
    running: int = Field(description="Jobs that it had accepted or begun, and whose end is not known.")
    results_waiting: int | None = Field(
        description="Results that it still had to deliver when it was last heard of; null: it did not say."
    )


class AgentItem(_Said):
    """An agent in a list."""

    name: str
    team: str | None
    state: AgentState
    connected: bool
    problem: str | None = Field(description="Why it cannot work although it is connected.")
    drained: str | None = Field(
        default=None, description="Who drained it on its host, and what ends that; null: nobody has."
    )
    warnings: list[str]
    queues: list[str] = Field(description="What it serves: what it wants to serve, as far as that is granted.")
    refused_queues: list[str] = Field(description="What it wants to serve, and is not granted.")
    granted_queues: list[str] | None = Field(description="What it may serve; '*' stands for every queue.")
    enrolled_at: datetime | None
    revoked_at: datetime | None = Field(
        description="Since when it is shut out, but for finishing jobs that it holds; null: it is not."
    )
    slots_used: int
    slots_total: int
    jobs: int = Field(description="Jobs it has been given and that have not ended.")
    last_contact_at: datetime | None
    connected_at: datetime | None
    first_seen_at: datetime | None
    hostname: str | None
    versions: dict[str, str] = Field(description="By piece of software: agent, python, task_sdk, airflow, ...")
    metrics: HostMetrics
    maintenance: MaintenanceView | None = Field(description="null: not in maintenance, and not asked to be.")
    away: AwayView | None = Field(
        default=None, description="null: it is connected, or has never been, or is offline and has nothing to do."
    )
    results_waiting: int | None = Field(default=None, description="Results it has not delivered yet, as it last said.")
    carrier: Literal["websocket", "http"] | None = Field(description="How it is connected.")
    overrides: Overrides


class AgentList(_Said):
    """A page of agents."""

    items: list[AgentItem]
    total: int = Field(description="How many match, on all pages.")


class AgentDetail(AgentItem):
    """An agent, with what a list leaves out."""

    agent_id: str | None
    boot_id: str | None
    configuration: dict[str, JsonValue] | None = Field(
        description="As the agent has reported it, without secrets; null: it has not."
    )


class MetricsPoint(Measurement):
    """One minute of an agent's host."""

    at: datetime
    slots_used: int | None = None


class MetricsHistory(_Said):
    """The measurements of an agent's host, oldest first."""

    name: str
    minutes: int
    points: list[MetricsPoint]


class EventItem(_Said):
    """Something that happened to an agent."""

    id: int
    at: datetime
    kind: str = Field(description="connected, disconnected, lost, reboot, refused, maintenance, limit, changed, ...")
    detail: str | None
    by: str | None = Field(description="Who did it; null: nobody in particular.")


class EventList(_Said):
    """Events, newest first."""

    items: list[EventItem]
    more: bool = Field(description="Whether there are older ones; ask with before=<id of the last>.")


class JobItem(_Said):
    """One dispatch of one workload."""

    id: str
    kind: Literal["task", "callback", "connection_test"]
    state: JobState
    queue: str
    team: str | None
    slots: int
    priority_weight: int
    agent: str | None
    dag_id: str | None
    run_id: str | None
    task_id: str | None
    map_index: int
    try_number: int
    queued_at: datetime
    offered_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    outcome: Outcome | None
    exit_code: int | None
    detail: str | None
    cancel_reason: str | None
    wall_seconds: float | None
    cpu_seconds: float | None
    peak_memory_bytes: int | None
    why: str | None = Field(description="Why a queued job does not run yet.")


class JobList(_Said):
    """A page of jobs, newest first; those that wait come in the order in which they are served."""

    items: list[JobItem]
    total: int


class QueueItem(_Said):
    """A queue: what waits in it, and who serves it."""

    name: str
    team: str | None
    queued: int
    running: int = Field(description="Offered, accepted or running.")
    oldest_queued_at: datetime | None
    oldest_waiting_seconds: float | None
    agents: int = Field(description="Agents that serve it, connected or not.")
    agents_ready: int = Field(description="Of these, those that take jobs.")
    free_slots: int
    warning: str | None


class QueueList(_Said):
    """All queues, those with a warning first."""

    items: list[QueueItem]


class Trouble(_Said):
    """An agent that needs somebody to look at it."""

    name: str
    state: AgentState
    problem: str


class Overview(_Said):
    """The fleet at a glance."""

    at: datetime
    agents: int
    agents_connected: int
    agents_by_state: dict[AgentState, int]
    slots_used: int = Field(description="Of connected agents.")
    slots_total: int
    jobs_queued: int
    jobs_running: int = Field(description="Offered, accepted or running.")
    oldest_queued_at: datetime | None
    finished_last_hour: int
    finished_last_hour_by_outcome: dict[Outcome, int]
    problems: list[Trouble] = Field(description="At most 20 of them.")
    problems_total: int
    queues_without_agent: list[str] = Field(description="Queues with waiting jobs that no agent serves.")


AgentAction = Literal[
    "maintenance_on", "maintenance_off", "drain", "resume", "concurrency", "queues", "revoke", "delete"
]

Comment = Annotated[str, Field(max_length=2_000, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f]*$")]
SlotsWanted = Annotated[int, Field(ge=1, le=MAX_JOBS)]
MaintenanceSeconds = Annotated[float, Field(gt=0, le=366 * 86_400, allow_inf_nan=False)]
QueueNames = Annotated[list[Queue], Field(max_length=100)]


class MaintenanceOrder(_Asked):
    """Put an agent into maintenance, or take it out."""

    on: bool
    comment: Comment | None = None
    for_seconds: MaintenanceSeconds | None = Field(
        default=None, description="How long; it then ends by itself. null: until somebody ends it."
    )


class DrainOrder(_Asked):
    """Offer an agent nothing more, or offer it jobs again."""

    on: bool = True


class ConcurrencyOrder(_Asked):
    """Let an agent run so many jobs at a time."""

    slots: SlotsWanted | None = Field(description="null: as its own configuration says.")


class QueuesOrder(_Asked):
    """Let an agent serve more queues than it is configured with, or fewer."""

    add: QueueNames = []
    remove: QueueNames = []
    reset: bool = Field(default=False, description="First forget what was added and removed before.")


class RevokeOrder(_Asked):
    """Take an agent's credentials away."""

    running_jobs: Literal["finish", "cancel"] = "finish"


class CancelOrder(_Asked):
    """End a job."""

    reason: Comment | None = None


class AgentOrder(_Asked):
    """What is to be done to an agent."""

    action: AgentAction
    comment: Comment | None = Field(default=None, description="For maintenance.")
    for_seconds: MaintenanceSeconds | None = Field(default=None, description="For maintenance_on.")
    slots: SlotsWanted | None = Field(default=None, description="For concurrency; null: as configured there.")
    add: QueueNames = Field(default=[], description="For queues.")
    remove: QueueNames = Field(default=[], description="For queues.")
    reset: bool = Field(default=False, description="For queues.")
    running_jobs: Literal["finish", "cancel"] = Field(default="finish", description="For revoke.")


class BulkOrder(AgentOrder):
    """Do the same to several agents."""

    names: Annotated[list[Name], Field(min_length=1, max_length=1_000)]
    dry_run: bool = Field(default=False, description="Only say what would be done.")


class Done(_Said):
    """What became of one order."""

    name: str = Field(description="The agent, or the job.")
    ok: bool
    message: str
    code: str | None = Field(default=None, description="not_found or conflict, if it was not done.")


class BulkDone(_Said):
    """What became of an order to several agents."""

    dry_run: bool
    failed: int
    results: list[Done]


Platform = Literal["deb", "rpm", "manual"]


class JoinTokenItem(_Said):
    """A join token, without its secret."""

    id: str
    name_pattern: str
    queues: list[str] = Field(description="What its agents may serve; '*' stands for every queue.")
    team: str | None
    uses_left: int
    usable: bool = Field(description="Whether it still lets somebody in.")
    expires_at: datetime
    created_at: datetime
    created_by: str | None
    used_at: datetime | None
    revoked_at: datetime | None


class JoinTokenList(_Said):
    """Join tokens, newest first."""

    items: list[JoinTokenItem]


class TeamList(_Said):
    """Airflow's teams, by name."""

    enabled: bool = Field(description="Whether Airflow has teams ([core] multi_team).")
    items: list[str]


class JoinTokenOrder(_Asked):
    """Make a join token."""

    name_pattern: Annotated[str, Field(min_length=1, max_length=63)] = Field(
        description="Name of the agent, or names with * and ?."
    )
    queues: Annotated[list[Queue], Field(min_length=1, max_length=100)]
    valid_seconds: Annotated[float, Field(gt=0, le=366 * 86_400, allow_inf_nan=False)] = 86_400
    team: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="Whose jobs its agents get; null: those of no team."
    )
    uses: Annotated[int, Field(ge=1, le=10_000)] = 1
    server_url: Annotated[str, Field(max_length=2_000, pattern=r"^https?://[!-~]+$")] | None = Field(
        default=None, description="Airflow's address as the new machine reaches it; null: its base URL."
    )


class NewJoinToken(_Said):
    """A join token as it was made; its text cannot be had again."""

    id: str
    token: str
    expires_at: datetime
    commands: dict[Platform, list[str]] = Field(description="What to run on the new machine; they ask for the token.")


class Fault(_Said):
    """Why a request was not answered."""

    detail: str | list[JsonValue]
