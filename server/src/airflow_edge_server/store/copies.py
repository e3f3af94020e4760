"""What the audit log is told of credentials in wrong hands: copies, and keys that are not valid any more."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import select

from airflow_edge_server import audit
from airflow_edge_server.domain.enrolment import Machine
from airflow_edge_server.store.models import EdgeAgent, EdgeAgentCredential

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

LINGER_SECONDS = 30.0
"""How long a credential that has just ended may be shown without suspicion: its agent may not know yet."""


def note_copy(session: Session, credential_id: str, agent_name: str, message: str) -> None:
    """Note that an agent was turned away because another machine with its credential is connected.

    :param message: names both.
    """
    audit.record(
        session,
        "copy_refused",
        who=f"agent {agent_name}",
        agent=agent_name,
        credential=credential_id,
        message=message,
    )


def find_ended(session: Session, credential_id: str, now: datetime) -> EdgeAgentCredential | None:
    """Return a credential that has not been valid for a while; ``None``: there is none of that id."""
    found = session.get(EdgeAgentCredential, credential_id)
    ended = None if found is None else found.revoked_at or found.expires_at
    return found if ended is not None and ended < now - timedelta(seconds=LINGER_SECONDS) else None


def note_ended(session: Session, credential_id: str, *, origin: str | None, now: datetime) -> None:
    """Note that somebody has the private key of a credential that is not valid any more, and was refused.

    The agent itself forgets a key before it shows the next one, so this is a copy, or a device that was put back to an
    earlier state.

    :param origin: the address that it came from.
    """
    ended = session.get(EdgeAgentCredential, credential_id)
    if ended is None:
        return
    credential = EdgeAgentCredential
    query = select(credential).where(
        credential.agent_name == ended.agent_name, credential.revoked_at.is_(None), credential.predecessor.is_(None)
    )
    present = session.scalars(query.order_by(credential.created_at.desc())).first()
    agent = session.get(EdgeAgent, ended.agent_name)
    if ended.revoked_at is None:
        why = f"expired at {ended.expires_at}"
    elif agent is not None and agent.revoked_at is not None:
        why = f"revoked at {ended.revoked_at}"
    else:
        why = f"replaced at {ended.revoked_at}"
    audit.record(
        session,
        "old_credential_refused",
        who=f"agent {ended.agent_name}",
        agent=ended.agent_name,
        origin=origin,
        credential=credential_id,
        why=why,
        last_used_by=_machine(ended),
        present=None if present is None or present.id == credential_id else present.id,
        present_used_by=None if present is None or present.id == credential_id else _machine(present),
        at=now.isoformat(timespec="seconds"),
    )


def _machine(credential: EdgeAgentCredential) -> str:
    return str(Machine(credential.agent_id, credential.boot_id, credential.hostname))
