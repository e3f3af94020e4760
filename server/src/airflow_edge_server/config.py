"""The ``[edge_agent]`` section, typed and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow.configuration import conf
from airflow.exceptions import AirflowConfigException

SECTION = "edge_agent"

LONGEST_LEASE_SECONDS = 30 * 86_400.0

EXECUTION_APIS = ("relay", "direct")


@dataclass(frozen=True)
class Settings:
    """The options of ``[edge_agent]``."""

    api_enabled: bool
    heartbeat_seconds: float
    lease_seconds: float
    agent_timeout_seconds: float
    disconnect_grace_seconds: float
    job_retention_days: float
    log_retention_days: float
    execution_api_url: str | None
    reconnect_spread_seconds: float = 2.0
    metric_retention_days: float = 1.0
    log_hand_over: bool = True
    """Whether complete logs are handed over to remote logging, where it is configured."""
    handed_over_log_retention_days: float = 1.0
    """How long they are kept here after that."""
    event_retention_days: float = 30.0
    max_connections: int = 5_000
    agent_connections: int = 8
    agent_requests_per_second: float = 100.0
    wrong_credentials_per_minute: float = 60.0
    log_max_bytes: int = 200 * 2**20
    """Most log of one job that is stored; 0: all."""
    execution_api: str = "relay"
    revoke_grace_seconds: float = 86_400.0
    """How long an agent that was revoked may finish the jobs that it holds."""
    credential_days: float = 180.0
    """0: credentials are valid for ever, and not rotated."""
    disconnect_lease_seconds: float = 1_800.0
    relay_task_metrics: bool = False
    """Whether what tasks tell to StatsD on agents is told to Airflow's metrics."""
    disconnect_leases: Mapping[str, float] = field(default_factory=dict)
    """By queue, where it is another."""

    def disconnect_lease(self, queue: str) -> float:
        """Return for how many seconds after the server's last answer a relayed job of this queue runs on; 0: no lease.

        That is what is configured and ``agent_timeout``, after which an agent counts as away: an outage as long as the
        configured lease is bridged, with time left to come back.
        """
        lease = self.disconnect_leases.get(queue, self.disconnect_lease_seconds)
        return lease and lease + self.agent_timeout_seconds


def load(source: Any = conf) -> Settings:
    """Read the section.

    :param source: Airflow's configuration, or that of one team (an executor's ``conf``).
    :raises AirflowConfigException: when a value is no number, out of bounds, or contradicts another. The message names
        section, option and value.
    """
    url = source.get(SECTION, "execution_api_url", fallback=None)
    settings = Settings(
        api_enabled=source.getboolean(SECTION, "api_enabled", fallback=False),
        heartbeat_seconds=_number(source, "heartbeat_interval", 25, 0.1, 3_600),
        lease_seconds=_number(source, "lease_seconds", 10, 1, 3_600),
        agent_timeout_seconds=_number(source, "agent_timeout", 75, 1, 86_400),
        disconnect_grace_seconds=_number(source, "disconnect_grace", 300, 1, 30 * 86_400),
        job_retention_days=_number(source, "job_retention", 7, 0, 36_500),
        log_retention_days=_number(source, "log_retention", 30, 0, 36_500),
        log_hand_over=source.getboolean(SECTION, "log_hand_over", fallback=True),
        handed_over_log_retention_days=_number(source, "handed_over_log_retention", 1, 0, 36_500),
        metric_retention_days=_number(source, "metric_retention", 1, 0, 366),
        event_retention_days=_number(source, "event_retention", 30, 0, 36_500),
        execution_api_url=(url or "").strip() or None,
        reconnect_spread_seconds=_number(source, "reconnect_spread", 2, 0, 300),
        max_connections=int(_number(source, "max_connections", 5_000, 1, 10_000_000)),
        agent_connections=int(_number(source, "agent_connections", 8, 4, 1_000)),
        agent_requests_per_second=_number(source, "agent_requests_per_second", 100, 0, 100_000),
        wrong_credentials_per_minute=_number(source, "wrong_credentials_per_minute", 60, 0, 1_000_000),
        log_max_bytes=int(_number(source, "log_max_mb", 200, 0, 1_000_000) * 2**20),
        execution_api=str(source.get(SECTION, "execution_api", fallback="relay")).strip(),
        revoke_grace_seconds=_number(source, "revoke_grace", 86_400, 60, 30 * 86_400),
        credential_days=_number(source, "credential_days", 180, 0, 36_500),
        disconnect_lease_seconds=_number(source, "disconnect_lease", 1_800, 0, LONGEST_LEASE_SECONDS),
        relay_task_metrics=source.getboolean(SECTION, "relay_task_metrics", fallback=False),
        disconnect_leases=_by_queue(source, "disconnect_leases", 0, LONGEST_LEASE_SECONDS),
    )
    if settings.execution_api not in EXECUTION_APIS:
        raise AirflowConfigException(
            f"[{SECTION}] execution_api must be one of {', '.join(EXECUTION_APIS)}, got {settings.execution_api!r}"
        )
    if settings.agent_timeout_seconds <= settings.heartbeat_seconds:
        raise AirflowConfigException(
            f"[{SECTION}] agent_timeout ({settings.agent_timeout_seconds:g}) must be longer than "
            f"heartbeat_interval ({settings.heartbeat_seconds:g})"
        )
    if settings.disconnect_grace_seconds < settings.agent_timeout_seconds:
        raise AirflowConfigException(
            f"[{SECTION}] disconnect_grace ({settings.disconnect_grace_seconds:g}) must not be shorter than "
            f"agent_timeout ({settings.agent_timeout_seconds:g})"
        )
    url = settings.execution_api_url
    if url is not None and not url.startswith(("http://", "https://")):
        raise AirflowConfigException(f"[{SECTION}] execution_api_url must begin with http:// or https://, got {url!r}")
    return settings


def _by_queue(source: Any, option: str, least: float, most: float) -> dict[str, float]:
    """Read ``queue: number, queue: number``."""
    text = str(source.get(SECTION, option, fallback="") or "")
    found = {}
    for entry in filter(None, (entry.strip() for entry in text.split(","))):
        queue, _, number = entry.rpartition(":")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not queue.strip() or not least <= value <= most:
            raise AirflowConfigException(
                f"[{SECTION}] {option} must look like 'queue: number, queue: number', with numbers between {least:g} "
                f"and {most:g}, got {entry!r}"
            )
        found[queue.strip()] = value
    return found


def _number(source: Any, option: str, default: float, least: float, most: float) -> float:
    text = str(source.get(SECTION, option, fallback=default))
    try:
        value = float(text)
    except ValueError:
        raise AirflowConfigException(f"[{SECTION}] {option} must be a number, got {text!r}") from None
    if not least <= value <= most:
        raise AirflowConfigException(f"[{SECTION}] {option} must be between {least:g} and {most:g}, got {text!r}")
    return value
