"""What the core is configured with. Most of it may change while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from airflow_edge_agent.core.limits import LimitRules


@dataclass(frozen=True)
class Limits:
    """What the core is configured with. Seconds."""

    concurrency: int
    kill_grace_seconds: float
    drain_deadline_seconds: float
    """After this long a stop ends the jobs; 0: never."""
    delivery_grace_seconds: float = 10.0
    """How long a stop waits for the server to take the last results, once all jobs have ended."""
    leave_grace_seconds: float = 2.0
    """The same for a stop that leaves running jobs to the next start, which delivers as well."""
    name_wait_seconds: float = 60.0
    """How long to keep asking for a name that is in use."""
    spool_bytes: int = 500 * 1024 * 1024
    """How much log that the server has not taken is kept, of all jobs together."""
    queues: tuple[str, ...] = ()
    jobs: LimitRules = field(default_factory=LimitRules)
    """What each job may use."""
