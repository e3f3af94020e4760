"""Whether an agent that says hello may have the name it claims.

An agent is its state directory (agent id) on a booted host (boot id), not a hostname that happens to be free.
"""

from __future__ import annotations

from dataclasses import dataclass

from airflow_edge_agent.protocol.states import CONNECTED_STATES, AgentState

GRACE_SECONDS = 10.0
"""How long after a missed heartbeat the holder of a name still counts as present."""


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


def refusal(name: str, incumbent: Incumbent | None, claimant: Claimant, *, heartbeat_seconds: float) -> str | None:
    """Return why the claimant may not have the name, naming both sides; ``None``: it may, and takes over at once."""
    if incumbent is None or incumbent.session_id is None:
        return None
    if (incumbent.agent_id, incumbent.boot_id) == (claimant.agent_id, claimant.boot_id):
        return None
    silent = incumbent.silent_seconds
    if incumbent.state not in CONNECTED_STATES or silent is None or silent > heartbeat_seconds + GRACE_SECONDS:
        return None
    return (
        f"the name {name!r} is in use: held by the agent on host {incumbent.hostname} "
        f"(agent id {incumbent.agent_id}, boot id {incumbent.boot_id}, last heard of {max(silent, 0):.0f} s ago), "
        f"claimed by the one on host {claimant.hostname} (agent id {claimant.agent_id}, boot id {claimant.boot_id})"
    )
