"""A way to a scripted server without a network."""

from __future__ import annotations

import asyncio
import contextlib

from airflow_edge_agent.ports import Presence, TransportError
from airflow_edge_agent.protocol.frames import AgentFrame, Hello, ServerFrame, Welcome
from fakes.server import ScriptedServer


class MemoryLink:
    """A link in memory. :meth:`cut` breaks it."""

    carrier = "memory"

    def __init__(self, server: ScriptedServer, frames: list[ServerFrame]) -> None:
        self._server = server
        self._arrived: asyncio.Queue[list[ServerFrame] | TransportError] = asyncio.Queue()
        self._arrived.put_nowait(frames)
        self._fault: TransportError | None = None
        self._poll: asyncio.Task[None] | None = None
        self._acted_upon = asyncio.Event()
        self.closed = False

    def cut(self, error: TransportError | None = None) -> None:
        """Break the link."""
        self._fault = error or TransportError("the link was cut")
        self._arrived.put_nowait(self._fault)

    def start_polling(self, presence: Presence) -> None:
        self._poll = asyncio.create_task(self._poll_forever(presence), name="memory poll")

    async def _poll_forever(self, presence: Presence) -> None:
        while self._fault is None:
            frames = await self._server.poll(presence())
            self._acted_upon.clear()
            self._arrived.put_nowait(frames)
            await self._acted_upon.wait()

    async def send(self, frames: list[AgentFrame]) -> None:
        fault = self._fault or self._server.fault
        if fault is not None:
            raise fault
        await asyncio.sleep(0)
        answer = self._server.take(frames)
        if answer:
            self._arrived.put_nowait(answer)

    async def receive(self) -> list[ServerFrame]:
        self._acted_upon.set()
        arrived = await self._arrived.get()
        if isinstance(arrived, TransportError):
            raise arrived
        return arrived

    async def close(self) -> None:
        self.closed = True
        if self._poll is not None:
            self._poll.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._poll


class MemoryTransport:
    """Connects to a scripted server."""

    def __init__(self, server: ScriptedServer) -> None:
        self._server = server
        self.links: list[MemoryLink] = []
        self.closed = False

    async def connect(self, hello: Hello, presence: Presence) -> MemoryLink:
        await asyncio.sleep(0)
        if self._server.fault is not None:
            raise self._server.fault
        frames = self._server.hello(hello)
        link = MemoryLink(self._server, frames)
        self.links.append(link)
        if any(isinstance(frame, Welcome) for frame in frames):
            link.start_polling(presence)
        return link

    async def close(self) -> None:
        self.closed = True
