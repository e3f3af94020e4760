"""The frames that agent and server exchange, whatever carries them.

Every frame is a JSON object with a ``type``. Unknown fields are ignored and an unknown ``type`` becomes an
:class:`UnknownFrame`, so that each side may be somewhat newer than the other. Every string, list and number is bounded.

Units are part of the field names: ``_seconds``, ``_bytes``, ``_percent``.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from airflow_edge_agent.protocol.jobs import Outcome
from airflow_edge_agent.protocol.limits import JobLimits
from airflow_edge_agent.protocol.states import AgentState

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
"""What an agent's name looks like: letters, digits, dot, underscore, hyphen; at most 63 characters."""

QUEUE_PATTERN = r"^[^\s,\x00-\x1f\x7f][^,\x00-\x1f\x7f]{0,255}$"

MAX_JOBS = 1_000
"""Most jobs one agent may hold, and most entries in any list of jobs."""

MAX_FRAMES = 256
"""Most frames in one batch."""

MAX_LOG_CHUNK_BYTES = 256 * 1024
"""Most bytes of log, before compression, in one frame."""

MAX_CUSTOM_BYTES = 16 * 1024
"""Most bytes, as JSON, of the figures that a site's own commands add to a heartbeat."""

MAX_CONFIGURATION_SETTINGS = 500
MAX_CONFIGURATION_NAME = 400
MAX_CONFIGURATION_BYTES = 32 * 1024
"""Most bytes, as JSON, of what an agent says of its configuration."""

MAX_TASK_METRICS = 200
"""Most metrics of tasks in one frame; the same name with other tags is another one."""

MAX_TIMINGS = 50
"""Most values of one timing in one frame."""

MAX_TASK_METRICS_BYTES = 96 * 1024
"""Most bytes, as JSON, of the metrics of tasks in one frame."""

MAX_METRIC_TAGS = 20

MAX_BATCH_BYTES = 4 * 1024 * 1024
"""Most bytes of one encoded batch."""

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Queue = Annotated[str, Field(pattern=QUEUE_PATTERN)]
Text = Annotated[str, Field(max_length=2_000)]
Word = Annotated[str, Field(max_length=200)]
JobId = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
Fence = Annotated[int, Field(ge=1, le=2**31 - 1)]
Bytes = Annotated[int, Field(ge=0, le=2**63 - 1)]
PublicKey = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""Hexadecimal Ed25519 public key."""
Signature = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{86}$")]
"""Ed25519 signature, in base64 for URLs without padding."""
Slots = Annotated[int, Field(ge=0, le=MAX_JOBS)]
Seconds = Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class _Frame(BaseModel):
    # Each is built when it is first used: an end of the line makes half of them, and reads the others as a union.
    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)


def _bounded(most_bytes: int, what: str) -> AfterValidator:
    def check(figures: dict[str, JsonValue]) -> dict[str, JsonValue]:
        size = len(json.dumps(figures, allow_nan=False))
        if size > most_bytes:
            raise ValueError(f"{size} bytes of {what}; at most {most_bytes} are taken")
        return figures

    return AfterValidator(check)


Configuration = Annotated[
    dict[Annotated[str, Field(max_length=MAX_CONFIGURATION_NAME)], JsonValue],
    Field(max_length=MAX_CONFIGURATION_SETTINGS),
    _bounded(MAX_CONFIGURATION_BYTES, "configuration"),
]


class Versions(_Frame):
    """What software an agent consists of. ``None``: not known (yet)."""

    agent: Word
    python: Word
    task_sdk: Word | None = None
    airflow: Word | None = None
    runtime_python: Word | None = None


class HeldJob(_Frame):
    """A job that an agent still holds at the time of its hello."""

    job_id: JobId
    fence: Fence
    phase: Literal["accepted", "running", "finished"]
    log_bytes: Bytes = 0
    outcome: Outcome | None = None
    """How it ended. ``None``: it has not, or it is not told."""


class Hello(_Frame):
    """Agent to server, first frame of a session: who I am, and what I still hold."""

    type: Literal["hello"] = "hello"
    protocol_min: int = Field(ge=1, le=10_000)
    protocol_max: int = Field(ge=1, le=10_000)
    name: Name
    agent_id: JobId
    """Identity of the agent's state directory: survives restarts, differs between two agents on one host."""
    boot_id: Word
    instance_id: JobId
    """Identity of this run of the daemon."""
    attempt: int = Field(default=0, ge=0, le=2**32 - 1)
    """Counts the hellos of this run, from 1: one that comes late must not undo a later one. 0: not told."""
    hostname: Word
    versions: Versions
    queues: Annotated[list[Queue], Field(max_length=100)]
    concurrency: Slots
    state: AgentState
    execution_api: Literal["relay", "direct"] = "direct"
    """How the agent lets tasks reach Airflow's Execution API: through itself, or by themselves with a token. An agent
    that says nothing of it is older than the relay."""
    jobs: Annotated[list[HeldJob], Field(max_length=MAX_JOBS)]
    configuration: Configuration | None = None
    """What it is configured with, by the names of its settings, without secrets."""


class Status(_Frame):
    """Agent to server: state and free slots, whenever they change."""

    type: Literal["status"] = "status"
    state: AgentState
    slots_total: Slots
    slots_used: Slots
    problem: Text | None = None
    """Why the agent cannot work although it is connected, e.g. a broken task runtime."""
    queues: Annotated[list[Queue], Field(max_length=100)] | None = None
    """The queues it serves, if they have changed since the start of the daemon; ``None``: as in the hello."""
    sequence: int = Field(default=0, ge=0, le=2**31 - 1)
    """Grows whenever what is said above changes: of two that overtake each other, the greater is true. 0: not told."""
    controls: int = Field(default=0, ge=0, le=2**31 - 1)
    """Revision of the :class:`Controls` that this goes by. 0: none."""


class Metrics(_Frame):
    """A measurement of the agent's host. ``None``: not available there."""

    cpu_percent: Percent | None = None
    """Of all cores together, 0 to 100, since the measurement before."""
    cpu_count: int | None = Field(default=None, ge=1, le=100_000)
    load_1_per_core: float | None = Field(default=None, ge=0, le=1e6)
    load_5_per_core: float | None = Field(default=None, ge=0, le=1e6)
    load_15_per_core: float | None = Field(default=None, ge=0, le=1e6)
    memory_total_bytes: Bytes | None = None
    memory_used_bytes: Bytes | None = None
    swap_total_bytes: Bytes | None = None
    swap_used_bytes: Bytes | None = None
    state_disk_total_bytes: Bytes | None = None
    state_disk_used_bytes: Bytes | None = None
    state_disk_free_bytes: Bytes | None = None
    temp_disk_total_bytes: Bytes | None = None
    temp_disk_used_bytes: Bytes | None = None
    temp_disk_free_bytes: Bytes | None = None
    network_sent_bytes: Bytes | None = None
    network_received_bytes: Bytes | None = None
    uptime_seconds: Seconds | None = None
    agent_memory_bytes: Bytes | None = None
    """Resident memory of the daemon itself."""


CustomFigures = Annotated[
    dict[Annotated[str, Field(max_length=60)], JsonValue],
    Field(max_length=20),
    _bounded(MAX_CUSTOM_BYTES, "custom figures"),
]


class Heartbeat(_Frame):
    """Agent to server: alive, and how the host is."""

    type: Literal["heartbeat"] = "heartbeat"
    metrics: Metrics
    sent_at: AwareDatetime
    versions: Versions | None = None
    custom: CustomFigures | None = None
    """What the site's own commands have measured, by their names."""
    results_waiting: int | None = Field(default=None, ge=0, le=2**31 - 1)
    """How many results of jobs the server has not taken yet; ``None``: not told."""


class Accept(_Frame):
    """Agent to server: I take this job. It starts only after :class:`AcceptAck`."""

    type: Literal["accept"] = "accept"
    job_id: JobId
    fence: Fence


class Refuse(_Frame):
    """Agent to server: not now. The job goes back to its queue."""

    type: Literal["refuse"] = "refuse"
    job_id: JobId
    fence: Fence
    reason: Text


class Started(_Frame):
    """Agent to server: the workload's process runs."""

    type: Literal["started"] = "started"
    job_id: JobId
    fence: Fence
    pid: int = Field(ge=1, le=2**31 - 1)


class Usage(_Frame):
    """What a job used."""

    wall_seconds: Seconds | None = None
    cpu_seconds: Seconds | None = None
    """User and system time of all its processes that have ended."""
    peak_memory_bytes: Bytes | None = None
    """Most memory of all its processes together where they have a cgroup, else of the largest of them."""
    io_read_bytes: Bytes | None = None
    """Read from disks; known only where the job has a cgroup with the io controller."""
    io_write_bytes: Bytes | None = None


class Result(_Frame):
    """Agent to server: the job is over. Repeated until :class:`ResultAck` comes."""

    type: Literal["result"] = "result"
    job_id: JobId
    fence: Fence
    outcome: Outcome
    exit_code: int | None = Field(default=None, ge=-(2**31), le=2**31 - 1)
    detail: Text | None = None
    log_bytes: Bytes = 0
    """Final length of the log."""
    usage: Usage = Usage()


class Log(_Frame):
    """Agent to server: a piece of a job's log.

    ``data`` is base64 of the zlib-compressed bytes that start at ``offset``.
    """

    type: Literal["log"] = "log"
    job_id: JobId
    offset: Bytes
    data: Annotated[str, Field(max_length=MAX_LOG_CHUNK_BYTES * 3 // 2)]


class MaintenanceAsked(_Frame):
    """Agent to server: somebody at the agent has decided this. Repeated until a :class:`Maintenance` settles it."""

    type: Literal["maintenance_asked"] = "maintenance_asked"
    on: bool
    by: Word
    since: AwareDatetime
    """When it was decided, by the agent's clock; also the name of this decision."""
    comment: Text | None = None


class NewKey(_Frame):
    """Agent to server, answer to a :class:`Rotate`: from now on this is my public key, beside the present one."""

    type: Literal["new_key"] = "new_key"
    public_key: PublicKey
    signature: Signature
    """Made with the new key: of the id of the present credential and the public key."""


MetricName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_./-]{1,250}$")]
MetricTags = Annotated[
    dict[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,60}$")],
        Annotated[str, Field(pattern=r"^[A-Za-z0-9_./-]{0,200}$")],
    ],
    Field(max_length=MAX_METRIC_TAGS),
]
MetricValue = Annotated[float, Field(ge=-1e15, le=1e15, allow_inf_nan=False)]


class TaskMetric(_Frame):
    """A metric that tasks have told to StatsD."""

    name: MetricName
    """Without Airflow's prefix."""
    kind: Literal["counter", "gauge", "timing"]
    tags: MetricTags = {}
    values: Annotated[list[MetricValue], Field(min_length=1, max_length=MAX_TIMINGS)]
    """Of a counter the sum, of a gauge the last value, of a timing each one, in milliseconds."""
    delta: bool = False
    """Of a gauge: the value is to be added to what there is."""


def _small_enough(metrics: list[TaskMetric]) -> list[TaskMetric]:
    size = sum(len(metric.model_dump_json()) + 1 for metric in metrics)
    if size > MAX_TASK_METRICS_BYTES:
        raise ValueError(f"{size} bytes of metrics; at most {MAX_TASK_METRICS_BYTES} are taken")
    return metrics


class TaskMetrics(_Frame):
    """Agent to server: what tasks have told to StatsD since the last time. Neither acknowledged nor said again."""

    type: Literal["task_metrics"] = "task_metrics"
    metrics: Annotated[list[TaskMetric], Field(max_length=MAX_TASK_METRICS), AfterValidator(_small_enough)]
    dropped: int = Field(default=0, ge=0, le=2**31 - 1)
    """How many values were left out at the agent: too many of them, too late, or not understood."""


class Goodbye(_Frame):
    """Agent to server: a clean stop; nothing more will come from this session."""

    type: Literal["goodbye"] = "goodbye"
    state: AgentState
    reason: Text


class Intervals(_Frame):
    """Times that the server wants the agent to keep."""

    heartbeat_seconds: float = Field(default=25.0, ge=0.1, le=3_600)
    """Longest time between two heartbeats, and longest wait of one HTTP exchange."""
    log_seconds: float = Field(default=0.5, ge=0.05, le=60)
    """How often the agent looks for new log of running jobs."""
    reconnect_spread_seconds: float = Field(default=2.0, ge=0, le=300)
    """Over how long a time agents spread their return, when the server has ended all connections at once."""


class Controls(_Frame):
    """Server to agent: what an administrator wants otherwise than your own configuration says.

    Replaces whatever was wanted before. Obeyed until the next one, or until a welcome that has none.
    """

    type: Literal["controls"] = "controls"
    revision: int = Field(ge=0, le=2**31 - 1)
    """Grows with each change; a status tells which one the agent goes by."""
    slots: Annotated[int, Field(ge=1, le=MAX_JOBS)] | None = None
    """How many jobs at a time; ``None``: as configured."""
    queues_added: Annotated[list[Queue], Field(max_length=100)] = []
    queues_removed: Annotated[list[Queue], Field(max_length=100)] = []
    drain: bool = False
    """Nothing is offered until this is taken back."""


class Welcome(_Frame):
    """Server to agent, answer to a hello: the session is open."""

    type: Literal["welcome"] = "welcome"
    protocol: int
    session_id: JobId
    server_version: Word
    airflow_version: Word
    server_time: AwareDatetime
    intervals: Intervals
    execution_api_url: Word | None = None
    """Where tasks find Airflow's Execution API; ``None``: below the agent's own server URL."""
    maintenance: bool | None = None
    """Whether the server wants this agent in maintenance; ``None``: no opinion."""
    maintenance_comment: Text | None = None
    maintenance_by: Word | None = None
    maintenance_since: AwareDatetime | None = None
    controls: Controls | None = None
    """What is wanted otherwise than configured; ``None``: nothing."""
    granted_queues: Annotated[list[Queue], Field(max_length=100)] | None = None
    """Queues that the agent may serve, ``["*"]`` for every one. ``None``: not told."""
    team: Word | None = None
    """Team whose jobs it gets; ``None``: those of no team."""
    task_metrics: bool = False
    """Whether the server takes what tasks tell to StatsD."""


class Offer(_Frame):
    """Server to agent: a job, if the agent will take it."""

    type: Literal["offer"] = "offer"
    job_id: JobId
    fence: Fence
    kind: Literal["task", "callback", "connection_test"]
    slots: int = Field(ge=1, le=MAX_JOBS)
    queue: Word
    lease_seconds: Seconds
    disconnect_lease_seconds: Seconds = 0
    """How long a relayed job may run on while agent and server do not hear of each other. After that the agent ends it.
    0: nothing is said about it."""
    label: Word
    """For people: which Dag, task and run this is."""
    token: Annotated[str, Field(max_length=8_192, repr=False)] = ""
    """Airflow's, for the job to show to the Execution API. Empty: the agent relays, and needs none."""
    workload: dict[str, JsonValue]
    """Airflow's workload, without its token."""
    limits: JobLimits | None = None
    """What the task itself asks for; the agent decides. ``None``: nothing."""


class AcceptAck(_Frame):
    """Server to agent: the accept came in time, start. Or: this job, which you have begun, is still yours."""

    type: Literal["accept_ack"] = "accept_ack"
    job_id: JobId
    fence: Fence
    held_fence: Fence | None = None
    """The agent holds the job with this older fence, and from now on with ``fence``. ``None``: nothing changes."""


class ResultAck(_Frame):
    """Server to agent: the result is stored."""

    type: Literal["result_ack"] = "result_ack"
    job_id: JobId
    fence: Fence


class LogAck(_Frame):
    """Server to agent: the log is stored up to ``next_offset``; send from there."""

    type: Literal["log_ack"] = "log_ack"
    job_id: JobId
    next_offset: Bytes


class Cancel(_Frame):
    """Server to agent: end this job, or drop it if it has not started."""

    type: Literal["cancel"] = "cancel"
    job_id: JobId
    fence: Fence
    reason: Text


class Maintenance(_Frame):
    """Server to agent: go into maintenance, or leave it."""

    type: Literal["maintenance"] = "maintenance"
    on: bool
    comment: Text | None = None
    by: Word | None = None
    since: AwareDatetime | None = None
    settled: AwareDatetime | None = None
    """Answers the :class:`MaintenanceAsked` with this ``since``: of the two decisions, this one counts."""


class Rotate(_Frame):
    """Server to agent: your credential gets old; make a new key pair, and tell me the public key."""

    type: Literal["rotate"] = "rotate"


class KeyStored(_Frame):
    """Server to agent: this key is valid, under this id. The present one stays valid until the new one is used."""

    type: Literal["key_stored"] = "key_stored"
    credential_id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    public_key: PublicKey


class Close(_Frame):
    """Server to agent: this session is over, and why."""

    type: Literal["close"] = "close"
    code: Literal["superseded", "name_in_use", "protocol_mismatch", "name_mismatch", "session_unknown", "bad_frame"]
    message: Text


class UnknownFrame(_Frame):
    """Either way: a frame of this type came and was not understood. Logged, never answered again."""

    type: Literal["unknown"] = "unknown"
    frame_type: Word


AgentFrame = (
    Hello
    | Status
    | Heartbeat
    | Accept
    | Refuse
    | Started
    | Result
    | Log
    | MaintenanceAsked
    | NewKey
    | TaskMetrics
    | Goodbye
    | UnknownFrame
)
ServerFrame = (
    Welcome
    | Offer
    | AcceptAck
    | ResultAck
    | LogAck
    | Cancel
    | Maintenance
    | Controls
    | Rotate
    | KeyStored
    | Close
    | UnknownFrame
)
AnyFrame = AgentFrame | ServerFrame


class Batch(BaseModel):
    """What a carrier moves at a time, in either direction: frames, and the session they belong to."""

    model_config = ConfigDict(extra="ignore")

    session_id: JobId | None = None
    wait_seconds: float = Field(default=0, ge=0, le=120, allow_inf_nan=False)
    """Agent to server, HTTP only: how long the server may hold the answer back while it has nothing to say."""
    frames: Annotated[list[dict[str, Any]], Field(max_length=MAX_FRAMES)] = []
