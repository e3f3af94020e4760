"""The unix socket on which jobs call Airflow's Execution API: who may connect."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from airflow_edge_agent.adapters.local_socket import LocalSocket, peer_of
from airflow_edge_agent.ports import RelayHandler

log = structlog.get_logger()

MAX_CONNECTIONS = 1_024
"""A runner keeps a few of them for all of its jobs."""

_LIMIT_BYTES = 64 * 1024


class RelayListener:
    """Listens, lets in who may, and passes calls on.

    :param users: returns the users whose processes may connect. The kernel says whose one is: everybody can reach the
        socket, because the daemon may belong to no group of the runner's.
    """

    def __init__(self, path: Path, *, users: Callable[[], set[int]], handler: RelayHandler) -> None:
        self._users = users
        self._handler = handler
        self._socket = LocalSocket(path, purpose="socket for jobs", limit_bytes=_LIMIT_BYTES)

    async def open(self) -> None:
        """Begin to listen.

        :raises StoreError: the socket cannot be made there.
        """
        await self._socket.open(self._connected)

    async def close(self) -> None:
        """Stop listening and end all conversations. The socket's name stays: the next daemon takes it over."""
        await self._socket.close()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if peer_of(writer)[1] not in self._users() or self._socket.clients >= MAX_CONNECTIONS:
            writer.close()
            return
        self._socket.converse(self._converse(reader, writer), "relay client")

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Only now: a daemon without jobs need not have it in memory.
        from airflow_edge_agent.adapters.relay_http import serve  # noqa: PLC0415

        try:
            await serve(reader, writer, self._handler)
        except Exception as error:  # noqa: BLE001 -- a fault in one call must not end the daemon
            log.error("a relayed call failed", error=repr(error))
        finally:
            writer.close()
