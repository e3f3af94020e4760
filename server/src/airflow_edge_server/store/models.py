"""The tables. All begin with ``edge_agent``, so that they live beside those of other executors.

No table refers to one of Airflow's: rows are found by the ids in them, and Airflow may delete its own at any time.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.utils.sqlalchemy import UtcDateTime
from sqlalchemy import JSON, BigInteger, Boolean, Float, Index, Integer, LargeBinary, MetaData, String, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from airflow_edge_agent.protocol.frames import MAX_LOG_CHUNK_BYTES

metadata = MetaData()

_CANCELLED = text("cancel_reason IS NOT NULL")


class Base(DeclarativeBase):
    """Base of our models, with metadata of its own."""

    metadata = metadata


class EdgeAgent(Base):
    """An agent, as last heard of."""

    __tablename__ = "edge_agent"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    team_name: Mapped[str | None] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(20), default="offline")
    """An :class:`~airflow_edge_agent.protocol.states.AgentState`."""
    problem: Mapped[str | None] = mapped_column(Text)
    maintenance_wanted: Mapped[bool | None] = mapped_column(Boolean)
    maintenance_comment: Mapped[str | None] = mapped_column(Text)
    maintenance_by: Mapped[str | None] = mapped_column(String(200))
    maintenance_since: Mapped[datetime | None] = mapped_column(UtcDateTime)
    maintenance_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """When the server takes its wish for maintenance back; ``None``: not by itself."""
    slots_wanted: Mapped[int | None] = mapped_column(Integer)
    """How many jobs at a time the server wants; ``None``: as the agent is configured."""
    queues_added: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    queues_removed: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    drain_wanted: Mapped[bool | None] = mapped_column(Boolean)
    """Whether the server offers it nothing, because somebody has asked for that."""
    controls_revision: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    """Grows whenever what the server wants of slots, queues and drain changes."""
    controls_seen: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    """The revision that the agent goes by, by its own word."""
    configuration: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """As the agent has reported it."""
    agent_id: Mapped[str | None] = mapped_column(String(36))
    boot_id: Mapped[str | None] = mapped_column(String(200))
    instance_id: Mapped[str | None] = mapped_column(String(36))
    session_id: Mapped[str | None] = mapped_column(String(36))
    carrier: Mapped[str | None] = mapped_column(String(20))
    """How that session is carried: ``websocket`` or ``http``."""
    hostname: Mapped[str | None] = mapped_column(String(200))
    queues: Mapped[list[str]] = mapped_column(JSON, default=list)
    execution_api: Mapped[str] = mapped_column(String(10), default="direct", server_default="direct")
    """How its jobs reach the Execution API in this session: ``relay`` or ``direct``."""
    slots_total: Mapped[int] = mapped_column(Integer, default=0)
    slots_used: Mapped[int] = mapped_column(Integer, default=0)
    status_sequence: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    """Number of the status that said this; one with a smaller number comes late. Counted anew in each session."""
    versions: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    granted_queues: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    """Queues it may serve, whatever it asks for; ``["*"]``: every one; ``None``: it has not been enrolled, so none."""
    enrolled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """When it was last given a credential by a join token."""
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """Since when its credentials are revoked; ``None``: they are not, or it has been enrolled again."""
    first_seen_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    connected_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_contact_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class EdgeAgentJoinToken(Base):
    """What lets a new machine in: it is exchanged for a credential. Only the hash of its secret is kept."""

    __tablename__ = "edge_agent_join_token"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    secret_hash: Mapped[str] = mapped_column(String(64))
    """Hexadecimal SHA-256 of the secret, which is random and long enough to need no salt."""
    name_pattern: Mapped[str] = mapped_column(String(63))
    """The agent's name, or a pattern of names with ``*`` and ``?``."""
    queues: Mapped[list[str]] = mapped_column(JSON)
    """What its agents may serve; ``["*"]``: every queue."""
    team_name: Mapped[str | None] = mapped_column(String(64))
    uses_left: Mapped[int] = mapped_column(Integer)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    created_by: Mapped[str | None] = mapped_column(String(200))
    used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """When it was last used."""
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class EdgeAgentCredential(Base):
    """A key pair of one agent: the public half. The private one has never left the agent's machine."""

    __tablename__ = "edge_agent_credential"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    agent_name: Mapped[str] = mapped_column(String(63), index=True)
    public_key: Mapped[str] = mapped_column(String(64))
    """Hexadecimal Ed25519 public key."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """From when it is refused; ``None``: never."""
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    join_token_id: Mapped[str | None] = mapped_column(String(16))
    """The join token it was exchanged for; ``None``: it succeeded another."""
    predecessor: Mapped[str | None] = mapped_column(String(16))
    """The credential that it takes the place of as soon as it is used; ``None``: it has, or there was none."""
    agent_id: Mapped[str | None] = mapped_column(String(36))
    boot_id: Mapped[str | None] = mapped_column(String(200))
    hostname: Mapped[str | None] = mapped_column(String(200))
    """With the two above: the machine that used it last."""


class EdgeAgentJob(Base):
    """One dispatch of one workload."""

    __tablename__ = "edge_agent_job"
    __table_args__ = (
        # The dispatcher's question: what waits in these queues, in which order.
        Index("idx_edge_agent_job_dispatch", "state", "queue", "kind", "priority_weight", "queued_at"),
        # Reconciliation, cancels and leases: what does this agent hold.
        Index("idx_edge_agent_job_agent", "agent_name", "state"),
        # The scheduler's question: what of mine has ended, a part at a time.
        Index("idx_edge_agent_job_owner", "owner", "reported", "state", "id"),
        Index("idx_edge_agent_job_ti", "ti_id"),
        Index("idx_edge_agent_job_log", "log_key"),
        Index("idx_edge_agent_job_finished", "finished_at"),
        # Whose log is to be handed over.
        Index("idx_edge_agent_job_hand_over", "hand_over", "finished_at"),
        # What is to be cancelled: a few of all. MySQL has no index of some rows only; there it is one of all.
        Index("idx_edge_agent_job_cancel", "state", postgresql_where=_CANCELLED, sqlite_where=_CANCELLED),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    """``callback``, ``connection_test`` or ``task``; in this order they are dispatched."""
    state: Mapped[str] = mapped_column(String(10), default="queued")
    """A :class:`~airflow_edge_agent.protocol.jobs.JobState`."""
    owner: Mapped[str] = mapped_column(String(64))
    """The executor instance that queued or adopted it."""
    reported: Mapped[bool] = mapped_column(Boolean, default=False)
    """Whether the owner has seen the end of it."""
    team_name: Mapped[str | None] = mapped_column(String(64))
    queue: Mapped[str] = mapped_column(String(256))
    slots: Mapped[int] = mapped_column(Integer, default=1)
    priority_weight: Mapped[int] = mapped_column(Integer, default=1)
    ti_id: Mapped[str] = mapped_column(String(36))
    """Id of the task instance, or of the callback."""
    dag_id: Mapped[str | None] = mapped_column(String(250))
    task_id: Mapped[str | None] = mapped_column(String(250))
    run_id: Mapped[str | None] = mapped_column(String(250))
    map_index: Mapped[int] = mapped_column(Integer, default=-1)
    try_number: Mapped[int] = mapped_column(Integer, default=1)
    workload: Mapped[dict[str, Any]] = mapped_column(JSON)
    """Airflow's workload without its token."""
    log_key: Mapped[str | None] = mapped_column(String(64))
    """Hexadecimal SHA-256 of the workload's log path: the path itself is too long for an index."""
    limits: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """What the task itself asks for: the fields of :class:`~airflow_edge_agent.protocol.limits.JobLimits` it sets."""
    agent_name: Mapped[str | None] = mapped_column(String(63))
    fence: Mapped[int] = mapped_column(Integer, default=0)
    """How many times it has been offered."""
    disconnect_lease_seconds: Mapped[float | None] = mapped_column(Float)
    """How long its agent may be silent while it runs. ``NULL``: it speaks to Airflow by itself."""
    lease_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    cancel_reason: Mapped[str | None] = mapped_column(Text)
    outcome: Mapped[str | None] = mapped_column(String(20))
    exit_code: Mapped[int | None] = mapped_column(Integer)
    detail: Mapped[str | None] = mapped_column(Text)
    usage: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    """What it used: those fields of :class:`~airflow_edge_agent.protocol.frames.Usage` that are known."""
    log_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Final length of the log, known with the result."""
    log_next_offset: Mapped[int] = mapped_column(BigInteger, default=0)
    hand_over: Mapped[str | None] = mapped_column(String(10))
    """What has become of its log at remote logging: ``done``, ``none`` (there was no log), ``failed`` for good."""
    hand_over_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """When that was; before it: until when nobody needs to look at it, e.g. because one process is at work."""
    hand_over_tries: Mapped[int] = mapped_column(Integer, server_default="0")
    queued_at: Mapped[datetime] = mapped_column(UtcDateTime)
    offered_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    accepted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class EdgeAgentLog(Base):
    """A piece of a job's log."""

    __tablename__ = "edge_agent_log"

    job_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    offset: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    data: Mapped[bytes] = mapped_column(LargeBinary(MAX_LOG_CHUNK_BYTES))


class EdgeAgentMetric(Base):
    """How the host of an agent was in one minute."""

    __tablename__ = "edge_agent_metric"
    __table_args__ = (Index("idx_edge_agent_metric_at", "at"),)

    agent_name: Mapped[str] = mapped_column(String(63), primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    """Beginning of the minute."""
    cpu_percent: Mapped[float | None] = mapped_column(Float)
    load_1_per_core: Mapped[float | None] = mapped_column(Float)
    memory_used_bytes: Mapped[int | None] = mapped_column(BigInteger)
    memory_total_bytes: Mapped[int | None] = mapped_column(BigInteger)
    disk_used_bytes: Mapped[int | None] = mapped_column(BigInteger)
    disk_total_bytes: Mapped[int | None] = mapped_column(BigInteger)
    slots_used: Mapped[int | None] = mapped_column(Integer)


class EdgeAgentEvent(Base):
    """Something that happened to an agent, for people who look at it."""

    __tablename__ = "edge_agent_event"
    __table_args__ = (
        Index("idx_edge_agent_event_agent", "agent_name", "id"),
        Index("idx_edge_agent_event_at", "at"),
    )

    # SQLite counts up only what it calls an integer.
    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True
    )
    agent_name: Mapped[str] = mapped_column(String(63))
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    kind: Mapped[str] = mapped_column(String(30))
    detail: Mapped[str | None] = mapped_column(Text)
    by: Mapped[str | None] = mapped_column(String(200))
