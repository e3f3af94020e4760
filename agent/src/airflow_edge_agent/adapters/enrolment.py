"""A transport that may be given its server and credential later, or other ones."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

import structlog

from airflow_edge_agent.adapters.carriers import CarrierTransport
from airflow_edge_agent.adapters.credential import Credential
from airflow_edge_agent.adapters.keys import KeyFault
from airflow_edge_agent.ports import Link, NotReached, Presence, RelayCall, RelayReply
from airflow_edge_agent.protocol.frames import Hello, KeyStored, NewKey, Rotate

log = structlog.get_logger()


class Enrolment:
    """Passes on to the transport of the current enrolment."""

    def __init__(self, transport: CarrierTransport | None = None) -> None:
        self._transport = transport
        self._changed = asyncio.Event()

    @property
    def enrolled(self) -> bool:
        """Whether there is a server."""
        return self._transport is not None

    @property
    def credential(self) -> Credential | None:
        """What we show to the server; ``None``: there is none."""
        return None if self._transport is None else self._transport.prover.credential

    def renew(self, frame: Rotate | KeyStored) -> NewKey | None:
        """Take part in the replacement of our credential; return what is to be answered.

        The server takes the present one until the new one is used: whenever this process ends, one of them is good.
        """
        if self._transport is None:
            return None
        prover = self._transport.prover
        try:
            if isinstance(frame, Rotate):
                return prover.new_key()
            if prover.adopt(frame):
                log.info("has a new credential", credential=frame.credential_id, edge_event="credential_renewed")
                # Connected with the old one, the server would go on taking it.
                self._changed.set()
        except (KeyFault, OSError) as error:
            log.error("cannot replace its credential, and keeps the present one", reason=str(error))
        return None

    async def use(self, transport: CarrierTransport) -> None:
        """Use this one from the next connection on; a connection that stands is given up."""
        old, self._transport = self._transport, transport
        self._changed.set()
        if old is not None:
            await old.close()

    async def wait(self) -> None:
        """Return once there is a server."""
        while self._transport is None:
            self._changed.clear()
            await self._changed.wait()

    async def connect(self, hello: Hello, presence: Presence) -> Link:
        """Connect with the current enrolment.

        :raises TransportError: no server there.
        """
        await self.wait()
        assert self._transport is not None
        self._changed.clear()
        return await self._transport.connect(hello, presence)

    def relay(self, job_id: str, fence: int, call: RelayCall) -> AbstractAsyncContextManager[RelayReply]:
        """Pass a job's call on to the Execution API of the current enrolment.

        :raises NotReached: there is no server.
        """
        if self._transport is None:
            raise NotReached("this agent has no server")
        return self._transport.relay(job_id, fence, call)

    async def climb(self) -> None:
        """Return once connecting again gives another or a better link."""
        assert self._transport is not None
        waits = [asyncio.create_task(self._changed.wait()), asyncio.create_task(self._transport.climb())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def close(self) -> None:
        """Close all connections."""
        if self._transport is not None:
            await self._transport.close()
