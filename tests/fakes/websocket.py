"""The server's end of a WebSocket, on streams that have carried HTTP so far."""

from __future__ import annotations

import asyncio
from collections import deque

from websockets.extensions.permessage_deflate import enable_server_permessage_deflate
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from airflow_edge_agent.protocol.frames import MAX_BATCH_BYTES


class ChannelClosed(Exception):
    """The other end is gone."""


class Channel:
    """One WebSocket. ``deaf``: reads nothing any more, so pings stay without answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._protocol = ServerProtocol(extensions=enable_server_permessage_deflate(None), max_size=MAX_BATCH_BYTES)
        self._messages: deque[bytes] = deque()
        self._partial = b""
        self.largest = 0
        self.deaf = False

    async def accept(self, head: bytes) -> None:
        """Answer the request that opened it."""
        self._protocol.receive_data(head)
        (request,) = self._protocol.events_received()
        assert isinstance(request, Request)
        self._protocol.send_response(self._protocol.accept(request))
        await self._flush()

    @property
    def compressed(self) -> bool:
        """Whether both ends agreed to compress."""
        return bool(self._protocol.extensions)

    async def receive(self) -> bytes:
        """Wait for a message.

        :raises ChannelClosed: none will come.
        """
        while not self._messages:
            data = await self._reader.read(65_536)
            while self.deaf:  # noqa: ASYNC110 -- until the test ends it
                await asyncio.sleep(0.01)
            if data:
                self._protocol.receive_data(data)
            else:
                self._protocol.receive_eof()
            for event in self._protocol.events_received():
                assert isinstance(event, Frame)
                if event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                    self._partial += bytes(event.data)
                    if event.fin:
                        self.largest = max(self.largest, len(self._partial))
                        self._messages.append(self._partial)
                        self._partial = b""
            await self._flush()
            if not data or (self._protocol.state is not State.OPEN and not self._messages):
                raise ChannelClosed
        return self._messages.popleft()

    async def send(self, data: bytes) -> None:
        """Send a message as text."""
        self._protocol.send_text(data)
        await self._flush()

    async def close(self, code: int, reason: str = "") -> None:
        """Close it in good order."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(code, reason)
            await self._flush()
        self._writer.write_eof() if self._writer.can_write_eof() else self._writer.close()

    def abort(self) -> None:
        """Cut the connection."""
        self._writer.transport.abort()

    async def _flush(self) -> None:
        for piece in self._protocol.data_to_send():
            if piece:
                self._writer.write(piece)
        await self._writer.drain()
