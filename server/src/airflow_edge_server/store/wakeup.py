"""Tells the api-servers that there is something for them in the tables, where the database can pass it on."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import func, select
from sqlalchemy.orm import Session

CHANNEL = "edge_agents"
"""Name of the channel of PostgreSQL's LISTEN and NOTIFY."""


class Topic(StrEnum):
    """What there is to look at."""

    JOBS = "jobs"
    """A job waits."""
    ORDERS = "orders"
    """Something that agents have to be told: a cancel, maintenance, a revoked token."""


def announce(session: Session, topic: Topic | str) -> None:
    """Wake the dispatchers of all api-servers when this transaction is committed; nothing if it is rolled back.

    Does nothing on databases that cannot: there the dispatchers look often enough.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_notify(CHANNEL, str(topic))))
