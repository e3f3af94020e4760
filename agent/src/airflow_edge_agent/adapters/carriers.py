"""The way to the server that is best at the moment: WebSocket or HTTP exchange.

Each carrier's module, with its library, is imported when it is used for the first time.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import structlog

from airflow_edge_agent.adapters.credential import Prover
from airflow_edge_agent.adapters.network import Network
from airflow_edge_agent.core.carrier import Carrier, CarrierChoice, CarrierPolicy
from airflow_edge_agent.ports import (
    CarrierUnsupported,
    Link,
    Presence,
    RelayCall,
    RelayReply,
    ServerLeft,
    TransportError,
)
from airflow_edge_agent.protocol.frames import AgentFrame, Hello, ServerFrame, Welcome

if TYPE_CHECKING:
    from airflow_edge_agent.adapters.execution import ExecutionClient
    from airflow_edge_agent.adapters.http import HttpTransport
    from airflow_edge_agent.adapters.websocket import WebSocketTransport

log = structlog.get_logger()


class CarrierTransport:
    """Prefers the WebSocket, falls back to the HTTP exchange, and climbs back."""

    def __init__(self, server_url: str, prover: Prover, network: Network, policy: CarrierPolicy) -> None:
        """Prepare; nothing is sent yet.

        :raises TransportError: something of ``network`` cannot be used.
        """
        network.check(server_url)
        self.choice = CarrierChoice(policy)
        self._server_url = server_url
        self.prover = prover
        self._network = network
        self._websocket_transport: WebSocketTransport | None = None
        self._http_transport: HttpTransport | None = None
        self._execution_client: ExecutionClient | None = None

    async def connect(self, hello: Hello, presence: Presence) -> Link:
        """Say hello over the carrier that is chosen now, or over the other one if that does not get through.

        :raises TransportError: no server there.
        """
        if self.choice.choose(_now()) is Carrier.HTTP:
            return await self._http().connect(hello, presence)
        try:
            link = await self._websocket().connect(hello, presence)
        except CarrierUnsupported as error:
            if self.choice.policy != "auto":
                raise
            # Only if HTTP gets through it is the WebSocket's fault.
            fallback = await self._http().connect(hello, presence)
            self.choice.impossible(_now(), _chance())
            log.warning("no WebSocket, uses the HTTP exchange", reason=str(error), again_in_seconds=self._until_climb())
            return fallback
        return _WatchedLink(link, self)

    def relay(self, job_id: str, fence: int, call: RelayCall) -> AbstractAsyncContextManager[RelayReply]:
        """Pass a job's call on to the Execution API, over connections that all jobs share."""
        if self._execution_client is None:
            from airflow_edge_agent.adapters.execution import ExecutionClient  # noqa: PLC0415 -- see above

            self._execution_client = ExecutionClient(self._server_url, self.prover, self._network)
        return self._execution_client.relay(job_id, fence, call)

    async def climb(self) -> None:
        """Return once the WebSocket is out of favour no longer: then it is worth connecting again."""
        while (wait := self._until_climb()) is not None:
            await asyncio.sleep(wait)
            try:
                await self._websocket().probe()
            except TransportError as error:
                self.choice.impossible(_now(), _chance())
                log.debug("still no WebSocket", reason=str(error), again_in_seconds=self._until_climb())
            else:
                return
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Close all connections."""
        if self._http_transport is not None:
            await self._http_transport.close()
        if self._execution_client is not None:
            await self._execution_client.close()

    def opened(self) -> None:
        """Note that the server has welcomed us over a WebSocket."""
        self.choice.opened()

    def broke(self, opened_at: float, error: TransportError) -> None:
        """Note that a WebSocket broke."""
        before = self.choice.climb_at
        self.choice.broke(opened_at, _now(), _chance())
        if self.choice.climb_at != before:
            log.warning(
                "WebSockets keep breaking, uses the HTTP exchange",
                reason=str(error),
                again_in_seconds=self._until_climb(),
            )

    def _until_climb(self) -> float | None:
        climb_at = self.choice.climb_at
        return None if climb_at is None else round(max(0.0, climb_at - _now()), 3)

    def _websocket(self) -> WebSocketTransport:
        if self._websocket_transport is None:
            from airflow_edge_agent.adapters.websocket import WebSocketTransport  # noqa: PLC0415 -- see above

            self._websocket_transport = WebSocketTransport(self._server_url, self.prover, self._network)
        return self._websocket_transport

    def _http(self) -> HttpTransport:
        if self._http_transport is None:
            from airflow_edge_agent.adapters.http import HttpTransport  # noqa: PLC0415 -- see above

            self._http_transport = HttpTransport(self._server_url, self.prover, self._network)
        return self._http_transport


class _WatchedLink:
    """Tells the transport how a WebSocket fares."""

    def __init__(self, link: Link, transport: CarrierTransport) -> None:
        self.carrier = link.carrier
        self._link = link
        self._transport = transport
        self._opened_at: float | None = None

    async def send(self, frames: list[AgentFrame]) -> None:
        try:
            await self._link.send(frames)
        except TransportError as error:
            self._broke(error)
            raise

    async def receive(self) -> list[ServerFrame]:
        try:
            frames = await self._link.receive()
        except TransportError as error:
            self._broke(error)
            raise
        if any(isinstance(frame, Welcome) for frame in frames):
            self._opened_at = _now()
            self._transport.opened()
        return frames

    async def close(self) -> None:
        await self._link.close()

    def _broke(self, error: TransportError) -> None:
        # Once for each link, and not when the server left in good order.
        if self._opened_at is not None and not isinstance(error, ServerLeft):
            self._transport.broke(self._opened_at, error)
        self._opened_at = None


def _now() -> float:
    return asyncio.get_running_loop().time()


def _chance() -> float:
    return random.random()  # noqa: S311 -- spreads load, guards nothing
