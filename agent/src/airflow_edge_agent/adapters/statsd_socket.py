"""The loopback UDP port on which tasks tell their metrics."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from airflow_edge_agent.adapters.files import write_atomically
from airflow_edge_agent.ports import StoreError

HOST = "127.0.0.1"

_LAST_PORT = 65_535


class StatsdSocket(asyncio.DatagramProtocol):
    """Takes datagrams.

    The port is any free one. The next daemon takes the same again if it can, because tasks that run on know no other.

    :param file: keeps the port.
    :param feed: takes what comes, whoever on this machine sends it.
    """

    def __init__(self, file: Path, feed: Callable[[bytes], None]) -> None:
        self._file = file
        self._feed = feed
        self._transport: asyncio.DatagramTransport | None = None

    async def open(self) -> int:
        """Begin to listen, and return the port.

        :raises StoreError: no port can be had.
        """
        before = self._before()
        try:
            port = await self._listen(before)
        except OSError:
            try:
                port = await self._listen(0)
            except OSError as error:
                raise StoreError(f"no UDP port on {HOST} can be had: {error.strerror or error}") from None
        if port != before:
            with contextlib.suppress(OSError):
                write_atomically(self._file, f"{port}\n")
        return port

    async def _listen(self, port: int) -> int:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(HOST, port))
        return int(self._transport.get_extra_info("sockname")[1])

    def _before(self) -> int:
        try:
            port = int(self._file.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0
        return port if 0 < port <= _LAST_PORT else 0

    def close(self) -> None:
        """Stop listening."""
        if self._transport is not None:
            self._transport.close()

    def datagram_received(self, data: bytes, addr: object) -> None:  # noqa: ARG002 -- asyncio says it
        """Pass on what came."""
        self._feed(data)
