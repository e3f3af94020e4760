"""Whether an agent that says hello may have the name it claims.

An agent is its state directory (agent id) on a booted host (boot id), not a hostname that happens to be free.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from uuid import UUID

from airflow_edge_agent.protocol.states import CONNECTED_STATES, AgentState

GRACE_SECONDS = 10.0
"""How long after a missed heartbeat the holder of a name still counts as present."""

_INSTANCE_DIGITS = 12
_ATTEMPT_DIGITS = 8


@dataclass(frozen=True, slots=True)
class Incumbent:
    """Who holds the name, as last heard of."""

    agent_id: str | None
    boot_id: str | None
    hostname: str | None
    session_id: str | None
    state: AgentState
    silent_seconds: float | None
    """Since its last contact; ``None``: never heard of."""


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who asks for the name."""

    agent_id: str
    boot_id: str
    hostname: str


def refusal(
    name: str,
    incumbent: Incumbent | None,
    claimant: Claimant,
    *,
    heartbeat_seconds: float,
    incumbent_alive: bool | None = None,
) -> str | None:
    """Return why the claimant may not have the name, naming both sides; ``None``: it may, and takes over at once.

    :param incumbent_alive: whether the incumbent was found to be there; ``None``: not known, its silence decides.
    """
    if incumbent is None or incumbent.session_id is None:
        return None
    if (incumbent.agent_id, incumbent.boot_id) == (claimant.agent_id, claimant.boot_id):
        return None
    silent = incumbent.silent_seconds
    if incumbent.state not in CONNECTED_STATES or silent is None or silent > heartbeat_seconds + GRACE_SECONDS:
        return None
    if incumbent_alive is False and may_be_its_past(incumbent, claimant):
        return None
    return (
        f"the name {name!r} is in use: held by the agent on host {incumbent.hostname} "
        f"(agent id {incumbent.agent_id}, boot id {incumbent.boot_id}, last heard of {max(silent, 0):.0f} s ago), "
        f"claimed by the one on host {claimant.hostname} (agent id {claimant.agent_id}, boot id {claimant.boot_id})"
    )


def may_be_its_past(incumbent: Incumbent, claimant: Claimant) -> bool:
    """Tell whether the incumbent may be the claimant before its host was rebooted.

    A clone of the machine looks the same. Only whether the incumbent still lives tells them apart.
    """
    return (
        (incumbent.agent_id, incumbent.hostname) == (claimant.agent_id, claimant.hostname)
        and incumbent.boot_id is not None
        and incumbent.boot_id != claimant.boot_id
    )


def session_name(instance_id: str, attempt: int, unique: UUID) -> str:
    """Return the id of a new session. It tells, to us alone, of which run of an agent it is and of which hello."""
    instance = hashlib.sha256(instance_id.encode()).hexdigest()[:_INSTANCE_DIGITS]
    return str(UUID(hex=f"{instance}{attempt:0{_ATTEMPT_DIGITS}x}{unique.hex}"[:32]))


def of_one_instance(session_id: str, other: str) -> bool:
    """Tell whether two sessions belong to the same run of an agent: then none has taken over from the other."""
    return _digits(session_id)[:_INSTANCE_DIGITS] == _digits(other)[:_INSTANCE_DIGITS]


def is_outdated(instance_id: str, attempt: int, session_id: str | None) -> bool:
    """Tell whether a hello comes after it has been answered already, or after a later one of the same agent.

    What it says of the agent's jobs is not true any more.

    :param attempt: of the hello; 0: it does not say.
    :param session_id: the agent's present session.
    """
    if session_id is None or attempt == 0:
        return False
    if not of_one_instance(session_id, session_name(instance_id, 0, UUID(int=0))):
        return False
    return attempt <= int(_digits(session_id)[_INSTANCE_DIGITS:][:_ATTEMPT_DIGITS], 16)


def _digits(session_id: str) -> str:
    return session_id.replace("-", "")
