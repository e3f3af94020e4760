"""A runner without processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

from airflow_edge_agent.ports import (
    RunnerEnded,
    RunnerError,
    RunnerEvent,
    RunnerReady,
    RunnerStarted,
)
from airflow_edge_agent.protocol.frames import Offer
from airflow_edge_agent.protocol.limits import JobLimits


class MemoryRunner:
    """Starts nothing, and reports what the test tells it to.

    With ``automatic`` it reports the start of each job at once. ``fault`` is what the next hand-overs meet.
    """

    def __init__(self, *, automatic: bool = True, left_behind: dict[str, int] | None = None) -> None:
        self.fault: RunnerError | None = None
        self.offers: dict[str, Offer] = {}
        self.servers: list[str] = []
        self.relays: list[Path | None] = []
        self.limits: dict[str, JobLimits | None] = {}
        self.signals: list[tuple[str, str]] = []
        self.closed = False
        self.changed = False
        """Whether something else is on disk than what it was loaded from."""
        self.renewals = 0
        self._automatic = automatic
        self._left_behind = left_behind or {}
        self._ready = False
        self._events: asyncio.Queue[RunnerEvent] = asyncio.Queue()
        self._next_pid = 1000

    def report(self, event: RunnerEvent) -> None:
        """Report something."""
        self._events.put_nowait(event)

    def end(self, job_id: str) -> None:
        """Report the end of a job; its result must be in the store."""
        self.offers.pop(job_id, None)
        self.report(RunnerEnded(job_id))

    async def reattach(self) -> dict[str, int]:
        await asyncio.sleep(0)
        return dict(self._left_behind)

    async def start(
        self, offer: Offer, server: str, limits: JobLimits | None = None, relay: Path | None = None
    ) -> None:
        await asyncio.sleep(0)
        if self.fault is not None:
            raise self.fault
        self.offers[offer.job_id] = offer
        self.servers.append(server)
        self.relays.append(relay)
        self.limits[offer.job_id] = limits
        if self._automatic:
            if not self._ready:
                self._ready = True
                self.report(RunnerReady({"python": "3.11.7", "task_sdk": "1.3.2"}))
            self._next_pid += 1
            self.report(RunnerStarted(offer.job_id, self._next_pid))

    async def signal(self, job_id: str, signal: Literal["TERM", "KILL"]) -> None:
        await asyncio.sleep(0)
        self.signals.append((job_id, signal))

    async def renew(self, *, if_changed: bool = False) -> bool:
        await asyncio.sleep(0)
        if not self._ready or (if_changed and not self.changed):
            return False
        self.changed = False
        self.renewals += 1
        return True

    async def events(self) -> AsyncIterator[RunnerEvent]:
        while True:
            yield await self._events.get()

    async def close(self) -> None:
        self.closed = True
