"""Lines: how something is said to an agent that waits in this process, whatever carries it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from enum import Enum
from typing import ClassVar

from airflow_edge_agent.protocol.frames import ServerFrame
from airflow_edge_server.store.dispatch import Room


class Ending(Enum):
    """Why the server ends a line."""

    CLOSED = "closed"
    """Its session is over; a close frame says why."""
    REPLACED = "replaced"
    """The same session has opened another line."""
    REVOKED = "revoked"
    """Its credential is not valid any more."""
    STOPPING = "stopping"
    """The process is about to end."""


class Line(ABC):
    """One agent that waits for something to be said."""

    __slots__ = ("agent_name", "credential_id", "room", "session_id")

    lasting: ClassVar[bool]
    """Whether the line stays after something was said."""

    def __init__(self, agent_name: str, session_id: str, credential_id: str, room: Room) -> None:
        self.agent_name = agent_name
        self.session_id = session_id
        self.credential_id = credential_id
        self.room = room

    @abstractmethod
    def say(self, frames: list[ServerFrame]) -> bool:
        """Hand frames on; return whether the agent may still hear them."""

    @abstractmethod
    def end(self, ending: Ending, frames: list[ServerFrame]) -> None:
        """Say something last, and end."""


class Poll(Line):
    """A request of the HTTP carrier that waits for its answer."""

    __slots__ = ("answer", "revoked")

    lasting = False

    def __init__(self, agent_name: str, session_id: str, credential_id: str, room: Room) -> None:
        super().__init__(agent_name, session_id, credential_id, room)
        self.answer: asyncio.Future[list[ServerFrame]] = asyncio.get_running_loop().create_future()
        self.revoked = False
        """Whether it ended because its credential is not valid any more."""

    def say(self, frames: list[ServerFrame]) -> bool:
        """Answer the request."""
        if self.answer.done():
            return False
        self.answer.set_result(frames)
        return True

    def end(self, ending: Ending, frames: list[ServerFrame]) -> None:
        """Answer the request, if that was not done."""
        if not self.answer.done():
            self.revoked = ending is Ending.REVOKED
            self.answer.set_result(frames)

    def take(self) -> list[ServerFrame]:
        """Return what was said, if anything; nothing more can be said then."""
        self.end(Ending.CLOSED, [])
        return self.answer.result()
