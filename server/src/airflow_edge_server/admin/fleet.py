"""What the command line asks of the fleet, whichever way it gets there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from airflow_edge_server import compat
from airflow_edge_server.admin import actions, joining, models, views
from airflow_edge_server.store.fleet import AgentFilter, JobFilter
from airflow_edge_server.store.transaction import Sessions, read, write

PAGE = 1_000
"""Most agents or jobs that are asked for at once."""


class FleetError(Exception):
    """Something could not be asked or done. The message is one line for the operator."""


class Fleet(Protocol):
    """The operations of the admin API.

    Each raises :class:`FleetError` when it cannot be done.
    """

    def overview(self) -> models.Overview:
        """Show the fleet at a glance."""

    def agents(self, wanted: AgentFilter, *, order_by: str = "name") -> list[models.AgentItem]:
        """List all agents that match."""

    def agent(self, name: str) -> models.AgentDetail:
        """Show one agent."""

    def metrics(self, name: str, *, minutes: int) -> models.MetricsHistory:
        """Show how an agent's host was."""

    def events(self, name: str, *, limit: int) -> models.EventList:
        """List what happened to an agent."""

    def queues(self) -> models.QueueList:
        """List the queues."""

    def jobs(self, wanted: JobFilter, *, limit: int) -> models.JobList:
        """List jobs."""

    def order(self, names: Sequence[str], what: models.AgentOrder, *, dry_run: bool) -> models.BulkDone:
        """Do the same to several agents."""

    def cancel(self, job_id: str, reason: str | None) -> models.Done:
        """End a job."""

    def create_join_token(self, asked: models.JoinTokenOrder) -> models.NewJoinToken:
        """Make a join token."""

    def join_tokens(self) -> models.JoinTokenList:
        """List the join tokens."""

    def revoke_join_token(self, token_id: str) -> models.Done:
        """Let nobody in with a join token any more."""


class LocalFleet:
    """Through the metadata database, beside Airflow.

    :param actor: whom the audit log is to name.
    """

    def __init__(self, sessions: Sessions, actor: actions.Actor) -> None:
        self._sessions = sessions
        self._actor = actor

    def overview(self) -> models.Overview:
        """Show the fleet at a glance."""
        return read(self._sessions, views.overview)

    def agents(self, wanted: AgentFilter, *, order_by: str = "name") -> list[models.AgentItem]:
        """List all agents that match."""
        found: list[models.AgentItem] = []
        while True:
            offset = len(found)
            page = read(
                self._sessions,
                lambda session, offset=offset: views.list_agents(  # type: ignore[misc]  # a default
                    session, wanted, order_by=order_by, limit=PAGE, offset=offset
                ),
            )
            found += page.items
            if not page.items or len(found) >= page.total:
                return found

    def agent(self, name: str) -> models.AgentDetail:
        """Show one agent."""
        try:
            return read(self._sessions, lambda session: views.show_agent(session, name))
        except views.NotFoundError as error:
            raise FleetError(str(error)) from None

    def metrics(self, name: str, *, minutes: int) -> models.MetricsHistory:
        """Show how an agent's host was."""
        try:
            return read(self._sessions, lambda session: views.metrics_history(session, name, minutes=minutes))
        except views.NotFoundError as error:
            raise FleetError(str(error)) from None

    def events(self, name: str, *, limit: int) -> models.EventList:
        """List what happened to an agent."""
        try:
            return read(self._sessions, lambda session: views.list_events(session, name, limit=limit))
        except views.NotFoundError as error:
            raise FleetError(str(error)) from None

    def queues(self) -> models.QueueList:
        """List the queues."""
        return read(self._sessions, views.list_queues)

    def jobs(self, wanted: JobFilter, *, limit: int) -> models.JobList:
        """List jobs."""
        return read(self._sessions, lambda session: views.list_jobs(session, wanted, limit=limit))

    def order(self, names: Sequence[str], what: models.AgentOrder, *, dry_run: bool) -> models.BulkDone:
        """Do the same to several agents."""
        return actions.order_many(self._sessions, names, what, self._actor, dry_run=dry_run)

    def cancel(self, job_id: str, reason: str | None) -> models.Done:
        """End a job."""
        try:
            return write(self._sessions, lambda session: actions.cancel_job(session, job_id, reason, self._actor))
        except (views.NotFoundError, actions.ConflictError) as error:
            raise FleetError(str(error)) from None

    def create_join_token(self, asked: models.JoinTokenOrder) -> models.NewJoinToken:
        """Make a join token."""
        url = compat.base_url() or "https://AIRFLOW"
        try:
            return write(
                self._sessions,
                lambda session: joining.create_join_token(session, asked, self._actor, server_url=url),
            )
        except actions.ConflictError as error:
            raise FleetError(str(error)) from None

    def join_tokens(self) -> models.JoinTokenList:
        """List the join tokens."""
        return read(self._sessions, joining.list_join_tokens)

    def revoke_join_token(self, token_id: str) -> models.Done:
        """Let nobody in with a join token any more."""
        try:
            return write(self._sessions, lambda session: joining.revoke_join_token(session, token_id, self._actor))
        except views.NotFoundError as error:
            raise FleetError(str(error)) from None
