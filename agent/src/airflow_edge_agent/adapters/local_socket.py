"""Where the daemon listens, and the conversations there."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from collections.abc import Callable, Coroutine
from pathlib import Path

from airflow_edge_agent.adapters.files import check_socket_path
from airflow_edge_agent.ports import StoreError

Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]
"""Hears of each new connection."""


class _Listening:
    """Knows which conversations are under way."""

    def __init__(self) -> None:
        self._clients: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def clients(self) -> int:
        """How many conversations are under way."""
        return len(self._clients)

    def converse(self, work: Coroutine[None, None, None], name: str) -> None:
        """Let a conversation begin."""
        task = asyncio.create_task(work, name=name)
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def close(self) -> bool:
        """Stop listening and end all conversations; a socket's name stays. Tell whether it has listened."""
        if self._server is None:
            return False
        self._server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        return True


class LocalSocket(_Listening):
    """A unix socket. Everybody may reach it: the kernel says who connects.

    :param purpose: completes "cannot be used as", for people.
    :param limit_bytes: of a line.
    """

    def __init__(self, path: Path, *, purpose: str, limit_bytes: int) -> None:
        super().__init__()
        self._path = path
        self._purpose = purpose
        self._limit_bytes = limit_bytes

    async def open(self, connected: Connected) -> None:
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
            self._server = await asyncio.start_unix_server(connected, self._path, limit=self._limit_bytes)
            self._path.chmod(0o666)
        except OSError as error:
            raise StoreError(f"{self._path}: cannot be used as {self._purpose} ({error.strerror})") from None


class NetworkSocket(_Listening):
    """A TCP socket on an address of this machine.

    :param purpose: completes "cannot be used as", for people.
    :param limit_bytes: of a line.
    """

    def __init__(self, host: str, port: int, *, purpose: str, limit_bytes: int) -> None:
        super().__init__()
        self._host = host
        self.port = port
        """Where it listens; given as 0, any that is free."""
        self._purpose = purpose
        self._limit_bytes = limit_bytes

    async def open(self, connected: Connected) -> None:
        """Begin to listen.

        :raises StoreError: the address cannot be had.
        """
        try:
            self._server = await asyncio.start_server(connected, self._host, self.port, limit=self._limit_bytes)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise StoreError(f"{self._host} port {self.port}: cannot be used as {self._purpose} ({reason})") from None
        self.port = self._server.sockets[0].getsockname()[1]


def peer_of(writer: asyncio.StreamWriter) -> tuple[int, int, int]:
    """Return process, user and group of the other end, as the kernel knows them."""
    told = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("3i", told)
    return pid, uid, gid
