"""Keeps the agent connected: hello, receive, send, and back-off when it breaks."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import structlog

from airflow_edge_agent.core.backoff import Backoff
from airflow_edge_agent.core.events import FrameArrived, LinkLost, LinkOpened
from airflow_edge_agent.ports import CredentialRefused, Link, MetricsProbe, Transport, TransportError
from airflow_edge_agent.protocol.frames import (
    AgentFrame,
    Close,
    Heartbeat,
    Hello,
    ServerFrame,
    Versions,
    Welcome,
)
from airflow_edge_agent.runtime.pump import Pump

log = structlog.get_logger()

EXIT_TOKEN = 77
REFUSALS_UNTIL_EXIT = 3
"""One 401 may be a server in the middle of a restart."""

SKEW_WARNING_SECONDS = 30.0

REPEAT_SECONDS = 600.0
"""A fault that stays the same is said again this often."""


class LinkLoop:
    """The loop that owns the transport."""

    def __init__(
        self, pump: Pump, transport: Transport, probe: MetricsProbe, *, hello: Callable[[], Hello], backoff: Backoff
    ) -> None:
        self._pump = pump
        self._transport = transport
        self._probe = probe
        self._hello = hello
        self._backoff = backoff
        self._refusals = 0
        self._said = ""
        self._said_at = 0.0
        self.last_contact_at: float | None = None
        """Monotonic time of the server's last answer."""
        self.versions: Versions | None = None
        """Told to the server with each heartbeat, once the runtime is known."""

    async def run(self) -> None:
        """Connect, stay connected, connect again; until the token is refused for good."""
        while True:
            wait_for = 0.0
            try:
                await self._one_link()
            except CredentialRefused as error:
                self._refusals += 1
                self._lost(str(error))
                if self._refusals >= REFUSALS_UNTIL_EXIT:
                    self._pump.leave(EXIT_TOKEN, str(error))
                    await asyncio.Event().wait()
            except TransportError as error:
                self._lost(str(error))
                wait_for = error.retry_after_seconds
            if self._pump.exiting.is_set():
                await asyncio.Event().wait()  # goodbye has been said
            chance = random.random()  # noqa: S311 -- spreads load, guards nothing
            await asyncio.sleep(self._backoff.next_seconds(chance, at_least_seconds=wait_for))

    def _lost(self, reason: str) -> None:
        if self._pump.core.connected:
            self._pump.feed(LinkLost(reason))
        now = asyncio.get_running_loop().time()
        if reason != self._said or now - self._said_at > REPEAT_SECONDS:
            self._said, self._said_at = reason, now
            log.warning("not connected, keeps trying", reason=reason)

    async def _one_link(self) -> None:
        link = await self._transport.connect(self._hello(), self._presence)
        sender: asyncio.Task[None] | None = None
        try:
            while True:
                receive = asyncio.ensure_future(link.receive())
                waits: list[asyncio.Future[Any]] = [receive] if sender is None else [receive, sender]
                try:
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                    if sender is not None and sender.done():
                        sender.result()
                    frames = await receive
                finally:
                    receive.cancel()
                opened = self._take(frames)
                if opened:
                    sender = asyncio.create_task(self._send_forever(link), name="send")
                elif not self._pump.core.connected:
                    if not any(isinstance(frame, Close) for frame in frames):
                        raise TransportError(
                            "the server answered the hello with neither a welcome nor a reason; is server_url an "
                            "Airflow with airflow-edge-server?"
                        )
                    return  # closed by the server; the core has said what it thinks of it
        finally:
            if sender is not None:
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)
            await link.close()
            self._pump.outbox.clear()

    def _take(self, frames: list[ServerFrame]) -> bool:
        """Feed frames to the core; tell whether the link was opened by one of them."""
        self.last_contact_at = asyncio.get_running_loop().time()
        opened = False
        for frame in frames:
            if isinstance(frame, Welcome):
                opened = True
                self._opened(frame)
            else:
                self._pump.feed(FrameArrived(frame))
            if isinstance(frame, Close) and self._pump.core.connected:
                self._pump.feed(LinkLost(frame.message))
        return opened

    def _opened(self, welcome: Welcome) -> None:
        self._backoff.reset()
        self._refusals = 0
        self._said = ""
        skew = abs((datetime.now(UTC) - welcome.server_time).total_seconds())
        log.info("connected", server=welcome.server_version, airflow=welcome.airflow_version)
        if skew > SKEW_WARNING_SECONDS:
            log.warning("this machine's clock differs from the server's", seconds=round(skew))
        self._pump.feed(LinkOpened(welcome))

    async def _send_forever(self, link: Link) -> None:
        while True:
            frames = await self._pump.outbox.take()
            await link.send(frames)
            self._pump.outbox.sent()

    def _presence(self) -> list[AgentFrame]:
        beat = Heartbeat(metrics=self._probe.measure(), sent_at=datetime.now(UTC), versions=self.versions)
        if not self._pump.core.connected:
            # The welcome has not been taken in yet: the status of now is not that of a moment later, and should it come
            # behind that one, the agent would count as starting, and be offered nothing, until the next sign of life.
            return [beat]
        return [self._pump.core.status(), beat]
