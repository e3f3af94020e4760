"""Which carrier to use: the WebSocket if it gets through and stays, else the HTTP exchange for a while."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from airflow_edge_agent.core.backoff import Backoff

CarrierPolicy = Literal["auto", "websocket", "http"]

SHORT_SECONDS = 60.0
"""A WebSocket that breaks sooner than this after it was opened has not held."""

BREAKS_UNTIL_FALL = 2
"""How many of those in a row make us fall back."""

FIRST_CLIMB_SECONDS = 300.0
LONGEST_CLIMB_SECONDS = 3_600.0


class Carrier(StrEnum):
    """What carries frames."""

    WEBSOCKET = "websocket"
    HTTP = "http"


class CarrierChoice:
    """Remembers how WebSockets have fared. Times are monotonic seconds, chances drawn uniformly from [0, 1)."""

    def __init__(self, policy: CarrierPolicy) -> None:
        self.policy = policy
        self.climb_at: float | None = None
        """When the WebSocket is worth another try; ``None``: it is in favour, or out of the question."""
        self._breaks = 0
        # The jitter of a back-off lies between half and all of its bound, hence the doubled bounds.
        self._climbs = Backoff(first_seconds=2 * FIRST_CLIMB_SECONDS, longest_seconds=2 * LONGEST_CLIMB_SECONDS)

    def choose(self, now: float) -> Carrier:
        """Say what the next connection is to be made with."""
        if self.policy != "auto":
            return Carrier(self.policy)
        return Carrier.WEBSOCKET if self.climb_at is None or now >= self.climb_at else Carrier.HTTP

    def impossible(self, now: float, chance: float) -> None:
        """Note that WebSockets do not come through although HTTP does."""
        if self.policy == "auto":
            self._breaks = 0
            self.climb_at = now + min(LONGEST_CLIMB_SECONDS, self._climbs.next_seconds(chance))

    def opened(self) -> None:
        """Note that a session was opened over a WebSocket."""
        self.climb_at = None

    def broke(self, opened_at: float, now: float, chance: float) -> None:
        """Note that such a session broke, other than by the server's own leave."""
        if now - opened_at >= SHORT_SECONDS:
            self._breaks = 0
            self._climbs.reset()
            return
        self._breaks += 1
        if self._breaks >= BREAKS_UNTIL_FALL:
            self.impossible(now, chance)
