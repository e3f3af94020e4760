"""A unix socket of the daemon, and the conversations on it. Everybody may reach it: the kernel says who connects."""

from __future__ import annotations

import asyncio
import socket
import stat
import struct
from collections.abc import Callable, Coroutine
from pathlib import Path

from airflow_edge_agent.adapters.files import check_socket_path
from airflow_edge_agent.ports import StoreError


class LocalSocket:
    """Listens, and knows which conversations are under way.

    :param purpose: completes "cannot be used as", for people.
    :param limit_bytes: of a line.
    """

    def __init__(self, path: Path, *, purpose: str, limit_bytes: int) -> None:
        self._path = path
        self._purpose = purpose
        self._limit_bytes = limit_bytes
        self._clients: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def clients(self) -> int:
        """How many conversations are under way."""
        return len(self._clients)

    async def open(self, connected: Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]) -> None:
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

    def converse(self, work: Coroutine[None, None, None], name: str) -> None:
        """Let a conversation begin."""
        task = asyncio.create_task(work, name=name)
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def close(self) -> bool:
        """Stop listening and end all conversations; the socket's name stays. Tell whether it has listened."""
        if self._server is None:
            return False
        self._server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        return True


def peer_of(writer: asyncio.StreamWriter) -> tuple[int, int, int]:
    """Return process, user and group of the other end, as the kernel knows them."""
    told = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("3i", told)
    return pid, uid, gid
