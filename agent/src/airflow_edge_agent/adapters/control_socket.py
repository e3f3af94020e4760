"""The unix socket on which edgectl speaks to the daemon: one JSON object per line, and the kernel says who asks."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import os
import pwd
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import structlog

from airflow_edge_agent.adapters.local_socket import LocalSocket, peer_of
from airflow_edge_agent.ports import Caller, ControlRefused

log = structlog.get_logger()

MAX_LINE_BYTES = 64 * 1024
MAX_CLIENTS = 32
REQUEST_SECONDS = 30.0
"""How long a client may take for a request, and to read its answer."""

Handler = Callable[[dict[str, Any], Caller], AsyncIterator[dict[str, Any]]]
"""Answers a request with one or several objects."""


class ControlListener:
    """Listens, finds out who calls, and passes requests on.

    Everybody may connect, so that everybody gets an answer; what a caller may do, the groups decide.
    """

    def __init__(self, path: Path, *, read_group: str | None, operator_group: str, handler: Handler) -> None:
        self._path = path
        self._read_group = read_group
        self._operator_group = operator_group
        self._handler = handler
        self._socket = LocalSocket(path, purpose="control socket", limit_bytes=MAX_LINE_BYTES)

    async def open(self) -> None:
        """Begin to listen.

        :raises StoreError: the socket cannot be made there.
        """
        await self._socket.open(self._connected)

    async def close(self) -> None:
        """Stop listening and end all conversations."""
        if await self._socket.close():
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        work = self._converse(reader, writer) if self._socket.clients < MAX_CLIENTS else self._turn_away(writer)
        self._socket.converse(work, "control client")

    async def _turn_away(self, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            await _send(writer, _error("busy", f"the daemon has {MAX_CLIENTS} clients already; try again later"))
        writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            caller = self._caller(writer)
            while line := await asyncio.wait_for(reader.readline(), REQUEST_SECONDS):
                await self._answer(line, caller, reader, writer)
        except ValueError:
            with contextlib.suppress(OSError, TimeoutError):
                await _send(writer, _error("bad_request", f"a request has at most {MAX_LINE_BYTES} bytes"))
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the client has left, or fell asleep
        finally:
            writer.close()

    async def _answer(
        self, line: bytes, caller: Caller, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            request = json.loads(line)
            if not isinstance(request, dict) or not isinstance(request.get("do"), str):
                raise TypeError  # noqa: TRY301 -- as wrong as what is no JSON
        except (ValueError, TypeError, RecursionError):
            await _send(writer, _error("bad_request", 'a request is a JSON object like {"do": "status"}, on one line'))
            return
        left = asyncio.create_task(_gone(reader), name="control client leaves")
        try:
            answers = self._handler(request, caller)
            async for answer in _until(left, answers):
                await _send(writer, answer)
        except ControlRefused as refusal:
            await _send(writer, _error(refusal.code, str(refusal)))
        except (OSError, TimeoutError):
            raise
        except Exception as error:  # noqa: BLE001 -- a fault in one answer must not end the daemon
            log.error("a control request failed", request=str(request.get("do"))[:50], error=repr(error))
            await _send(writer, _error("internal", "the daemon could not answer; its log says why"))
        finally:
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)

    def _caller(self, writer: asyncio.StreamWriter) -> Caller:
        _, uid, gid = peer_of(writer)
        user, groups = f"uid {uid}", {gid}
        with contextlib.suppress(KeyError, OSError):
            user = pwd.getpwuid(uid).pw_name
            # As the system's tables have it: membership counts without a new login.
            groups.update(os.getgrouplist(user, gid))
        ours = uid in (0, os.geteuid())
        change = ours or _gid(self._operator_group) in groups
        read = change or _gid(self._read_group) in groups
        return Caller(uid, user, may_read=read, may_change=change, trusted=ours)


def _gid(name: str | None) -> int | None:
    try:
        return None if name is None else grp.getgrnam(name).gr_gid
    except KeyError:
        return None


async def _gone(reader: asyncio.StreamReader) -> None:
    """Return when the client has closed its end. It says nothing more while it is being answered."""
    while not reader.at_eof():  # noqa: ASYNC110 -- a stream tells nobody of its end but those who read
        await asyncio.sleep(0.2)


async def _until(left: asyncio.Task[None], answers: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    iterator = aiter(answers)
    while True:
        step = asyncio.ensure_future(anext(iterator, None))
        try:
            await asyncio.wait({step, left}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not step.done():
                step.cancel()
                await asyncio.gather(step, return_exceptions=True)
        answer = None if step.cancelled() else step.result()
        if answer is None:
            return
        yield answer


def _error(code: str, message: str) -> dict[str, Any]:
    return {"ok": False, "error": {"code": code, "message": message}}


async def _send(writer: asyncio.StreamWriter, answer: dict[str, Any]) -> None:
    writer.write(json.dumps(answer).encode() + b"\n")
    await asyncio.wait_for(writer.drain(), REQUEST_SECONDS)
