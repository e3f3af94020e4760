"""Just enough of an HTTP server for the clients of jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import h11

from airflow_edge_agent.ports import RelayCall, RelayHandler, RelayReply, TransportError
from airflow_edge_agent.protocol.relay import MAX_RELAYED_BYTES

WHOLE_BYTES = 128 * 1024
"""A body up to this is read before the call is passed on; a longer one is passed on as it comes."""

REQUEST_SECONDS = 60.0
"""How long a client may take for the next piece of a request, and to read one of its answer."""

_CHUNK_BYTES = 64 * 1024


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: RelayHandler) -> None:
    """Answer what comes on one connection, until its end."""
    exchange = _Exchange(reader, writer)
    try:
        while await exchange.one(handler):
            pass
    except (OSError, TimeoutError, TransportError, h11.RemoteProtocolError):
        pass  # the client has left or spoke no HTTP, or an answer broke off


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
        told = event.method != b"HEAD"
        length = _body_bytes(event)
        if length is None or length > MAX_RELAYED_BYTES:
            refusal = f"a body has a Content-Length, of at most {MAX_RELAYED_BYTES} bytes"
            await self._answer(RelayReply.plain(413, refusal), told=told)
            return False
        body: bytes | AsyncIterator[bytes] = self._pieces()
        if length <= WHOLE_BYTES:
            body = b"".join([piece async for piece in self._pieces()])
        call = RelayCall(event.method.decode("ascii"), event.target, list(event.headers), body)
        async with handler(call) as reply:
            await self._answer(reply, told=told)
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

    async def _answer(self, reply: RelayReply, *, told: bool = True) -> None:
        """Send an answer.

        :param told: with its body.
        """
        # A body that was not read to its end leaves nothing to go on with.
        over = self._state.their_state is not h11.DONE
        headers = [*reply.headers, *([(b"connection", b"close")] if over else [])]
        self._write(h11.Response(status_code=reply.status, headers=headers))
        async for piece in reply.body:
            if not told:
                break
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
