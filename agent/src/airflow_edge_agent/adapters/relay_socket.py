"""The unix socket on which jobs call Airflow's Execution API: just enough of an HTTP server for one kind of client."""

from __future__ import annotations

import asyncio
import socket
import stat
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import h11
import structlog

from airflow_edge_agent.adapters.files import check_socket_path
from airflow_edge_agent.ports import RelayCall, RelayHandler, RelayReply, StoreError, TransportError
from airflow_edge_agent.protocol.relay import MAX_RELAYED_BYTES

log = structlog.get_logger()

MAX_CONNECTIONS = 1_024
"""A runner keeps a few of them for all of its jobs."""

WHOLE_BYTES = 128 * 1024
"""A body up to this is read before the call is passed on; a longer one is passed on as it comes."""

REQUEST_SECONDS = 60.0
"""How long a client may take for the next piece of a request, and to read one of its answer."""

_CHUNK_BYTES = 64 * 1024


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
            self._server = await asyncio.start_unix_server(self._connected, self._path, limit=_CHUNK_BYTES)
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
        exchange = _Exchange(reader, writer)
        try:
            while await exchange.one(self._handler):
                pass
        except (OSError, TimeoutError, TransportError, h11.RemoteProtocolError):
            pass  # the client has left or spoke no HTTP, or an answer broke off
        except Exception as error:  # noqa: BLE001 -- a fault in one call must not end the daemon
            log.error("a relayed call failed", error=repr(error))
        finally:
            writer.close()


class _Exchange:
    """One connection: requests and answers, one after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._state = h11.Connection(h11.SERVER, max_incomplete_event_size=_CHUNK_BYTES)

    async def one(self, handler: RelayHandler) -> bool:
        """Serve one request; tell whether another may follow."""
        event = await self._event(patient=True)
        if not isinstance(event, h11.Request):
            return False
        length = _body_bytes(event)
        if length is None or length > MAX_RELAYED_BYTES:
            refusal = f"a body has a Content-Length, of at most {MAX_RELAYED_BYTES} bytes"
            await self._answer(RelayReply.plain(413, refusal))
            return False
        body: bytes | AsyncIterator[bytes] = self._pieces()
        if length <= WHOLE_BYTES:
            body = b"".join([piece async for piece in self._pieces()])
        call = RelayCall(event.method.decode("ascii"), event.target, list(event.headers), body)
        async with handler(call) as reply:
            await self._answer(reply)
        if self._state.our_state is not h11.DONE or self._state.their_state is not h11.DONE:
            return False
        self._state.start_next_cycle()
        return True

    async def _event(self, *, patient: bool = False) -> h11.Event | type[h11.PAUSED]:
        while (event := self._state.next_event()) is h11.NEED_DATA:
            if patient:
                # Between two calls a job may work for hours.
                data = await self._reader.read(_CHUNK_BYTES)
            else:
                async with asyncio.timeout(REQUEST_SECONDS):
                    data = await self._reader.read(_CHUNK_BYTES)
            self._state.receive_data(data)
        return event  # type: ignore[return-value]  # NEED_DATA is excluded above

    async def _pieces(self) -> AsyncIterator[bytes]:
        while isinstance(event := await self._event(), h11.Data):
            yield bytes(event.data)

    async def _answer(self, reply: RelayReply) -> None:
        # A body that was not read to its end leaves nothing to go on with.
        over = self._state.their_state is not h11.DONE
        headers = [*reply.headers, *([(b"connection", b"close")] if over else [])]
        self._write(h11.Response(status_code=reply.status, headers=headers))
        async for piece in reply.body:
            self._write(h11.Data(data=piece))
            if self._writer.transport.get_write_buffer_size() > _CHUNK_BYTES:
                async with asyncio.timeout(REQUEST_SECONDS):
                    await self._writer.drain()
        self._write(h11.EndOfMessage())
        async with asyncio.timeout(REQUEST_SECONDS):
            await self._writer.drain()

    def _write(self, event: h11.Event) -> None:
        if data := self._state.send(event):
            self._writer.write(data)


def _body_bytes(request: h11.Request) -> int | None:
    """Return how long the body is; ``None`` if that is not told beforehand."""
    length = 0
    for name, value in request.headers:
        if name == b"transfer-encoding":
            return None
        if name == b"content-length":
            length = int(value)  # h11 lets nothing but a number through
    return length
