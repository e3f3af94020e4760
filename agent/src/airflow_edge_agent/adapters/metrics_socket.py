"""Where Prometheus and its like fetch the agent's metrics: just enough HTTP for that."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import structlog

from airflow_edge_agent.adapters.local_socket import LocalSocket, NetworkSocket

log = structlog.get_logger()

MAX_CLIENTS = 8
"""More are turned away: a scrape takes milliseconds."""

MAX_HEAD_BYTES = 8 * 1024
"""Most of a request: its first line and its headers. A body is not read."""

REQUEST_SECONDS = 5.0
"""How long a client may take for its request, and to read its answer."""

CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_PLAIN = "text/plain; charset=utf-8"

_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class MetricsListener:
    """Listens, and answers ``GET /metrics``; one request per connection.

    :param address: path of a unix socket, or address and port.
    :param render: writes the text.
    """

    def __init__(self, address: Path | tuple[str, int], render: Callable[[], str]) -> None:
        self._render = render
        self._path = address if isinstance(address, Path) else None
        self._socket: LocalSocket | NetworkSocket
        purpose = "address of the metrics"
        if isinstance(address, Path):
            self._socket = LocalSocket(address, purpose=purpose, limit_bytes=MAX_HEAD_BYTES)
        else:
            self._socket = NetworkSocket(*address, purpose=purpose, limit_bytes=MAX_HEAD_BYTES)

    @property
    def port(self) -> int | None:
        """The TCP port; ``None``: it is a unix socket."""
        return self._socket.port if isinstance(self._socket, NetworkSocket) else None

    async def open(self) -> None:
        """Begin to listen.

        :raises StoreError: it is not possible there.
        """
        await self._socket.open(self._connected)

    async def close(self) -> None:
        """Stop listening and end all conversations."""
        if await self._socket.close() and self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        full = self._socket.clients >= MAX_CLIENTS
        if self._socket.clients >= 2 * MAX_CLIENTS:
            writer.close()  # not even an answer: those who wait for one take memory, too
            return
        self._socket.converse(self._converse(reader, writer, full=full), "metrics client")

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, full: bool) -> None:
        try:
            if full:
                answer = _answer(503, f"there are {MAX_CLIENTS} clients already; try again later\n")
            else:
                answer = await self._exchange(reader)
            writer.write(answer)
            await asyncio.wait_for(writer.drain(), REQUEST_SECONDS)
        except (OSError, TimeoutError, EOFError):
            pass  # the client has left, or fell asleep
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), REQUEST_SECONDS)
        except TimeoutError:
            return _answer(408, f"a request takes at most {REQUEST_SECONDS:g} s\n")
        except asyncio.LimitOverrunError:
            return _answer(431, f"a request has at most {MAX_HEAD_BYTES} bytes\n")
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):  # noqa: PLR2004 -- method, target, version
            return _answer(400, "this is no HTTP/1 request\n")
        method, target = words[0], words[1].split(b"?", 1)[0]
        if method not in (b"GET", b"HEAD"):
            return _answer(405, "only GET and HEAD\n", "Allow: GET, HEAD\r\n")
        if target != b"/metrics":
            return _answer(404, "the metrics are at /metrics\n", body=method == b"GET")
        try:
            text = self._render()
        except Exception as error:  # noqa: BLE001 -- a fault in one answer must not end the daemon
            log.error("the metrics could not be written", error=repr(error))
            return _answer(500, "the daemon could not answer; its log says why\n", body=method == b"GET")
        return _answer(200, text, kind=CONTENT_TYPE, body=method == b"GET")


def _answer(status: int, text: str, more: str = "", *, kind: str = _PLAIN, body: bool = True) -> bytes:
    data = text.encode()
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n"
        f"Cache-Control: no-store\r\nConnection: close\r\n{more}\r\n"
    )
    return head.encode() + (data if body else b"")
