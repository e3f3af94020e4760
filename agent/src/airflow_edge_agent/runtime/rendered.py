"""What tasks' templates became: taken on Airflow's behalf at once, and told to it while the task works.

A task tells it between its start and its first own step, and needs nothing of the answer. It is on disk before the task
is answered, and Airflow has it before it hears in which state the task has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import structlog

from airflow_edge_agent.core.events import LogGrew
from airflow_edge_agent.core.jobs import AgentJob, Phase
from airflow_edge_agent.ports import (
    RENDERED_TARGET,
    ExecutionApi,
    JobStore,
    KeptCall,
    NotReached,
    RelayCall,
    StoreError,
    TransportError,
)
from airflow_edge_agent.runtime.answers import beginning, explain, is_good, kept_headers, may_pass
from airflow_edge_agent.runtime.pump import Pump

log = structlog.get_logger()

MOST_TRIES = 5
"""How often a server that is there may fail to take it. Then it is given up: the task's state waits for it."""

RETRY_SECONDS = 1.0
AWAY_SECONDS = 5.0
"""Between two attempts while the server is away. A new session ends the wait."""

_NOT_KNOWN = "the server has not heard yet which jobs are held here"


class RenderedFields:
    """Keeps them and delivers them."""

    def __init__(self, pump: Pump, execution: ExecutionApi, store: JobStore) -> None:
        self._pump = pump
        self._execution = execution
        self._store = store
        self._waiting: dict[str, KeptCall] = {}
        self._attempts: dict[str, asyncio.Task[None]] = {}
        self._late = asyncio.Event()
        """Set when something could not be delivered at once."""

    def recall(self) -> None:
        """Take up what an earlier run of the daemon has not delivered."""
        for job in list(self._pump.core.jobs.values()):
            if not self._store.has_rendered(job.job_id):
                continue
            call = self._store.rendered(job.job_id)
            if call is None:
                self._settle(job, "what was kept of them cannot be read")
            else:
                self._waiting[job.job_id] = call
                self._late.set()

    async def take(self, job: AgentJob, call: RelayCall) -> bool:
        """Take a call if it tells rendered fields; tell whether it may be answered as if Airflow had taken it."""
        if call.method != "PUT" or not RENDERED_TARGET.fullmatch(call.target) or not isinstance(call.body, bytes):
            return False
        kept = KeptCall(call.target, kept_headers(call), call.body, time.time())
        try:
            await asyncio.to_thread(self._store.keep_rendered, job.job_id, kept)
        except StoreError as error:
            log.error("rendered fields cannot be kept, the task waits for Airflow", job=job.job_id, reason=str(error))
            return False
        # Later ones take the place of those before: so they do in Airflow.
        self._waiting[job.job_id] = kept
        self._attempt(job)
        return True

    async def deliver(self, job: AgentJob) -> None:
        """Return when nothing waits of this job any more.

        :raises TransportError: Airflow could not be told.
        """
        while job.job_id in self._waiting:
            await asyncio.shield(self._attempt(job))

    async def run(self) -> None:
        """Try again what could not be delivered at once, as long as the agent lives."""
        while True:
            await self._late.wait()
            self._late.clear()
            connected = self._pump.core.connected
            with contextlib.suppress(TimeoutError):
                # A new session is a reason to try at once; one that is there already is none.
                waited_for = asyncio.Event() if connected else self._pump.linked
                await asyncio.wait_for(waited_for.wait(), RETRY_SECONDS if connected else AWAY_SECONDS)
            for job_id in list(self._waiting):
                job = self._pump.core.jobs.get(job_id)
                if job is None:
                    del self._waiting[job_id]
                    log.warning("Airflow has not been told what a job's templates became: the job is over", job=job_id)
                else:
                    self._attempt(job)

    def _attempt(self, job: AgentJob) -> asyncio.Task[None]:
        """Return the attempt that is under way, or begin one: all who wait for it hear how it went."""
        attempt = self._attempts.get(job.job_id)
        if attempt is None:
            attempt = self._attempts[job.job_id] = asyncio.create_task(self._tell(job), name="rendered fields")
            attempt.add_done_callback(lambda done: self._attempted(job, done))
        return attempt

    def _attempted(self, job: AgentJob, attempt: asyncio.Task[None]) -> None:
        del self._attempts[job.job_id]
        if attempt.cancelled():
            return
        error = attempt.exception()
        if error is not None and not isinstance(error, TransportError):
            log.error("rendered fields could not be delivered", job=job.job_id, error=repr(error))
        if job.job_id in self._waiting:
            self._late.set()

    async def _tell(self, job: AgentJob) -> None:
        for tries in range(1, MOST_TRIES + 1):
            kept = self._waiting.get(job.job_id)
            if kept is None:
                return
            fence, connected = job.fence, self._pump.core.connected
            call = RelayCall("PUT", kept.target, kept.headers, kept.body)
            async with self._execution.relay(job.job_id, fence, call) as reply:
                text = await beginning(reply.body)
            if not self._pump.core.connected:
                self._pump.reached.set()
            if is_good(reply.status):
                if self._waiting.get(job.job_id) is kept:
                    self._settle(job)
                return
            if reply.refused and (not connected or not self._pump.core.connected or job.fence != fence):
                raise NotReached(_NOT_KNOWN)
            if reply.refused or not may_pass(reply.status) or tries == MOST_TRIES:
                who = "the server" if reply.refused else "Airflow"
                self._settle(job, f"{who} does not take them: {reply.status} {explain(text)[0]}".strip())
                return
            await asyncio.sleep(RETRY_SECONDS)

    def _settle(self, job: AgentJob, fault: str | None = None) -> None:
        self._waiting.pop(job.job_id, None)
        self._store.drop_rendered(job.job_id)
        if fault is None:
            return
        text = f"Airflow has no rendered fields of this try: {fault}"
        log.warning(text, job=job.job_id, task=job.label)
        if job.phase is not Phase.FINISHED:
            self._pump.feed(LogGrew(job.job_id, self._store.append_log(job.job_id, f"edge agent: {text}")))
