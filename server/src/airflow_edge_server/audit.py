"""Airflow's audit log: who has changed what of an agent, and what an agent did that somebody should know of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from airflow.models.log import Log

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

PREFIX = "edge_agents."
"""Every event's name begins so."""

_LONGEST = 2_000


def record(
    session: Session, verb: str, *, who: str | None, agent: str | None = None, origin: str | None = None, **facts: Any
) -> None:
    """Add an entry to the audit log, as part of the session's transaction.

    :param verb: what was done, e.g. ``revoke_agent``; the event is called ``edge_agents.<verb>``. Short.
    :param who: the user's name; of something that an agent did, ``agent NAME``.
    :param agent: name of the agent that it is about.
    :param origin: where it came from: ``cli on HOST``, an address.
    :param facts: more, by name; never a secret. Texts are cut at 2,000 characters, ``None`` is left out.
    """
    extra = {"agent": agent, "from": origin, **facts}
    told = {key: _cut(value) for key, value in extra.items() if value is not None}
    owner = (who or "unknown")[:500]
    session.add(Log(event=PREFIX + verb, owner=owner, owner_display_name=owner, extra=json.dumps(told, default=str)))


def _cut(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    # Nothing in it may look like another line, or steer a terminal.
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in value[:_LONGEST])
