"""The unix socket on which jobs call Airflow's Execution API: who may connect."""

from __future__ import annotations

import asyncio
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import structlog

from airflow_edge_agent.adapters.files import check_socket_path
from airflow_edge_agent.ports import RelayHandler, StoreError

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
        self._path = path
        self._users = users
        self._handler = handler
        self._clients: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Begin to listen.

        :raises StoreError: the socket cannot be made there.
        """
        check_socket_path(self._path)
        try:
            # Left by a daemon that crashed: the lock on the state directory says that there is no other.
            if stat.S_ISSOCK(self._path.lstat().st_mode):
                self._path.unlink()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror}") from None
        try:
            self._server = await asyncio.start_unix_server(self._connected, self._path, limit=_LIMIT_BYTES)
            self._path.chmod(0o666)
        except OSError as error:
            raise StoreError(f"{self._path}: cannot be used as socket for jobs ({error.strerror})") from None

    async def close(self) -> None:
        """Stop listening and end all conversations. The socket's name stays: the next daemon takes it over."""
        if self._server is None:
            return
        self._server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", peer)[1] not in self._users() or len(self._clients) >= MAX_CONNECTIONS:
            writer.close()
            return
        task = asyncio.create_task(self._converse(reader, writer), name="relay client")
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Only now: a daemon without jobs need not have it in memory.
        from airflow_edge_agent.adapters.relay_http import serve  # noqa: PLC0415

        try:
            await serve(reader, writer, self._handler)
        except Exception as error:  # noqa: BLE001 -- a fault in one call must not end the daemon
            log.error("a relayed call failed", error=repr(error))
        finally:
            writer.close()
