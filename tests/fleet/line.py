"""A WebSocket of one simulated agent: the library's own protocol without tasks, on a plain asyncio transport."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

from airflow_edge_agent.adapters.websocket import extensions
from airflow_edge_agent.protocol.frames import MAX_BATCH_BYTES

PING_SECONDS = 20.0


class ServerLine(asyncio.Protocol):
    """One connection, from the handshake to its end.

    :param opened: called when the server has accepted the WebSocket.
    :param heard: called with each message.
    :param ended: called once at the end, with the HTTP status or close code (0: none), and the time to wait.
    """

    def __init__(
        self,
        url: str,
        authorization: str,
        *,
        opened: Callable[[], None],
        heard: Callable[[bytes], None],
        ended: Callable[[int, float], None],
    ) -> None:
        self._protocol = ClientProtocol(parse_uri(url), extensions=extensions(), max_size=MAX_BATCH_BYTES)
        self._authorization = authorization
        self._opened, self._heard, self._ended = opened, heard, ended
        self._transport: asyncio.Transport | None = None
        self._parts: list[bytes] = []
        self._status = 0
        self._retry_after = 0.0
        self._pinged = 0
        self.over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the upgrade."""
        # uvloop's are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        request = self._protocol.connect()
        request.headers["Authorization"] = self._authorization
        self._protocol.send_request(request)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Take in what has come."""
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                self._answered(event)
            elif isinstance(event, Frame):
                self._frame(event)
        self._flush()
        if self._protocol.close_expected() and self._transport is not None:
            self._transport.close()

    def eof_received(self) -> None:
        """Note that the server says no more."""
        self._protocol.receive_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever owns the line."""
        if not self.over:
            self.over = True
            # Not the library's own word for it: that is there only once it has read the end of the stream.
            close = self._protocol.close_rcvd
            self._ended(self._status if close is None else close.code, self._retry_after)

    def send(self, message: bytes) -> None:
        """Send one text message."""
        if not self.over and self._protocol.state.name == "OPEN":
            self._protocol.send_text(message)
            self._flush()

    def ping(self) -> bool:
        """Ping; return whether the one before was answered, and end the line if it was not."""
        if self._pinged > 1:
            self.abort()
            return False
        if not self.over and self._protocol.state.name == "OPEN":
            self._pinged += 1
            self._protocol.send_ping(b"")
            self._flush()
        return not self.over

    def close(self) -> None:
        """Close in good order."""
        if not self.over and self._protocol.state.name == "OPEN":
            self._protocol.send_close(1000)
            self._flush()

    def abort(self) -> None:
        """End it at once."""
        if self._transport is not None:
            self._transport.abort()

    def _answered(self, response: Response) -> None:
        self._status = response.status_code
        self._retry_after = float(response.headers.get("Retry-After", 0))
        if self._protocol.handshake_exc is None:
            self._status = 0
            self._opened()

    def _frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.PONG:
            self._pinged = 0
        elif frame.opcode in (Opcode.TEXT, Opcode.CONT):
            self._parts.append(bytes(frame.data))
            if frame.fin:
                message, self._parts = b"".join(self._parts), []
                self._heard(message)

    def _flush(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(self._protocol.data_to_send()))
