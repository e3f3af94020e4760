"""A small HTTP/1.1 server over real sockets, on a port of the system's choice, that may also misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from airflow_edge_agent.protocol import CHANNEL_PATH
from airflow_edge_agent.protocol.codec import decode_agent_frame, decode_batch, encode_batch
from airflow_edge_agent.protocol.frames import AnyFrame, Close, Heartbeat, Hello, ServerFrame, Welcome
from fakes.server import ScriptedServer
from fakes.websocket import Channel, ChannelClosed


@dataclass
class Request:
    """What a client asked."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    head: bytes = b""
    """The request without its body, as it came."""
    peer_certificate: dict[str, object] | None = None
    """What the client showed in TLS."""


@dataclass
class Reply:
    """What it gets."""

    status: int = 200
    reason: str = "OK"
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    upgraded: Callable[[Channel], Awaitable[None]] | None = None
    """Make it a WebSocket, and go on with this."""
    announce_bytes: int | None = None
    """Content length to announce; when the body is shorter, the connection breaks in the middle of it."""

    def encode(self) -> bytes:
        length = len(self.body) if self.announce_bytes is None else self.announce_bytes
        lines = [f"HTTP/1.1 {self.status} {self.reason}", f"content-length: {length}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


Handler = Callable[[Request], Awaitable[Reply]]


@contextlib.asynccontextmanager
async def serve(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Serve on loopback; yields the port."""
    clients: set[asyncio.Task[None]] = set()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        clients.add(task)
        try:
            while True:
                request = await _read(reader)
                if request is None:
                    writer.write(Reply(400, "Bad Request").encode())
                    return
                tls_object = writer.get_extra_info("ssl_object")
                request.peer_certificate = tls_object.getpeercert() if tls_object is not None else None
                reply = await handler(request)
                if reply.upgraded is not None:
                    channel = Channel(reader, writer)
                    await channel.accept(request.head)
                    await reply.upgraded(channel)
                    return
                writer.write(reply.encode())
                await writer.drain()
                if reply.announce_bytes is not None:
                    return
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError, ChannelClosed):
            pass
        finally:
            clients.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(client, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(clients):
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        await server.wait_closed()


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        begin = await reader.readexactly(1)
        if not begin.isalpha():
            return None  # no HTTP, perhaps TLS
        raw = begin + await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = raw.decode("latin-1").strip().split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {name.strip().lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body, raw)


class AgentApi:
    """The agent API as far as agents can tell, in front of a scripted server."""

    def __init__(self, server: ScriptedServer) -> None:
        self.server = server
        self.requests: list[Request] = []
        self.misbehave: Callable[[Request], Reply | None] = lambda _: None
        self.websockets = True
        """Whether they come through."""
        self.channels: list[Channel] = []
        self._session_id: str | None = None

    async def __call__(self, request: Request) -> Reply:
        self.requests.append(request)
        wrong = self.misbehave(request)
        if wrong is not None:
            return wrong
        if self.server.fault is not None:
            return Reply(503, "Service Unavailable")
        if request.path.endswith(CHANNEL_PATH):
            return Reply(101, upgraded=self._channel) if self.websockets else Reply(403, "Forbidden")
        batch = decode_batch(request.body)
        frames = [decode_agent_frame(frame) for frame in batch.frames]
        answer: list[ServerFrame]
        if frames and isinstance(frames[0], Hello):
            answer = self.server.hello(frames[0])
            self._session_id = next((f.session_id for f in answer if isinstance(f, Welcome)), None)
        elif batch.wait_seconds:
            answer = await self.server.poll(frames, batch.wait_seconds)
        else:
            answer = self.server.take(frames)
        outgoing: list[AnyFrame] = list(answer)
        return Reply(
            headers={"content-type": "application/json"}, body=encode_batch(outgoing, session_id=self._session_id)
        )

    def cut(self) -> None:
        """Cut all WebSockets."""
        for channel in self.channels:
            channel.abort()

    async def _channel(self, channel: Channel) -> None:
        self.channels.append(channel)
        speaking: asyncio.Task[None] | None = None
        try:
            while True:
                frames = [decode_agent_frame(frame) for frame in decode_batch(await channel.receive()).frames]
                answer: list[ServerFrame] = []
                if isinstance(frames[0], Hello):
                    answer = self.server.hello(frames[0])
                elif any(isinstance(frame, Heartbeat) for frame in frames):
                    self.server.note_presence(frames)
                else:
                    answer = self.server.take(frames)
                await self._say(channel, answer)
                if speaking is None:
                    speaking = asyncio.create_task(self._speak(channel))
        finally:
            self.channels.remove(channel)
            if speaking is not None:
                speaking.cancel()
                await asyncio.gather(speaking, return_exceptions=True)

    async def _speak(self, channel: Channel) -> None:
        while True:
            await self._say(channel, await self.server.pushed())

    async def _say(self, channel: Channel, frames: list[ServerFrame]) -> None:
        if frames:
            outgoing: list[AnyFrame] = list(frames)
            await channel.send(encode_batch(outgoing))
        if any(isinstance(frame, Close) for frame in frames):
            await channel.close(4000)
