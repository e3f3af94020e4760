"""Credentials of agents: made, listed, revoked and checked.

A token reads ``eat_<id>_<secret>``. Only the SHA-256 of the secret is stored; the secret is random and long enough
to need neither salt nor a slow hash.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import select, update

from airflow_edge_server.store.models import EdgeAgentToken
from airflow_edge_server.store.wakeup import Topic, announce

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

_FORM = re.compile(r"eat_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")


def create_token(session: Session, agent_name: str, *, created_by: str | None = None) -> str:
    """Store a new token of that agent and return its text, which cannot be had again."""
    token_id = secrets.token_hex(8)
    secret = secrets.token_urlsafe(32)
    session.add(
        EdgeAgentToken(
            id=token_id,
            agent_name=agent_name,
            secret_hash=_hash(secret),
            created_at=datetime.now(UTC),
            created_by=created_by,
        )
    )
    session.flush()
    return f"eat_{token_id}_{secret}"


def list_tokens(session: Session) -> list[EdgeAgentToken]:
    """Return all tokens, revoked ones too, by agent and age."""
    return list(session.scalars(select(EdgeAgentToken).order_by(EdgeAgentToken.agent_name, EdgeAgentToken.created_at)))


def revoke_token(session: Session, token_id: str) -> bool | None:
    """Revoke a token from now on.

    :return: ``True``: done; ``False``: it was revoked before; ``None``: there is no such token.
    """
    token = session.get(EdgeAgentToken, token_id)
    if token is None:
        return None
    result = session.execute(
        update(EdgeAgentToken)
        .where(EdgeAgentToken.id == token_id, EdgeAgentToken.revoked_at.is_(None))
        .values(revoked_at=datetime.now(UTC))
    )
    announce(session, Topic.ORDERS)
    return bool(getattr(result, "rowcount", 0))


def verify_token(session: Session, text: str) -> str | None:
    """Return the name of the agent that this token belongs to; ``None``: it is no valid token."""
    match = _FORM.fullmatch(text)
    if match is None:
        return None
    row = session.execute(
        select(EdgeAgentToken.agent_name, EdgeAgentToken.secret_hash).where(
            EdgeAgentToken.id == match[1], EdgeAgentToken.revoked_at.is_(None)
        )
    ).one_or_none()
    if row is None or not hmac.compare_digest(row.secret_hash, _hash(match[2])):
        return None
    return str(row.agent_name)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("ascii")).hexdigest()
