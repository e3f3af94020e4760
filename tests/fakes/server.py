"""The server's side of a link, scripted by a test; carried by memory or by HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from airflow_edge_agent.ports import TransportError
from airflow_edge_agent.protocol.frames import AgentFrame, Hello, ServerFrame
from fakes.frames import make_welcome


class ScriptedServer:
    """Remembers what agents say, and answers as it is told to.

    ``on_hello`` and ``on_send`` make the answers; :meth:`push` speaks without being asked. While ``fault`` is set, it
    is what every attempt meets; in memory that very exception is raised.
    """

    def __init__(self) -> None:
        self.hellos: list[Hello] = []
        self.received: list[AgentFrame] = []
        self.presences: list[list[AgentFrame]] = []
        self.fault: TransportError | None = None
        self.on_hello: Callable[[Hello], list[ServerFrame]] = lambda _: [make_welcome()]
        self.on_send: Callable[[list[AgentFrame]], list[ServerFrame]] = lambda _: []
        self._pushed: asyncio.Queue[list[ServerFrame]] = asyncio.Queue()
        self._changed = asyncio.Event()

    def push(self, *frames: ServerFrame) -> None:
        """Speak to whoever is connected."""
        self._pushed.put_nowait(list(frames))

    async def wait_for(self, condition: Callable[[], bool], seconds: float = 10) -> None:
        """Wait until something that agents said makes the condition true."""

        async def until() -> None:
            while not condition():
                self._changed.clear()
                await self._changed.wait()

        await asyncio.wait_for(until(), seconds)

    # For the carriers

    def hello(self, hello: Hello) -> list[ServerFrame]:
        """Take a hello and return the answer."""
        self.hellos.append(hello)
        self._changed.set()
        return self.on_hello(hello)

    def take(self, frames: list[AgentFrame]) -> list[ServerFrame]:
        """Take frames of the send lane and return the answer."""
        self.received.extend(frames)
        self._changed.set()
        return self.on_send(frames)

    async def poll(self, presence: list[AgentFrame], seconds: float | None = None) -> list[ServerFrame]:
        """Take a sign of life and return what was pushed, once something was."""
        self.note_presence(presence)
        try:
            return await asyncio.wait_for(self.pushed(), seconds)
        except TimeoutError:
            return []

    def note_presence(self, presence: list[AgentFrame]) -> None:
        """Take a sign of life."""
        self.presences.append(presence)
        self._changed.set()

    async def pushed(self) -> list[ServerFrame]:
        """Return what was pushed, once something was."""
        return await self._pushed.get()
