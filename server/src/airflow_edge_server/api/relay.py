"""Hands calls that agents relay for their jobs to Airflow's Execution API, in this process.

The agent shows its own credential. For each call the server makes the token that the Execution API wants: none of them
leaves this process.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from airflow_edge_agent.protocol.relay import (
    FENCE_HEADER,
    JOBS_PATH,
    MAX_RELAYED_BYTES,
    RELAYED_HEADER,
    REQUEST_HEADERS,
    RESPONSE_HEADERS,
)
from airflow_edge_server import plainly
from airflow_edge_server.api.auth import SCOPE_KEY, Caller, unavailable
from airflow_edge_server.domain.execution import Call, Denied, judge
from airflow_edge_server.store.jobs import held_job
from airflow_edge_server.store.transaction import Sessions, read

log = plainly.logger(__name__)

Sign = Callable[[str, str], str]
"""Makes a token from subject and scope."""

TOKEN_SECONDS = 120
"""How long a token is good that is used at once. Shorter, and Airflow would renew it with each call."""

CACHE_SECONDS = 1.0
"""How long a job counts as the agent's without another look."""

BODY_SECONDS = 60.0
"""Longest time without a piece of a request's body."""

_MOST_CACHED = 5_000
_PATH = re.compile(re.escape(JOBS_PATH.encode()) + rb"/([0-9a-f-]{36})/execution/(.*)", re.DOTALL)
_FENCE = re.compile(rb"[0-9]{1,10}")
_FROM_AIRFLOW = (RELAYED_HEADER.encode(), b"airflow")
_FROM_US = {RELAYED_HEADER: "refused"}


@dataclass(frozen=True, slots=True)
class _Held:
    kind: str
    subject: str


class Relay:
    """ASGI app below :data:`JOBS_PATH`; behind the gate that knows the caller.

    :param execution: Airflow's Execution API.
    :param sign: makes its tokens.
    """

    def __init__(self, sessions: Sessions, threads: Executor, *, execution: ASGIApp, sign: Sign) -> None:
        self._sessions = sessions
        self._threads = threads
        self._execution = execution
        self._sign = sign
        self._known: dict[tuple[str, str, int], tuple[float, _Held]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one call on, or answer it."""
        if scope["type"] != "http":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        caller: Caller = scope[SCOPE_KEY]
        try:
            job_id, raw_path = _split(scope)
            headers = dict(scope["headers"])
            held = await self._held(caller.agent_name, job_id, _fence(headers))
            _check_length(headers)
            call = judge(scope["method"], raw_path, kind=held.kind, subject=held.subject)
            token = self._sign(held.subject, call.scope)
        except Denied as denial:
            await _refused(denial)(scope, receive, send)
        except DBAPIError as error:
            log.warning("A relayed call could not be checked: the database failed (%s).", type(error.orig).__name__)
            await unavailable("the database is busy or cannot be reached")(scope, receive, send)
        else:
            inner = _inner_scope(scope, call, token)
            await self._execution(inner, _patient(receive), _Filter(send))

    async def _held(self, agent_name: str, job_id: str, fence: int) -> _Held:
        key = (agent_name, job_id, fence)
        now = time.monotonic()
        known = self._known.get(key)
        if known is not None and known[0] > now:
            return known[1]
        self._known.pop(key, None)
        row = await asyncio.get_running_loop().run_in_executor(
            self._threads, read, self._sessions, lambda session: held_job(session, agent_name, job_id, fence)
        )
        if row is None:
            raise Denied(404, "this agent does not hold such a job, or not under that fence")
        if len(self._known) >= _MOST_CACHED:
            self._known.clear()
        held = _Held(*row)
        self._known[key] = (now + CACHE_SECONDS, held)
        return held


def _split(scope: Scope) -> tuple[str, bytes]:
    # As it came: a key may hold an encoded slash.
    match = _PATH.search(scope.get("raw_path") or b"")
    if match is None:
        raise Denied(404, "no such path")
    return match[1].decode("ascii"), match[2]


def _fence(headers: dict[bytes, bytes]) -> int:
    text = headers.get(FENCE_HEADER.encode(), b"")
    if not _FENCE.fullmatch(text):
        raise Denied(400, f"the header {FENCE_HEADER} holds no fence")
    return int(text)


def _check_length(headers: dict[bytes, bytes]) -> None:
    # Only where the length is known beforehand does the server see to it that no more comes.
    if b"transfer-encoding" in headers:
        raise Denied(411, "a relayed body needs a Content-Length")
    if int(headers.get(b"content-length", b"0")) > MAX_RELAYED_BYTES:
        raise Denied(413, f"a relayed body has at most {MAX_RELAYED_BYTES} bytes")


def _inner_scope(scope: Scope, call: Call, token: str) -> Scope:
    headers = [(name, value) for name, value in scope["headers"] if name in REQUEST_HEADERS]
    headers.append((b"host", b"localhost"))
    headers.append((b"authorization", b"Bearer " + token.encode("ascii")))
    kept = ("type", "asgi", "http_version", "method", "scheme", "query_string", "client", "server")
    return {name: scope[name] for name in kept if name in scope} | {
        "path": call.path,
        "raw_path": call.raw_path,
        "root_path": "",
        "headers": headers,
        "state": {},
        "extensions": {},
    }


def _patient(receive: Receive) -> Receive:
    """Bound the time that a body may take; after it, nobody waits for the end of the connection any more."""
    whole = False

    async def hear() -> Message:
        nonlocal whole
        if whole:
            return await receive()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                message = await receive()
        except TimeoutError:
            return {"type": "http.disconnect"}
        whole = not message.get("more_body", False)
        return message

    return hear


class _Filter:
    """Lets through of an answer what is meant for the job: no token among it."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [(name, value) for name, value in message.get("headers", ()) if name.lower() in RESPONSE_HEADERS]
            message = {**message, "headers": [*headers, _FROM_AIRFLOW]}
        await self._send(message)


def _refused(denial: Denied) -> Response:
    detail = {"detail": {"reason": "not_relayed", "message": str(denial)}}
    return JSONResponse(detail, status_code=denial.status, headers=_FROM_US)
