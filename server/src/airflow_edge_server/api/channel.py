"""The WebSocket carrier: batches of frames both ways, at any time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from concurrent.futures import Executor
from typing import Any

from sqlalchemy.exc import DBAPIError
from starlette.types import Receive, Scope, Send

from airflow_edge_agent.protocol.codec import FrameError, decode_batch, encode_batch
from airflow_edge_agent.protocol.frames import (
    MAX_BATCH_BYTES,
    MAX_FRAMES,
    Batch,
    Close,
    ServerFrame,
    Status,
)
from airflow_edge_server import plainly
from airflow_edge_server.api.auth import SCOPE_KEY, Caller
from airflow_edge_server.api.bounds import Allowances
from airflow_edge_server.api.hub import Hub
from airflow_edge_server.api.lines import Ending, Line
from airflow_edge_server.api.rivals import answered
from airflow_edge_server.api.service import Service
from airflow_edge_server.api.together import Together
from airflow_edge_server.store.dispatch import Room

log = plainly.logger(__name__)

HELLO_SECONDS = 20.0
"""How long a new connection may take to say hello."""

SILENCE_SECONDS = 10.0
"""How long after a missed heartbeat a connection is given up."""

SEND_SECONDS = 20.0
"""How long an agent may take to read one message."""

MAX_UNSENT_FRAMES = 4 * MAX_FRAMES
"""Most frames that wait for an agent to read; more, and its connection ends."""

_CLOSED = 4000
_CODES = {Ending.CLOSED: _CLOSED, Ending.REPLACED: _CLOSED, Ending.REVOKED: 1008, Ending.STOPPING: 1012}
_POLICY, _TOO_BIG, _TRY_LATER, _GONE = 1008, 1009, 1013, 1001


class _Abuse(Exception):
    """The agent sent what it must not. Holds the code and the reason to close with."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Connection(Line):
    """One open WebSocket.

    It costs the task in which the server runs it, and no other: messages are written by a task that lives only while
    there are some.
    """

    __slots__ = (
        "_code",
        "_count",
        "_reader",
        "_reason",
        "_send",
        "_unsent",
        "_writer",
        "caller",
        "ended",
        "status",
    )
    lasting = True

    def __init__(self, caller: Caller, send: Send) -> None:
        super().__init__(caller.agent_name, "", caller.credential_id, Room(None, frozenset(), None, 0))
        self.caller = caller
        self._send = send
        # No deque: even an empty one takes more than all the rest of this.
        self._unsent: list[list[ServerFrame]] = []
        self._count = 0
        self._writer: asyncio.Task[None] | None = None
        self._code: int | None = None
        self._reason = ""
        self._reader = asyncio.current_task()
        self.status: Status | None = None
        """What the agent last said of itself, as far as it is in the database."""
        self.ended = False

    def say(self, frames: list[ServerFrame]) -> bool:
        """Send frames, in as many messages as they need."""
        if self._code is not None:
            return False
        if self._count + len(frames) > MAX_UNSENT_FRAMES:
            log.warning("Agent %s does not read what it is sent; its connection is ended.", self.agent_name)
            self._give_up()
            return False
        for start in range(0, len(frames), MAX_FRAMES):
            self._unsent.append(frames[start : start + MAX_FRAMES])
        self._count += len(frames)
        self._write_on()
        return True

    def end(self, ending: Ending, frames: list[ServerFrame]) -> None:
        """Send frames, then close."""
        if frames:
            self.say(frames)
        self.close(_CODES[ending], ending.value)

    def close(self, code: int, reason: str) -> None:
        """Close when all is sent."""
        if self._code is None:
            self._code, self._reason = code, reason
            self._write_on()

    def lost(self) -> None:
        """Note that the other side is gone."""
        self._unsent.clear()
        self._code, self.ended = self._code or _GONE, True

    @property
    def closing(self) -> bool:
        """Whether nothing more is to be heard or said."""
        return self._code is not None

    async def drained(self) -> None:
        """Wait until what was said is sent, or cannot be."""
        if self._writer is not None:
            with contextlib.suppress(Exception):
                await self._writer

    def _write_on(self) -> None:
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._unsent:
                frames = self._unsent.pop(0)
                self._count -= len(frames)
                text = encode_batch(list(frames), session_id=self.session_id or None).decode()
                async with asyncio.timeout(SEND_SECONDS):
                    await self._send({"type": "websocket.send", "text": text})
            if self._code is not None and not self.ended:
                self.ended = True
                async with asyncio.timeout(SEND_SECONDS):
                    await self._send({"type": "websocket.close", "code": self._code, "reason": self._reason})
        except TimeoutError:
            log.warning("Agent %s reads too slowly; its connection is ended.", self.agent_name)
            self._give_up()
        except (OSError, RuntimeError):
            # The connection is gone. Whoever reads from it learns that too.
            self._give_up()

    def _give_up(self) -> None:
        self.lost()
        if self._reader is not None and not self._reader.done():
            self._reader.cancel(msg=_GIVEN_UP)


_GIVEN_UP = "the agent does not read"


class Channel:
    """The endpoint of the WebSocket carrier, as an ASGI app."""

    def __init__(
        self, service: Service, hub: Hub, threads: Executor, *, heartbeat_seconds: float, allowances: Allowances
    ) -> None:
        self._service = service
        self._hub = hub
        self._threads = threads
        self._together = Together(service, threads)
        self._allowances = allowances
        self._silence_seconds = heartbeat_seconds + SILENCE_SECONDS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection until either side ends it."""
        caller: Caller = scope[SCOPE_KEY]
        message = await receive()
        if message["type"] != "websocket.connect":
            return
        await send({"type": "websocket.accept"})
        # They would stay as long as the connection, and a proof is among them.
        scope["headers"] = []
        connection = Connection(caller, send)
        in_vain = False
        try:
            in_vain = await self._serve(connection, receive)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if error.args != (_GIVEN_UP,) or task is None:
                raise
            task.uncancel()
        except _Abuse as error:
            log.warning("The connection of agent %s is ended: %s.", caller.agent_name, error)
            connection.close(error.code, str(error))
        except DBAPIError as error:
            kind = type(error.orig).__name__
            log.warning("The connection of agent %s is ended: the database failed (%s).", caller.agent_name, kind)
            connection.close(_TRY_LATER, "the database is busy or cannot be reached")
        except Exception:
            log.exception("The connection of agent %s is ended.", caller.agent_name)
            connection.close(1011, "internal error: see the log of the api-server")
        finally:
            self._hub.hang_up(connection)
        await connection.drained()
        if in_vain:
            # Somebody who leaves in the middle of the handshake would be logged by uvicorn as an error of ours. What it
            # raises here, because nobody is there any more, it takes for what it is.
            await send({"type": "websocket.close", "code": _GONE, "reason": ""})

    async def _serve(self, connection: Connection, receive: Receive) -> bool:
        """Return whether the other side has left before it said anything."""
        patience, heard = HELLO_SECONDS, False
        while not connection.closing:
            try:
                async with asyncio.timeout(patience):
                    message = await receive()
            except TimeoutError:
                connection.close(_GONE, f"nothing was heard for {patience:g} s")
                return False
            if message["type"] == "websocket.disconnect":
                connection.lost()
                return not heard
            if self._allowances.spend(connection.agent_name) > 0:
                raise _Abuse(_POLICY, "too many messages")
            batch = _decode(message)
            if not connection.closing:
                await self._answer(connection, batch)
            patience, heard = self._silence_seconds, True
            # Most of the time a connection waits, and what it said last is not to wait with it.
            del message, batch
        return False

    async def _answer(self, connection: Connection, batch: Batch) -> None:
        batch.session_id = connection.session_id or None
        if batch.session_id is not None:
            self._hub.note_sign(connection.agent_name, batch.session_id)
        if self._service.hears(connection.caller, batch, connection.status) is not None:
            self._hub.note_alive()
            return
        if self._service.may_join(batch):
            answer = await self._together.answer(connection.caller, batch, connection.status)
        else:
            handle = functools.partial(self._service.on_channel, connection.caller, batch, connection.status)
            answer = await answered(self._threads, self._hub, connection.agent_name, handle)
        connection.status = answer.status or connection.status
        closes = any(isinstance(frame, Close) for frame in answer.frames)
        if answer.opened and answer.session_id is not None and answer.room is not None:
            connection.session_id, connection.room = answer.session_id, answer.room
            connection.say(answer.frames + answer.later)
            self._hub.note_session(connection.agent_name, answer.session_id, [])
            self._hub.join(connection)
        elif closes:
            connection.end(Ending.CLOSED, answer.frames)
        elif answer.frames or answer.later:
            connection.say(answer.frames + answer.later)
        self._hub.note_answer(connection.agent_name, answer)
        if any(frame.get("type") == "goodbye" for frame in batch.frames):
            connection.close(1000, "goodbye")


def _decode(message: Any) -> Batch:
    text: str | None = message.get("text")
    # A text of so many characters has at least as many bytes, so nothing large is encoded in vain.
    if text is None or len(text) > MAX_BATCH_BYTES:
        raise _Abuse(_TOO_BIG, f"a message must be text of at most {MAX_BATCH_BYTES} bytes")
    data = text.encode()
    if len(data) > MAX_BATCH_BYTES:
        raise _Abuse(_TOO_BIG, f"a message must be text of at most {MAX_BATCH_BYTES} bytes")
    try:
        return decode_batch(data)
    except FrameError as error:
        raise _Abuse(_POLICY, str(error)[:100]) from None
