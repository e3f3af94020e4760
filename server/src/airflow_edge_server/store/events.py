"""What has happened to agents: written with whatever makes it happen, and kept for a while."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from sqlalchemy import select

from airflow_edge_server.store.models import EdgeAgentEvent
from airflow_edge_server.store.text import clean

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_LONGEST_DETAIL = 2_000
_LONGEST_NAME = 200


_OUT_OF_MEMORY = "killed: out of memory"
"""How agents begin what they say of a job that wanted more memory than there was."""


def names_limit(detail: str) -> bool:
    """Tell whether an agent says of a job that it has hit a limit."""
    return detail.startswith(_OUT_OF_MEMORY)


class Kind(StrEnum):
    """What can happen to an agent."""

    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    """It said goodbye."""
    LOST = "lost"
    """It has not been heard of for too long."""
    REBOOT = "reboot"
    """It has come back, and its host was started anew meanwhile."""
    REFUSED = "refused"
    """Somebody else came under its name, and was turned away."""
    MAINTENANCE = "maintenance"
    LIMIT = "limit"
    """A job was ended because it wanted more than it may have."""
    CHANGED = "changed"
    """Somebody wants it to run otherwise than it is configured."""
    REVOKED = "revoked"


def note_event(
    session: Session,
    name: str,
    kind: Kind,
    detail: str | None = None,
    *,
    by: str | None = None,
    quiet_seconds: float = 0,
) -> None:
    """Note that something has happened to an agent, as part of the session's transaction.

    :param quiet_seconds: nothing is noted if something of this kind was, no longer ago.
    """
    now = datetime.now(UTC)
    if quiet_seconds:
        event = EdgeAgentEvent
        since = now - timedelta(seconds=quiet_seconds)
        query = select(event.id).where(event.agent_name == name, event.kind == kind.value, event.at > since).limit(1)
        if session.scalar(query) is not None:
            return
    session.add(
        EdgeAgentEvent(
            agent_name=name,
            at=now,
            kind=kind.value,
            detail=None if detail is None else clean(detail)[:_LONGEST_DETAIL],
            by=None if by is None else clean(by)[:_LONGEST_NAME],
        )
    )
