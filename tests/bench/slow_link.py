"""A long way to a server: every byte takes its time, and TLS is spoken over it, as by agents in the field."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

_PIECE_BYTES = 64 * 1024


class SlowLink:
    """Listens on the loopback interface and forwards to one server, which itself speaks no TLS.

    Bytes that are under way do not hold up each other. A new connection costs one round trip before its first byte, as
    TCP's handshake does on a real link; the round trips of TLS's handshake come by themselves.

    :param port: of the server.
    :param round_trip_seconds: what the link adds to a question and its answer.
    :param tls: with the server's certificate.
    """

    def __init__(self, port: int, round_trip_seconds: float, tls: ssl.SSLContext) -> None:
        self.port = 0
        self._server_port = port
        self._round_trip_seconds = round_trip_seconds
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="slow-link", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        """Base URL of the server, over this link."""
        return f"https://localhost:{self.port}"

    async def _listen(self) -> None:
        self._near = await asyncio.start_server(self._terminate, "127.0.0.1", 0, ssl=self._tls)
        self._far = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = self._far.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        for server in (self._near, self._far):
            server.close()
        own = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not own]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The long way: between the client and where TLS ends.
        now, way = self._loop.time, self._round_trip_seconds / 2
        open_at = now() + self._round_trip_seconds
        port = self._near.sockets[0].getsockname()[1]
        await _join(reader, writer, port, lambda: max(now(), open_at) + way, lambda: now() + way)

    async def _terminate(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        now = self._loop.time
        await _join(reader, writer, self._server_port, now, now)


async def _join(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    port: int,
    up_at: Callable[[], float],
    down_at: Callable[[], float],
) -> None:
    """Connect two ends until one of them leaves.

    :param up_at: says when what has just come from the client arrives; likewise ``down_at``.
    """
    try:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        writer.close()
        return
    pumps = [
        asyncio.ensure_future(_pump(reader, far_writer, up_at)),
        asyncio.ensure_future(_pump(far_reader, writer, down_at)),
    ]
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for end in (writer, far_writer):
            end.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, arrives_at: Callable[[], float]) -> None:
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def deliver() -> None:
        while True:
            at, data = await under_way.get()
            await asyncio.sleep(at - asyncio.get_running_loop().time())
            if not data:
                return
            writer.write(data)
            await writer.drain()

    delivery = asyncio.ensure_future(deliver())
    try:
        with contextlib.suppress(OSError):
            while data := await reader.read(_PIECE_BYTES):
                under_way.put_nowait((arrives_at(), data))
        under_way.put_nowait((arrives_at(), b""))
        with contextlib.suppress(OSError):
            await delivery
    finally:
        delivery.cancel()
