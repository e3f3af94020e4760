"""What this api-server process has last seen of agents' sessions, and whether one is over that nobody has ended.

A host that has lost its power says no goodbye. When it is back, under another boot id, its own past holds its name.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

POLL_GAP_SECONDS = 3.0
"""How long after a poll the next request of its session must have come: polls follow each other at once."""


@dataclass(slots=True)
class _Trace:
    """What is known of the session that an agent has, or had last, in this process."""

    session_id: str
    at: float
    """When it was last heard of, or its last poll was answered; monotonic seconds."""
    broken: bool = False
    """Whether the connection that carried it has ended, and nothing came since."""
    waiting: set[asyncio.Event] = field(default_factory=set)
    """Set by the next sign of life."""


class Witness:
    """Traces of sessions, one per agent. Belongs to one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._traces: dict[str, _Trace] = {}

    def heard(self, agent_name: str, session_id: str) -> None:
        """Note a sign of life."""
        trace = self._trace(agent_name, session_id)
        trace.at, trace.broken = self._clock(), False
        for event in trace.waiting:
            event.set()

    def answered(self, agent_name: str, session_id: str) -> None:
        """Note that a poll was answered: no sign of life, but the next request is to be expected from now on."""
        self._trace(agent_name, session_id).at = self._clock()

    def broke(self, agent_name: str, session_id: str) -> None:
        """Note that the connection of a session has ended."""
        trace = self._traces.get(agent_name)
        if trace is not None and trace.session_id == session_id:
            trace.broken = True

    def seconds_left(self, agent_name: str, session_id: str) -> float | None:
        """Return how long a session without any connection may still be silent, 0 if it is over.

        ``None``: it was not seen here, and nothing can be said of it.
        """
        trace = self._traces.get(agent_name)
        if trace is None or trace.session_id != session_id:
            return None
        return 0.0 if trace.broken else max(0.0, trace.at + POLL_GAP_SECONDS - self._clock())

    async def is_silent(self, agent_name: str, session_id: str, seconds: float) -> bool:
        """Wait for a sign of life of a session that was seen here; tell whether none came."""
        trace = self._trace(agent_name, session_id)
        event = asyncio.Event()
        trace.waiting.add(event)
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return True
        finally:
            trace.waiting.discard(event)
        return False

    def _trace(self, agent_name: str, session_id: str) -> _Trace:
        trace = self._traces.get(agent_name)
        if trace is None or trace.session_id != session_id:
            # Somebody else speaks for the name: whoever waits for the session before must look again.
            for event in trace.waiting if trace is not None else ():
                event.set()
            trace = self._traces[agent_name] = _Trace(session_id, self._clock())
        return trace
