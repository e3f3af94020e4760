"""Maintenance as the agent knows it: who asked for it, when, why, and what the server has yet to learn.

Both ends may ask. A decision made here is told to the server until it has confirmed it; of two decisions that cross,
the later one counts, by the clocks of those who made them. The server says which.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from airflow_edge_agent.protocol.frames import Maintenance, MaintenanceAsked

Source = Literal["operator", "server", "health"]


@dataclass(frozen=True)
class MaintenanceRecord:
    """Why the agent is in maintenance. Times are wall time: they outlive the process and the boot."""

    by: str | None
    since: datetime
    comment: str | None = None
    until: datetime | None = None
    """When it ends by itself."""
    source: Source = "operator"


@dataclass(frozen=True)
class MaintenanceMemory:
    """What is kept over restarts."""

    record: MaintenanceRecord | None = None
    """``None``: not in maintenance."""
    untold: MaintenanceAsked | None = None
    """The last decision made here, until the server has confirmed it."""


def settles(untold: MaintenanceAsked | None, frame: Maintenance) -> bool:
    """Tell whether the frame is to be obeyed: no decision of ours is on its way, or this is the answer to it."""
    return untold is None or frame.settled == untold.since
