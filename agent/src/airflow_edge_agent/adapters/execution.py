"""The way to Airflow's Execution API through the agent API: one pool of connections for the calls of all jobs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from urllib.parse import unquote, urlsplit

import httpcore

from airflow_edge_agent.adapters.credential import Prover
from airflow_edge_agent.adapters.faults import (
    broken,
    connect_fault,
    connect_timeout,
    proxy_fault,
    silent,
    status_fault,
    tls_fault,
)
from airflow_edge_agent.adapters.network import Network, proxy_for
from airflow_edge_agent.ports import NotReached, RelayCall, RelayReply, TransportError
from airflow_edge_agent.protocol import API_PREFIX
from airflow_edge_agent.protocol.relay import (
    FENCE_HEADER,
    JOBS_PATH,
    MAX_RELAYED_AT_ONCE,
    MAX_RELAYED_BYTES,
    RELAYED_HEADER,
    REQUEST_HEADERS,
    RESPONSE_HEADERS,
)

_TIMEOUTS = {"connect": 5.0, "read": 10.0, "write": 10.0, "pool": 60.0}
"""Twice what the Task SDK itself would wait. A line that is dead without telling is noticed by it."""

_LONG_TIMEOUTS = _TIMEOUTS | {"read": 60.0, "write": 60.0}
"""For a body that is long enough to take its time at the other end."""

_COME_AGAIN = frozenset({429, 503})
"""The call was not acted upon: too many of them, or nobody there."""

_FENCE = FENCE_HEADER.encode()
_RELAYED = RELAYED_HEADER.encode()
_REFUSED = b"refused"


class ExecutionClient:
    """Calls with the agent's credential. Below the HTTP client: calls come and go as they are, and cost little."""

    def __init__(self, server_url: str, prover: Prover, network: Network) -> None:
        """Prepare a pool of connections; nothing is sent yet.

        :raises TransportError: something of ``network`` cannot be used.
        """
        parts = urlsplit(server_url)
        self._server = f"{server_url}{API_PREFIX}{JOBS_PATH}"
        self._scheme, self._host = parts.scheme.encode(), (parts.hostname or "").encode("idna")
        self._port = parts.port
        self._prefix = f"{parts.path}{API_PREFIX}{JOBS_PATH}".encode()
        host = parts.netloc.encode("idna")
        self._host_header = (b"host", host)
        self._prover = prover
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=network.tls if parts.scheme == "https" else None,
            proxy=_proxy(server_url),
            max_connections=MAX_RELAYED_AT_ONCE,
            max_keepalive_connections=8,
            # The api-server keeps one for a minute or more, some proxies do not; a closed one is noticed.
            keepalive_expiry=60.0,
        )

    @contextlib.asynccontextmanager
    async def relay(self, job_id: str, fence: int, call: RelayCall) -> AsyncIterator[RelayReply]:
        """Pass a call on.

        :raises NotReached: there was no connection; the call was not sent.
        :raises TransportError: no answer of the agent API came.
        """
        proof = self._prover.header().encode("ascii")
        headers = [self._host_header, (b"authorization", proof), (_FENCE, b"%d" % fence)]
        headers += [(name, value) for name, value in call.headers if name in REQUEST_HEADERS]
        url = httpcore.URL(
            scheme=self._scheme,
            host=self._host,
            port=self._port,
            target=b"%b/%b/execution/%b" % (self._prefix, job_id.encode("ascii"), call.target),
        )
        body = call.body or None
        timeouts = _TIMEOUTS if isinstance(call.body, bytes) else _LONG_TIMEOUTS
        try:
            async with self._pool.stream(
                call.method, url, headers=headers, content=body, extensions={"timeout": timeouts}
            ) as response:
                marks = [value for name, value in response.headers if name.lower() == _RELAYED]
                if not marks:
                    raise _stopped(self._server, response, self._prover)
                yield RelayReply(
                    response.status,
                    [(name, value) for name, value in response.headers if name.lower() in RESPONSE_HEADERS],
                    _bounded(response),
                    refused=marks[0] == _REFUSED,
                )
        except (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.ProxyError, httpcore.PoolTimeout) as error:
            raise NotReached(str(_explain(error, self._server))) from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            raise _explain(error, self._server) from None

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.aclose()


def _proxy(server_url: str) -> httpcore.Proxy | None:
    proxy = proxy_for(server_url)
    if proxy is None:
        return None
    address = urlsplit(proxy)
    login = None if address.username is None else (unquote(address.username), unquote(address.password or ""))
    return httpcore.Proxy(proxy, auth=login)


def _stopped(url: str, response: httpcore.Response, prover: Prover) -> TransportError:
    """Say what an answer means that does not come from the far end."""
    said = {name.lower(): value.decode("latin-1") for name, value in response.headers}
    challenge = said.get(b"www-authenticate")
    fault = status_fault(
        url,
        response.status,
        "on the way to the Execution API",
        retry_after=said.get(b"retry-after"),
        challenge=challenge,
    )
    if response.status not in _COME_AGAIN and not prover.was_late(challenge):
        return fault
    later = NotReached(str(fault))
    later.retry_after_seconds = fault.retry_after_seconds
    return later


async def _bounded(response: httpcore.Response) -> AsyncIterator[bytes]:
    count = 0
    async for piece in response.aiter_stream():
        count += len(piece)
        if count > MAX_RELAYED_BYTES:
            raise OSError(f"an answer has at most {MAX_RELAYED_BYTES} bytes")
        yield piece


def _explain(error: Exception, url: str) -> TransportError:
    text = str(error) or type(error).__name__
    if (explained := tls_fault(url, text)) is not None:
        return explained
    match error:
        case httpcore.ProxyError():
            return proxy_fault(url, text)
        case httpcore.ConnectTimeout():
            return connect_timeout(url)
        case httpcore.ConnectError():
            return connect_fault(url, error, text)
        case httpcore.TimeoutException():
            return silent(url)
        case _:
            return broken(url, text)
