"""Keeps the agent connected: hello, receive, send, and back-off when it breaks."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import structlog
from pydantic import JsonValue

from airflow_edge_agent.core.backoff import Backoff
from airflow_edge_agent.core.events import FrameArrived, LinkLost, LinkOpened
from airflow_edge_agent.ports import CredentialRefused, Link, MetricsProbe, ServerLeft, Transport, TransportError
from airflow_edge_agent.protocol.frames import (
    AgentFrame,
    Close,
    Heartbeat,
    Hello,
    KeyStored,
    NewKey,
    Rotate,
    ServerFrame,
    Versions,
    Welcome,
)
from airflow_edge_agent.protocol.versions import runtime_mismatch
from airflow_edge_agent.runtime.pump import Pump

log = structlog.get_logger()

EXIT_CREDENTIAL = 77
REFUSALS_UNTIL_EXIT = 3
"""One 401 may be a server in the middle of a restart."""

SKEW_WARNING_SECONDS = 30.0

QUIET_POLL_SECONDS = 1.0
"""How often to look for a moment at which a reconnect disturbs nobody."""

NAME_PAUSE_SECONDS = 1.0
"""Least time between two hellos while the name is in use; at most twice that."""

REPEAT_SECONDS = 600.0
"""A fault that stays the same is said again this often."""


class _After(Enum):
    """What follows the end of a link."""

    FAILURE = "wait ever longer"
    LEAVE = "wait for a random part of the spread: every other agent lost its link as well"
    CLIMB = "connect at once"
    NAME = "wait a moment: who holds the name may be our own past, and the server finds out whether it lives"


class LinkLoop:
    """The loop that owns the transport."""

    def __init__(
        self,
        pump: Pump,
        transport: Transport,
        probe: MetricsProbe,
        *,
        hello: Callable[[], Hello],
        backoff: Backoff,
        climb: Callable[[], Awaitable[None]] | None = None,
        enrolled: Callable[[], Awaitable[None]] | None = None,
        renew: Callable[[Rotate | KeyStored], NewKey | None] | None = None,
    ) -> None:
        """Put it together.

        :param climb: returns once connecting again would give a better link.
        :param enrolled: returns once there is a server to connect to.
        :param renew: takes part in the replacement of the credential; returns what is to be answered.
        """
        self._pump = pump
        self._transport = transport
        self._probe = probe
        self._hello = hello
        self._backoff = backoff
        self._climb = climb
        self._enrolled = enrolled
        self._renew = renew
        self._refusals = 0
        self._said = ""
        self._said_at = 0.0
        self.mismatch: str | None = None
        """In which way the task runtime is another release's than the server's Airflow."""
        self.welcome: Welcome | None = None
        """The server's last one."""
        self._server_clock: float | None = None
        """What the server's clock showed when ours for intervals showed 0."""
        self.custom: dict[str, JsonValue] = {}
        """What the site's own commands have measured."""
        self.last_contact_at: float | None = None
        """Monotonic time of the server's last answer."""
        self.last_heartbeat_at: float | None = None
        """Monotonic time at which the last sign of life was made."""
        self.carrier: str | None = None
        """What carries the frames now; ``None``: not connected."""
        self.versions: Versions | None = None
        """Told to the server with each heartbeat, once the runtime is known."""

    @property
    def fault(self) -> str | None:
        """Why there is no connection."""
        return self._said or None

    @property
    def skew_seconds(self) -> float | None:
        """How far this machine's clock is ahead of the server's by now; ``None``: there was no welcome yet."""
        if self._server_clock is None:
            return None
        return time.time() - asyncio.get_running_loop().time() - self._server_clock

    @property
    def skewed(self) -> str | None:
        """How this machine's clock differs from the server's, if it is much."""
        skew = self.skew_seconds
        if skew is None or abs(skew) <= SKEW_WARNING_SECONDS:
            return None
        side = "ahead" if skew > 0 else "behind"
        return f"this machine's clock differs from the server's: {abs(skew):.0f} s {side}"

    def runtime_known(self, versions: Versions) -> None:
        """Take note of what the task runtime consists of."""
        self.versions = versions
        self._compare_versions()

    async def run(self) -> None:
        """Connect, stay connected, connect again; until the credential is refused for good."""
        while True:
            wait_for = 0.0
            after = _After.FAILURE
            self._pump.reached.clear()
            if self._enrolled is not None:
                await self._enrolled()
            try:
                after = await self._one_link()
            except CredentialRefused as error:
                self._refusals += 1
                self._lost(str(error))
                if self._refusals >= REFUSALS_UNTIL_EXIT:
                    self._pump.leave(EXIT_CREDENTIAL, str(error), name="credential_refused")
                    await asyncio.Event().wait()
            except TransportError as error:
                if isinstance(error, ServerLeft) and self._pump.core.connected:
                    after = _After.LEAVE
                self._lost(str(error))
                wait_for = error.retry_after_seconds
            if self._pump.exiting.is_set():
                await asyncio.Event().wait()  # goodbye has been said
            chance = random.random()  # noqa: S311 -- spreads load, guards nothing
            match after:
                case _After.CLIMB:
                    pass
                case _After.NAME:
                    await asyncio.sleep(NAME_PAUSE_SECONDS * (1 + chance))
                case _After.LEAVE:
                    await asyncio.sleep(chance * self._pump.core.intervals.reconnect_spread_seconds)
                case _After.FAILURE:
                    await self._back_off(chance, wait_for)

    async def _back_off(self, chance: float, at_least_seconds: float) -> None:
        """Wait before the next try. A job that gets through again shows that there is no need to wait any longer."""
        seconds = self._backoff.next_seconds(chance, at_least_seconds=at_least_seconds)
        if at_least_seconds:
            await asyncio.sleep(seconds)
            return
        rest, reached = (asyncio.ensure_future(wait) for wait in (asyncio.sleep(seconds), self._pump.reached.wait()))
        try:
            await asyncio.wait((rest, reached), return_when=asyncio.FIRST_COMPLETED)
            if not rest.done():
                await asyncio.sleep(chance * self._pump.core.intervals.reconnect_spread_seconds)
        finally:
            rest.cancel()
            reached.cancel()

    def _lost(self, reason: str) -> None:
        if self._pump.core.connected:
            self._pump.feed(LinkLost(reason))
        now = asyncio.get_running_loop().time()
        if reason != self._said or now - self._said_at > REPEAT_SECONDS:
            self._said, self._said_at = reason, now
            log.warning("not connected, keeps trying", reason=reason, edge_event="disconnected")

    async def _one_link(self) -> _After:
        link = await self._transport.connect(self._hello(), self._presence)
        helpers: list[asyncio.Task[None]] = []
        try:
            while True:
                receive = asyncio.ensure_future(link.receive())
                waits: list[asyncio.Future[Any]] = [receive, *helpers]
                try:
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                    for helper in helpers:
                        if helper.done() and not receive.done():
                            helper.result()
                            self._pump.feed(LinkLost("a better connection is possible"))
                            return _After.CLIMB
                    frames = await receive
                finally:
                    receive.cancel()
                opened = self._take(frames, link)
                if opened:
                    helpers.append(asyncio.create_task(self._send_forever(link), name="send"))
                    if self._climb is not None:
                        helpers.append(asyncio.create_task(self._until_climb(self._climb), name="climb"))
                elif not self._pump.core.connected:
                    if not any(isinstance(frame, Close) for frame in frames):
                        raise TransportError(
                            "the server answered the hello with neither a welcome nor a reason; is server_url an "
                            "Airflow with airflow-edge-server?"
                        )
                    if any(isinstance(frame, Close) and frame.code == "name_in_use" for frame in frames):
                        return _After.NAME
                    # The core has said what it thinks of it. All agents may have heard the same.
                    return _After.LEAVE if helpers else _After.FAILURE
        finally:
            self.carrier = None
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            await link.close()
            self._pump.outbox.clear()

    async def _until_climb(self, climb: Callable[[], Awaitable[None]]) -> None:
        await climb()
        while not self._pump.quiet:  # noqa: ASYNC110 -- quiet is the absence of events
            await asyncio.sleep(QUIET_POLL_SECONDS)

    def _take(self, frames: list[ServerFrame], link: Link) -> bool:
        """Feed frames to the core; tell whether the link was opened by one of them."""
        self.last_contact_at = asyncio.get_running_loop().time()
        opened = False
        for frame in frames:
            if isinstance(frame, Welcome):
                opened = True
                self._opened(frame, link)
            elif isinstance(frame, Rotate | KeyStored):
                answer = None if self._renew is None else self._renew(frame)
                if answer is not None:
                    self._pump.outbox.put(answer)
            else:
                self._pump.feed(FrameArrived(frame))
            if isinstance(frame, Close) and self._pump.core.connected:
                self._pump.feed(LinkLost(frame.message))
        return opened

    def _opened(self, welcome: Welcome, link: Link) -> None:
        self._backoff.reset()
        self._refusals = 0
        self._said = ""
        self.welcome = welcome
        self._server_clock = welcome.server_time.timestamp() - asyncio.get_running_loop().time()
        self.carrier = link.carrier
        log.info(
            "connected",
            server=welcome.server_version,
            airflow=welcome.airflow_version,
            carrier=link.carrier,
            edge_event="connected",
        )
        self._compare_versions()
        if self.skewed is not None:
            log.warning(self.skewed)
        self._pump.feed(LinkOpened(welcome))

    def _compare_versions(self) -> None:
        if self.versions is None or self.welcome is None:
            return
        found = self.versions
        mismatch = runtime_mismatch(task_sdk=found.task_sdk, airflow=found.airflow, server=self.welcome.airflow_version)
        if mismatch is not None and mismatch != self.mismatch:
            log.warning(mismatch)
        self.mismatch = mismatch

    async def _send_forever(self, link: Link) -> None:
        while True:
            frames = await self._pump.outbox.take()
            await link.send(frames)
            self._pump.outbox.sent()

    def _presence(self) -> list[AgentFrame]:
        self.last_heartbeat_at = asyncio.get_running_loop().time()
        beat = Heartbeat(
            metrics=self._probe.measure(),
            sent_at=datetime.now(UTC),
            versions=self.versions,
            custom=self.custom or None,
            results_waiting=self._pump.core.results_waiting,
        )
        if not self._pump.core.connected:
            # The welcome has not been taken in yet: the status of now is not that of a moment later, and should it come
            # behind that one, the agent would count as starting, and be offered nothing, until the next sign of life.
            return [beat]
        return [self._pump.core.status(), beat]
