"""Answers batches of many agents with one transaction, when many come at once.

What comes alone is answered at once. What comes while others are being answered waits for those, and then is answered
together with all that has come meanwhile: the more there is to do, the less each costs.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from concurrent.futures import Executor
from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError

from airflow_edge_agent.protocol.frames import Batch, Status
from airflow_edge_server import plainly
from airflow_edge_server.api.auth import Caller
from airflow_edge_server.api.service import Answer, Service

log = plainly.logger(__name__)

MOST = 64
"""Most batches in one transaction."""

MOST_BYTES = 1024 * 1024
"""Most bytes of log data, about, in one transaction."""

AT_ONCE = 2
"""So many transactions: one is computed here while the database works on the other."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    caller: Caller
    batch: Batch
    known: Status | None
    size: int
    answer: asyncio.Future[Answer]


class Together:
    """Collects the batches of agents. Belongs to one event loop."""

    def __init__(self, service: Service, threads: Executor) -> None:
        self._service = service
        self._threads = threads
        self._waiting: deque[_Waiting] = deque()
        self._workers: set[asyncio.Task[None]] = set()

    async def answer(self, caller: Caller, batch: Batch, known: Status | None) -> Answer:
        """Answer a batch that may be answered together with others.

        :raises sqlalchemy.exc.DBAPIError: when the database fails.
        """
        # As it came, so not yet known to be a text.
        size = sum(len(data) for frame in batch.frames if isinstance(data := frame.get("data"), str))
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(caller, batch, known, size, answer))
        if len(self._workers) < AT_ONCE:
            worker = asyncio.create_task(self._work(), name="edge-agents batches")
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        return await answer

    async def _work(self) -> None:
        while self._waiting:
            group = self._take()
            work = functools.partial(self._answer, group)
            try:
                results = await asyncio.get_running_loop().run_in_executor(self._threads, work)
            except RuntimeError as error:
                # The threads have ended with the process.
                results = [error] * len(group)
            for waiting, result in zip(group, results, strict=True):
                if waiting.answer.done():
                    continue
                if isinstance(result, Answer):
                    waiting.answer.set_result(result)
                else:
                    waiting.answer.set_exception(result)

    def _take(self) -> list[_Waiting]:
        """Take what comes next, at most one batch of each agent: the next one needs what this one changes."""
        group: list[_Waiting] = []
        names: set[str] = set()
        size = 0
        while self._waiting and len(group) < MOST and (not group or size + self._waiting[0].size <= MOST_BYTES):
            if self._waiting[0].caller.agent_name in names:
                break
            waiting = self._waiting.popleft()
            names.add(waiting.caller.agent_name)
            size += waiting.size
            group.append(waiting)
        return group

    def _answer(self, group: list[_Waiting]) -> list[Answer | Exception]:
        try:
            return [*self._service.on_channels([(one.caller, one.batch, one.known) for one in group])]
        except DBAPIError as error:
            if len(group) == 1:
                return [error]
        except Exception as error:
            if len(group) == 1:
                return [error]
            log.exception("%d batches could not be answered together; each is by itself.", len(group))
        return [self._alone(one) for one in group]

    def _alone(self, one: _Waiting) -> Answer | Exception:
        try:
            return self._service.on_channel(one.caller, one.batch, one.known)
        except Exception as error:  # noqa: BLE001  told to whoever waits for it
            return error
