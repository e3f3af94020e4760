"""Frames on their way to the link."""

from __future__ import annotations

import asyncio
from collections import deque

from airflow_edge_agent.protocol.frames import MAX_FRAMES, AgentFrame


class Outbox:
    """A queue that knows when all that went in has been sent."""

    def __init__(self) -> None:
        self._frames: deque[AgentFrame] = deque()
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()

    @property
    def empty(self) -> bool:
        """Whether everything has been sent."""
        return self._drained.is_set()

    def put(self, frame: AgentFrame) -> None:
        """Append a frame."""
        self._frames.append(frame)
        self._filled.set()
        self._drained.clear()

    async def take(self) -> list[AgentFrame]:
        """Wait for frames and take as many as fit into one batch. Call :meth:`sent` once they are."""
        await self._filled.wait()
        frames = [self._frames.popleft() for _ in range(min(len(self._frames), MAX_FRAMES))]
        if not self._frames:
            self._filled.clear()
        return frames

    def sent(self) -> None:
        """Note that the frames taken last have been sent."""
        if not self._frames:
            self._drained.set()

    def clear(self) -> None:
        """Drop everything: the link is gone."""
        self._frames.clear()
        self._filled.clear()
        self._drained.set()

    async def drained(self) -> None:
        """Wait until everything has been sent or dropped."""
        await self._drained.wait()
