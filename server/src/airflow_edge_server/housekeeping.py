"""What nobody asks for, but some scheduler must do: notice silent agents, end their jobs, delete what is old.

Every scheduler does it; each change is made only where things are still as they were read.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_edge_server import compat, config, plainly
from airflow_edge_server.store import agents, controls, enrolment, finishing, purge, queue
from airflow_edge_server.store.traced import traced
from airflow_edge_server.store.transaction import airflow_sessions, read, write
from airflow_edge_server.telemetry import FleetMetrics

log = plainly.logger(__name__)

STALE_QUEUED_SECONDS = 30.0
"""How old a queued job must be before it is asked whether its task still waits."""

UNSTARTED_SLACK_SECONDS = 10.0
"""How long after a missed heartbeat an agent loses the jobs that it has accepted and never started."""

REVOKED_SECONDS = 5.0
"""How long a revoked agent has time to end what it is to end."""

CREDENTIAL_DAYS = 30
"""How long a credential or join token that is not valid any more can still be looked up."""

PURGE_SECONDS = 600.0
"""How often old jobs and logs are looked for, once there is nothing left to delete."""


class Housekeeping:
    """The sweeps of one executor.

    :param source: its configuration, read anew for each sweep.
    """

    def __init__(self, source: Any) -> None:
        self._source = source
        self._stale_after = ""
        self._metrics = FleetMetrics(compat.stats())
        self.next_purge = 0.0
        """When to look for old rows again, in monotonic seconds."""

    def sweep(self) -> None:
        """Do one round.

        :raises sqlalchemy.exc.DBAPIError: when the database refuses; the next round does what this one did not.
        """
        settings = config.load(self._source)
        self._notice_silent_agents(settings)
        self._return_unstarted_jobs(settings)
        self._keep_tasks_alive(settings)
        self._end_lost_jobs(settings)
        self._end_jobs_of_revoked_agents(settings)
        self._revoke_stale_jobs()
        self._end_due_maintenance()
        if self._metrics.is_due():
            read(airflow_sessions, self._metrics.emit)
        now = time.monotonic()
        if now >= self.next_purge:
            more = self._purge(settings).more | self._purge_history(settings).more
            self.next_purge = now if more else now + PURGE_SECONDS

    def _notice_silent_agents(self, settings: config.Settings) -> None:
        for agent in write(
            airflow_sessions,
            lambda session: agents.sweep_liveness(session, timeout_seconds=settings.agent_timeout_seconds),
        ):
            log.warning(
                "Agent %s has not been heard of since %s: it is now '%s'",
                agent.name,
                agent.last_contact_at.isoformat(timespec="seconds"),
                agent.state,
            )

    def _return_unstarted_jobs(self, settings: config.Settings) -> None:
        silent = settings.heartbeat_seconds + UNSTARTED_SLACK_SECONDS
        write(airflow_sessions, lambda session: queue.return_unstarted(session, silent_seconds=silent))

    def _keep_tasks_alive(self, settings: config.Settings) -> None:
        silent = settings.heartbeat_seconds + UNSTARTED_SLACK_SECONDS
        write(
            airflow_sessions,
            lambda session: queue.keep_alive(
                session, silent_seconds=silent, timeout_seconds=settings.agent_timeout_seconds
            ),
        )

    def _end_lost_jobs(self, settings: config.Settings) -> None:
        for lost in write(
            airflow_sessions,
            lambda session: queue.end_lost(
                session,
                grace_seconds=settings.disconnect_grace_seconds,
                timeout_seconds=settings.agent_timeout_seconds,
            ),
        ):
            log.warning(
                "Job %s is taken away from agent %s, which is gone: %s%s",
                lost.id,
                lost.agent_name,
                "queued again" if lost.requeued else "lost",
                traced(lost.workload),
            )

    def _end_jobs_of_revoked_agents(self, settings: config.Settings) -> None:
        grace, now = settings.revoke_grace_seconds, datetime.now(UTC)
        overdue = write(
            airflow_sessions, lambda session: finishing.cancel_overdue(session, grace_seconds=grace, now=now)
        )
        if overdue:
            log.warning("%d jobs of revoked agents are cancelled: they had %g s to finish", overdue, grace)
        for lost in write(airflow_sessions, lambda session: queue.end_revoked(session, after_seconds=REVOKED_SECONDS)):
            name, trace = lost.agent_name, traced(lost.workload)
            log.warning("Job %s is taken away from agent %s, which was revoked%s", lost.id, name, trace)

    def _revoke_stale_jobs(self) -> None:
        self._stale_after, revoked = write(
            airflow_sessions,
            lambda session: queue.revoke_stale(session, after=self._stale_after, age_seconds=STALE_QUEUED_SECONDS),
        )
        if revoked:
            log.info("%d queued jobs were taken back: their tasks do not wait for them any more", revoked)

    def _end_due_maintenance(self) -> None:
        now = datetime.now(UTC)
        for name in write(airflow_sessions, lambda session: controls.end_due_maintenance(session, now)):
            log.info("Maintenance of agent %s has come to the end it was given", name)

    def _purge_history(self, settings: config.Settings) -> purge.Purged:
        return write(
            airflow_sessions,
            lambda session: purge.purge_history(
                session, metric_days=settings.metric_retention_days, event_days=settings.event_retention_days
            ),
        )

    def _purge(self, settings: config.Settings) -> purge.Purged:
        before = datetime.now(UTC) - timedelta(days=CREDENTIAL_DAYS)
        write(airflow_sessions, lambda session: enrolment.purge_credentials(session, before=before))
        return write(
            airflow_sessions,
            lambda session: purge.purge_batch(
                session,
                job_days=settings.job_retention_days,
                log_days=settings.log_retention_days,
                handed_over_days=settings.handed_over_log_retention_days,
            ),
        )
