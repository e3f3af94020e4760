"""An agent of few words that speaks over the WebSocket carrier, and real servers for it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from airflow_edge_agent.protocol import CHANNEL_PATH
from airflow_edge_agent.protocol.codec import decode_batch, decode_server_frame, encode_batch
from airflow_edge_agent.protocol.frames import (
    Accept,
    AcceptAck,
    AnyFrame,
    Heartbeat,
    HeldJob,
    Metrics,
    Offer,
    ServerFrame,
    Started,
    Welcome,
)
from airflow_edge_agent.protocol.states import AgentState
from airflow_edge_server.api.channel import Channel
from airflow_edge_server.api.hub import Hub
from airflow_edge_server.api.shortcut import Shortcut
from integration.server_api.kit import FakeAgent, until

F = TypeVar("F")


@dataclass
class Served:
    """An app behind a real server."""

    app: FastAPI
    server: uvicorn.Server
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def hub(self) -> Hub:
        return self.channel._hub

    @property
    def agent_paths(self) -> set[str]:
        """The paths that are for agents, behind their gate."""
        return {getattr(route, "path", "") for route in self._inside._app.routes} | {CHANNEL_PATH}

    @property
    def channel(self) -> Channel:
        channel = self._inside._channel
        assert isinstance(channel, Channel)
        return channel

    @property
    def _inside(self) -> Any:
        """What is behind all that asks who it is."""
        inside = self.app.state.agents
        while not isinstance(inside, Shortcut):
            inside = inside._app
        return inside


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[Served]:
    """Serve the app until the end."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await until(lambda: server.started)
        yield Served(app, server, listener.getsockname()[1])
    finally:
        server.should_exit = True
        await task


@dataclass
class ChannelAgent(FakeAgent):
    """Connected by :meth:`open`. What it hears is kept until somebody asks for it."""

    url: str = ""
    heard: list[ServerFrame] = field(default_factory=list)
    socket: ClientConnection | None = None

    async def open(self, *jobs: HeldJob, **given: Any) -> list[ServerFrame]:
        """Connect and say hello; return the answer."""
        self.socket = await self.dial()
        await self.send(self.hello_frame(*jobs, **given))
        frames = await self.next_batch()
        if frames and isinstance(frames[0], Welcome):
            self.session_id = frames[0].session_id
        return frames

    async def dial(self) -> ClientConnection:
        return await connect(
            f"{self.url.replace('http', 'ws')}/v1/channel",
            additional_headers=self.headers,
            proxy=None,
            max_size=None,
        )

    async def send(self, *frames: AnyFrame) -> None:
        assert self.socket is not None
        await self.socket.send(encode_batch(list(frames)).decode())

    async def ready(self, used: int = 0, state: AgentState = AgentState.IDLE, **given: Any) -> None:
        """Say that there is room for jobs, and that all is well."""
        heartbeat = Heartbeat(metrics=Metrics(cpu_percent=1), sent_at=datetime.now(UTC))
        await self.send(self.status(used, state, **given), heartbeat)

    async def next_batch(self, seconds: float = 5) -> list[ServerFrame]:
        assert self.socket is not None
        async with asyncio.timeout(seconds):
            data = await self.socket.recv()
        batch = decode_batch(data if isinstance(data, bytes) else data.encode())
        return [decode_server_frame(frame) for frame in batch.frames]

    async def hear(self, kind: type[F], seconds: float = 5) -> F:
        """Return the next frame of this kind; others are kept."""
        async with asyncio.timeout(seconds):
            while True:
                for frame in self.heard:
                    if isinstance(frame, kind):
                        self.heard.remove(frame)
                        return frame
                self.heard += await self.next_batch(seconds)

    async def closed(self, seconds: float = 5) -> int:
        """Wait for the end of the connection; return its code."""
        assert self.socket is not None
        try:
            while True:
                self.heard += await self.next_batch(seconds)
        except ConnectionClosed as error:
            return 1006 if error.rcvd is None else error.rcvd.code

    async def take_one(self, *, start: bool = False) -> Offer:
        """Take the next offer."""
        offer = await self.hear(Offer)
        await self.send(Accept(job_id=offer.job_id, fence=offer.fence))
        await self.hear(AcceptAck)
        if start:
            await self.send(Started(job_id=offer.job_id, fence=offer.fence, pid=1))
        return offer

    async def hang_up(self) -> None:
        """Cut the connection without a word."""
        assert self.socket is not None
        self.socket.transport.abort()
        await self.socket.wait_closed()
