"""How much of the server anybody may have: requests, connections, headers, and tries with wrong credentials.

Two layers, around the check of credentials: the outer one knows where a request comes from, the inner one which agent
it is. All counts are those of this process.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from airflow_edge_agent.protocol.relay import JOBS_PATH, MAX_RELAYED_AT_ONCE
from airflow_edge_server import plainly
from airflow_edge_server.api.auth import GONE_KEY, SCOPE_KEY
from airflow_edge_server.api.refusals import come_again, refuse

log = plainly.logger(__name__)

_CREDENTIAL_ID = re.compile(rb"eap_[0-9a-f]{16}_")

MAX_HEADER_BYTES = 32 * 1024
"""Most bytes of path, query and headers of one request."""

BURST_SECONDS = 10.0
"""What an agent may use at once is what it may use in so many seconds."""

CONNECTION_SECONDS = 5.0
"""After how long it is worth trying again where all connections are taken."""

SAY_SECONDS = 60.0
"""The same refusal is logged this often."""

_JOBS = f"{JOBS_PATH}/"
_MOST_KEYS = 10_000
_UNAUTHORIZED = 401


class Allowances:
    """How much each of many may still do: refilled all the time, up to a burst.

    :param rate: what is refilled in a second; 0: without bound.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = max(burst, 1.0)
        self._clock = clock
        # What is left of each, and when that was counted. Who is not in here may do everything.
        self._left: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def spend(self, key: Hashable) -> float:
        """Take one, if it is there: 0. Else return after how many seconds there will be one."""
        if self._rate <= 0:
            return 0.0
        now = self._clock()
        left, at = self._left.get(key, (self._burst, now))
        left = min(left + (now - at) * self._rate, self._burst)
        if left < 1:
            return (1 - left) / self._rate
        self._keep(key, left - 1, now)
        return 0.0

    def give_back(self, key: Hashable) -> None:
        """Undo one that was spent."""
        if key in self._left:
            left, at = self._left[key]
            self._left[key] = (min(left + 1, self._burst), at)

    def _keep(self, key: Hashable, left: float, now: float) -> None:
        self._left[key] = (left, now)
        self._left.move_to_end(key)
        if len(self._left) > _MOST_KEYS:
            # The one that was longest quiet has most back.
            self._left.popitem(last=False)


class _Said:
    """What was logged lately, so that refusing somebody costs no line each time."""

    def __init__(self) -> None:
        self._times = Allowances(1 / SAY_SECONDS, 1)

    def warn(self, text: str, *words: object) -> None:
        if self._times.spend((text, *words)) == 0:
            log.warning(text, *words)


class Doorkeeper:
    """ASGI middleware before the check of credentials.

    Who tries wrong credentials is answered 429 without a look into the database. Behind one address may be many agents,
    good ones too: whose credential was right once from there is let through in spite of that. If somebody else there
    uses its id, that costs a look at a signature, and none into the database.

    :param most_connections: requests and WebSockets that may be open at a time.
    :param wrong_per_minute: wrong credentials that one address may try; twice as many at once. 0: without bound.
    """

    def __init__(self, app: ASGIApp, *, most_connections: int, wrong_per_minute: float) -> None:
        self._app = app
        self._most = most_connections
        self._wrong = Allowances(wrong_per_minute / 60, 2 * wrong_per_minute)
        self._good: OrderedDict[bytes, None] = OrderedDict()
        self._open = 0
        self._said = _Said()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif _header_bytes(scope) > MAX_HEADER_BYTES:
            await refuse(scope, receive, send, _error(431, f"more than {MAX_HEADER_BYTES} bytes of headers"))
        elif self._open >= self._most:
            self._said.warn("All %d connections for agents are taken: see [edge_agent] max_connections.", self._most)
            await refuse(scope, receive, send, come_again(503, "too many connections", CONNECTION_SECONDS))
        else:
            self._open += 1
            try:
                await self._check(scope, receive, send)
            finally:
                self._open -= 1

    async def _check(self, scope: Scope, receive: Receive, send: Send) -> None:
        shown = [value for name, value in scope["headers"] if name == b"authorization"]
        if not shown:
            await self._app(scope, receive, send)
            return
        source = _source(scope)
        key = _whose(shown, source)
        known = key in self._good
        if not known and (wait := self._wrong.spend(source)) > 0:
            self._said.warn("Wrong credentials again and again from %s: not looked at for now.", source)
            await refuse(scope, receive, send, come_again(429, "too many wrong credentials from there", wait))
            return
        settled = False

        def settle(*, refused: bool) -> None:
            # With the first answer: a WebSocket may stay for weeks, and what it was lent must not stay with it.
            nonlocal settled
            if settled:
                return
            settled = True
            if SCOPE_KEY in scope:
                self._remember(key)
            elif GONE_KEY in scope:
                self._good.pop(key, None)
            if not known and (SCOPE_KEY in scope or not refused):
                self._wrong.give_back(source)

        async def watched(message: Message) -> None:
            settle(refused=message.get("status") == _UNAUTHORIZED)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            settle(refused=False)

    def _remember(self, key: bytes) -> None:
        self._good[key] = None
        self._good.move_to_end(key)
        if len(self._good) > _MOST_KEYS:
            self._good.popitem(last=False)


class AgentBounds:
    """ASGI middleware behind the check of credentials.

    What an agent relays for its jobs is counted by itself, so that busy jobs do not keep it from speaking for itself.

    :param allowances: requests, and messages on WebSockets, that each agent may send.
    :param most_connections: requests and WebSockets that one agent may have open at a time.
    """

    def __init__(self, app: ASGIApp, *, allowances: Allowances, most_connections: int) -> None:
        self._app = app
        self._allowances = allowances
        self._most = most_connections
        self._open: dict[Hashable, int] = {}
        self._said = _Said()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if SCOPE_KEY not in scope:
            await self._app(scope, receive, send)
            return
        name = scope[SCOPE_KEY].agent_name
        most, key = self._most, name
        if _JOBS in scope["path"]:
            most, key = MAX_RELAYED_AT_ONCE, (name, _JOBS)
        if self._open.get(key, 0) >= most:
            self._said.warn("Agent %s has %d connections already; no more are taken.", name, most)
            await refuse(scope, receive, send, come_again(429, "too many connections", CONNECTION_SECONDS))
            return
        if (wait := self._allowances.spend(key)) > 0:
            self._said.warn("Agent %s sends too many requests; it is asked to wait.", name)
            await refuse(scope, receive, send, come_again(429, "too many requests", wait))
            return
        self._open[key] = self._open.get(key, 0) + 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]


def _whose(shown: list[bytes], source: str) -> bytes:
    """Return by what to remember who shows this. A proof changes all the time, the id in it does not."""
    header = b"\n".join(shown)
    match = _CREDENTIAL_ID.search(header)
    # What is kept must not be a place from which credentials can be read.
    return hashlib.sha256(source.encode() + b"\n" + (match[0] if match is not None else header)).digest()


def _header_bytes(scope: Scope) -> int:
    path: bytes = scope.get("raw_path") or scope["path"].encode(errors="replace")
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    return len(path) + len(scope["query_string"]) + sum(len(name) + len(value) + 4 for name, value in headers)


def _source(scope: Scope) -> str:
    """Return where a request comes from. Whoever has one IPv6 address has all of its network."""
    host = str((scope.get("client") or ("unknown",))[0])
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host[:100]
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else host  # noqa: PLR2004


def _error(status: int, problem: str) -> Response:
    return JSONResponse({"error": problem}, status_code=status)
