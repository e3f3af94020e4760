"""How the agent is, for people and for programs."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_edge_agent.core.agent import AgentCore
from airflow_edge_agent.core.jobs import AgentJob, Phase
from airflow_edge_agent.protocol.states import IN_MAINTENANCE
from airflow_edge_agent.runtime.link import LinkLoop

NOT_ENROLLED = "not enrolled: run `edgectl enroll`"


@dataclass
class Person:
    """What does not change while the daemon runs, as it is reported."""

    name: str
    version: str
    pid: int
    agent_id: str
    instance_id: str
    started_at: float
    """Loop time."""
    server_url: str | None = None


class Reporter:
    """Describes the agent."""

    def __init__(self, core: AgentCore, link: LinkLoop, person: Person) -> None:
        self._core = core
        self._link = link
        self._person = person
        self.isolation: dict[str, Any] | None = None
        """What keeps jobs apart, as the last runner has said; ``None``: none has, yet."""
        self.unserved_metrics: str | None = None
        """Why the metrics are not served although the configuration says so."""

    def line(self) -> str:
        """Describe it in one line, for the service manager."""
        core, now = self._core, asyncio.get_running_loop().time()
        parts = [f"running {core.slots_used}/{core.concurrency}"]
        if core.stopping:
            parts[0] = f"stopping, waits for {core.running_jobs}" if core.slots_used else "stopping"
        elif core.state in IN_MAINTENANCE:
            record = core.maintenance.record
            why = f" ({record.comment or record.by})" if record is not None and (record.comment or record.by) else ""
            parts.insert(0, f"{core.state}{why}")
        if core.hindrance is not None and not core.stopping:
            parts.append(core.hindrance)
        if self._person.server_url is None:
            parts.append(NOT_ENROLLED)
        elif core.connected:
            parts.append(f"connected ({self._link.carrier or 'unknown'})")
            if self._link.last_heartbeat_at is not None:
                parts.append(f"heartbeat {now - self._link.last_heartbeat_at:.0f} s ago")
        else:
            parts.append(f"not connected: {self._link.fault or 'connecting'}")
            parts += away_words(self.away())
        return " · ".join(parts)

    def away(self) -> dict[str, Any] | None:
        """Describe an outage, times in UTC; ``None``: there is none, or there was no connection before."""
        core = self._core
        if core.connected or core.lost_at is None:
            return None
        return {
            "since": _wall(core.lost_at),
            "lease_until": None if core.lease_until is None else _wall(core.lease_until),
            "running": core.working,
            "results_waiting": core.results_waiting,
        }

    def report(self) -> dict[str, Any]:
        """Describe it in full."""
        core, link, now = self._core, self._link, asyncio.get_running_loop().time()
        faults = self.faults()
        welcome, versions = link.welcome, link.versions
        contact, beat = link.last_contact_at, link.last_heartbeat_at
        return {
            "name": self._person.name,
            "health": "degraded" if faults else "healthy",
            "faults": faults,
            "warnings": self.warnings(),
            "state": str(core.state),
            "enrolled": self._person.server_url is not None,
            "server_url": self._person.server_url,
            "connected": core.connected,
            "away": self.away(),
            "carrier": link.carrier,
            "last_heartbeat_seconds": None if beat is None else round(now - beat, 1),
            "last_contact_seconds": None if contact is None else round(now - contact, 1),
            "slots_used": core.slots_used,
            "slots_total": core.concurrency,
            "queues": list(core.queues),
            "refused_queues": core.refused_queues,
            "team": core.team,
            "server_wants": self.server_wants(),
            "running": [job.label for job in core.jobs.values() if job.holds_slots],
            "undelivered": core.undelivered,
            "maintenance": self.maintenance(),
            "drained_by": core.drained_by,
            "stopping": core.stopping,
            "version": self._person.version,
            "server_version": welcome.server_version if welcome is not None else None,
            "airflow_version": welcome.airflow_version if welcome is not None else None,
            "isolation": self.isolation,
            "runtime": versions.model_dump(exclude_none=True) if versions is not None else {},
            "pid": self._person.pid,
            "uptime_seconds": round(now - self._person.started_at, 1),
            "agent_id": self._person.agent_id,
            "instance_id": self._person.instance_id,
        }

    def faults(self) -> list[str]:
        """Say what keeps it from working although nobody has asked for that."""
        faults = [text for text in (self._core.problem, self._core.spool_problem) if text is not None]
        record = self._core.maintenance.record
        if record is not None and record.source == "health":
            faults.append(f"the host is unwell: {record.comment}")
        if self._person.server_url is None:
            faults.append(NOT_ENROLLED)
        elif not self._core.connected:
            faults.append(f"not connected: {self._link.fault or 'connecting'}")
        return faults

    def server_wants(self) -> dict[str, Any] | None:
        """Say what the server wants otherwise than the configuration; ``None``: nothing."""
        core = self._core
        wanted = core.controls
        if wanted is None or not (wanted.slots or wanted.queues_added or wanted.queues_removed or wanted.drain):
            return None
        return {
            "slots": wanted.slots,
            "slots_configured": core.limits.concurrency,
            "queues_added": wanted.queues_added,
            "queues_removed": wanted.queues_removed,
            "drain": wanted.drain,
        }

    def warnings(self) -> list[str]:
        """Say what does not keep it from working, but should be mended."""
        refused = self._core.refused_queues
        unserved = f"not enrolled for these queues, gets no jobs of them: {', '.join(refused)}" if refused else None
        texts = (self._link.mismatch, self._link.skewed, unserved, self.unserved_metrics)
        return [text for text in texts if text is not None]

    def maintenance(self) -> dict[str, Any] | None:
        """Describe the maintenance; ``None``: there is none."""
        core = self._core
        record = core.maintenance.record
        if record is None and core.state not in IN_MAINTENANCE:
            return None
        return {
            "by": record.by if record is not None else None,
            "since": record.since.isoformat() if record is not None else None,
            "comment": record.comment if record is not None else None,
            "until": record.until.isoformat() if record is not None and record.until is not None else None,
            "asked_at": record.source if record is not None else "server",
            "told_to_server": core.maintenance.untold is None,
        }

    def jobs(self) -> list[dict[str, Any]]:
        """Describe the jobs."""
        now = asyncio.get_running_loop().time()
        return [_job(job, now) for job in self._core.jobs.values()]


def away_words(away: dict[str, Any] | None) -> list[str]:
    """Describe an outage in a few words, times as on this machine's clock."""
    if away is None:
        return []
    words = [f"disconnected since {_clock(away['since'])}"]
    if away["lease_until"] is not None:
        words.append(f"lease until {_clock(away['lease_until'])}")
    if away["running"]:
        words.append(f"{away['running']} task{'s' if away['running'] != 1 else ''} running")
    if away["results_waiting"]:
        words.append(f"{away['results_waiting']} result{'s' if away['results_waiting'] != 1 else ''} waiting")
    return words


def _wall(at: float) -> str:
    """Turn a time of the monotonic clock into one for people and programs."""
    return (datetime.now(UTC) + timedelta(seconds=at - time.monotonic())).isoformat(timespec="seconds")


def _clock(text: str) -> str:
    return datetime.fromisoformat(text).astimezone().strftime("%H:%M:%S")


def _job(job: AgentJob, now: float) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "task": job.label,
        **(job.task.told() if job.task is not None else {}),
        "phase": str(job.phase),
        "slots": job.slots,
        "pid": job.pid,
        "running_seconds": (
            round(now - job.started_at, 1) if job.started_at is not None and job.phase is Phase.RUNNING else None
        ),
        "log_bytes": job.log_size,
        "log_delivered_bytes": job.log_acked,
        "outcome": str(job.ended.outcome) if job.ended is not None else None,
        "cancelled": job.cancel_reason,
    }
