"""Lets only requests with a valid token reach the agent API."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from airflow_edge_server import plainly
from airflow_edge_server.api.refusals import come_again, refuse
from airflow_edge_server.store.tokens import verify_token
from airflow_edge_server.store.transaction import Sessions, read

log = plainly.logger(__name__)

CACHE_SECONDS = 1.0
"""How long a token counts as valid without another look: a revoked one must be refused within two seconds."""

SCOPE_KEY = "airflow_edge_server.caller"

_MOST_CACHED = 2_000
_HEADER = re.compile(rb"bearer +(eat_([0-9a-f]{16})_[A-Za-z0-9_-]{43}) *", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Caller:
    """The agent to which the token of a request belongs."""

    agent_name: str
    token_id: str


class TokenGate:
    """ASGI middleware in front of all routes.

    Without a valid token every path and method is answered 401 and nothing else, so that nothing can be learnt from
    the answer.

    :param problem: tells why the database cannot be used, if so.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        sessions: Sessions,
        threads: Executor,
        problem: Callable[[], Awaitable[str | None]],
    ) -> None:
        self._app = app
        self._sessions = sessions
        self._threads = threads
        self._problem = problem
        self._known: dict[bytes, tuple[float, Caller]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        response: Response
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        match = _HEADER.fullmatch(values[0]) if len(values) == 1 else None
        if match is None:
            response = unauthorized()
        elif (problem := await self._problem()) is not None:
            response = unavailable(problem)
        else:
            try:
                caller = await self._verify(match[1], match[2].decode("ascii"))
            except DBAPIError as error:
                log.warning("A token could not be checked: the database failed (%s).", type(error.orig).__name__)
                response = unavailable("the database is busy or cannot be reached")
            else:
                if caller is not None:
                    scope[SCOPE_KEY] = caller
                    await self._app(scope, receive, send)
                    return
                response = unauthorized()
        await refuse(scope, receive, send, response)

    async def _verify(self, token: bytes, token_id: str) -> Caller | None:
        # The cache must not be a place from which tokens can be read.
        key = hashlib.sha256(token).digest()
        now = time.monotonic()
        known = self._known.get(key)
        if known is not None and known[0] > now:
            return known[1]
        text = token.decode("ascii")
        loop = asyncio.get_running_loop()
        name = await loop.run_in_executor(
            self._threads, read, self._sessions, lambda session: verify_token(session, text)
        )
        self._known.pop(key, None)
        if name is None:
            return None
        if len(self._known) >= _MOST_CACHED:
            self._known.clear()
        caller = Caller(name, token_id)
        self._known[key] = (now + CACHE_SECONDS, caller)
        return caller


def unauthorized() -> Response:
    """Return the one answer to everything that has no valid token."""
    return Response(status_code=401, headers={"WWW-Authenticate": "Bearer"})


def unavailable(problem: str) -> Response:
    """Return an answer that asks the agent to come again."""
    return come_again(503, problem, 5)
