"""The HTTP carrier: a batch of frames in, a batch of frames out, held back while there is nothing to say."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any

from sqlalchemy.exc import DBAPIError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from airflow_edge_agent.protocol.codec import FrameError, decode_batch, encode_batch
from airflow_edge_agent.protocol.frames import MAX_BATCH_BYTES, Offer, ServerFrame
from airflow_edge_server import plainly
from airflow_edge_server.api.auth import SCOPE_KEY, Caller, unauthorized, unavailable
from airflow_edge_server.api.hub import Hub
from airflow_edge_server.api.lines import Poll
from airflow_edge_server.api.rivals import answered
from airflow_edge_server.api.service import Answer, Service

log = plainly.logger(__name__)

BODY_SECONDS = 20.0
"""Longest time in which the body of a request must have come."""


class Exchange:
    """The one endpoint of the HTTP carrier."""

    def __init__(
        self,
        service: Service,
        hub: Hub,
        threads: Executor,
        *,
        longest_wait_seconds: float,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        self._service = service
        self._hub = hub
        self._threads = threads
        self._longest_wait_seconds = longest_wait_seconds
        self._body_seconds = body_seconds

    async def handle(self, request: Request) -> Response:
        """Answer one exchange."""
        caller: Caller = request.scope[SCOPE_KEY]
        try:
            async with asyncio.timeout(self._body_seconds):
                body = await _read_body(request)
            batch = decode_batch(body)
        except TimeoutError:
            return _error(408, f"the body did not come within {self._body_seconds:g} s")
        except _TooLargeError:
            return _error(413, f"a batch must not be larger than {MAX_BATCH_BYTES} bytes")
        except FrameError as error:
            return _error(400, str(error))
        except ClientDisconnect:
            return Response(status_code=400)
        if batch.session_id is not None:
            self._hub.note_sign(caller.agent_name, batch.session_id)
        handle = functools.partial(self._service.handle, caller, batch)
        try:
            answer = await answered(self._threads, self._hub, caller.agent_name, handle)
        except DBAPIError as error:
            log.warning("A batch of agent %s failed: the database failed (%s).", caller.agent_name, _kind(error))
            return unavailable("the database is busy or cannot be reached")
        except Exception:
            log.exception("A batch of agent %s failed.", caller.agent_name)
            return _error(500, "internal error: see the log of the api-server")
        self._spread(caller, answer)
        if batch.wait_seconds > 0 and not answer.frames and answer.room is not None and answer.session_id is not None:
            poll = Poll(caller.agent_name, answer.session_id, caller.credential_id, answer.room)
            self._hub.join(poll)
            wait = min(batch.wait_seconds, self._longest_wait_seconds)
            frames = await self._wait(request, poll, wait)
            if frames is None:
                return unauthorized() if poll.revoked else Response(status_code=400)
            answer.frames = frames
        return _batch(answer.session_id, answer.frames)

    def _spread(self, caller: Caller, answer: Answer) -> None:
        if answer.opened and answer.session_id is not None:
            self._hub.note_session(caller.agent_name, answer.session_id, answer.later)
        self._hub.note_answer(caller.agent_name, answer)

    async def _wait(self, request: Request, poll: Poll, seconds: float) -> list[ServerFrame] | None:
        """Wait until there is something to say or the time is up; ``None``: nobody is there to hear an answer."""
        gone = asyncio.create_task(_disconnected(request.receive))
        ends: list[asyncio.Future[Any]] = [poll.answer, gone]
        try:
            await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            heard = not gone.done()
            gone.cancel()
            frames = self._hub.leave(poll)
        if not heard:
            self._hub.miss(poll)
            await self._hub.return_offers([frame for frame in frames if isinstance(frame, Offer)])
        return frames if heard and not poll.revoked else None


async def _disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _TooLargeError(Exception):
    """The body is larger than a batch may be."""


async def _read_body(request: Request) -> bytes:
    try:
        announced = int(request.headers.get("content-length", "0"))
    except ValueError:
        announced = 0
    if announced > MAX_BATCH_BYTES:
        raise _TooLargeError
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BATCH_BYTES:
            raise _TooLargeError
    return bytes(body)


def _batch(session_id: str | None, frames: list[ServerFrame]) -> Response:
    return Response(encode_batch(list(frames), session_id=session_id), media_type="application/json")


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status_code=status)


def _kind(error: DBAPIError) -> str:
    return type(error.orig).__name__
