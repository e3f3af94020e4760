"""Final states that Airflow cannot be told at once: taken on its behalf, kept on disk, delivered in order.

What a task has been answered is never lost: a state is on disk before its task is told that it has been taken, and is
removed only when Airflow has taken it, or never will.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import structlog

from airflow_edge_agent.core.events import FinalKept, FinalSettled
from airflow_edge_agent.core.jobs import AgentJob
from airflow_edge_agent.ports import (
    MAX_FINAL_BYTES,
    ExecutionApi,
    FinalState,
    JobStore,
    RelayCall,
    RelayReply,
    StoreError,
    TransportError,
)
from airflow_edge_agent.runtime.answers import beginning, explain, is_good, kept_headers, may_pass
from airflow_edge_agent.runtime.pump import Pump
from airflow_edge_agent.runtime.rendered import RenderedFields

log = structlog.get_logger()

RETRY_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 5.0
"""Between two attempts while the server is away. A new session ends the wait."""

PATIENCE_SECONDS = 240.0
"""How long a server that is there may fail to take a state, at least; or as long as the job's disconnect lease."""

_GONE = frozenset({404, 409, 410})
"""Answers by which Airflow says that it has decided otherwise about the task."""


class FinalStates:
    """Keeps final states and delivers them.

    :param rendered: what is delivered before them.
    """

    def __init__(self, pump: Pump, execution: ExecutionApi, store: JobStore, rendered: RenderedFields) -> None:
        self._rendered = rendered
        self._pump = pump
        self._execution = execution
        self._store = store
        self._order: dict[str, float] = {}
        self._sizes: dict[str, int] = {}
        self._failing_since: dict[str, float] = {}
        self._keeping = asyncio.Lock()

    async def keep(self, job: AgentJob, call: RelayCall) -> bool:
        """Write down a call that tells a final state; tell whether it may be answered as if Airflow had taken it."""
        if not isinstance(call.body, bytes):
            return False
        async with self._keeping:
            # The first counts; it may be the same again, by a task that has not heard the answer.
            return job.unsaid or await self._keep(job, call, call.body)

    async def _keep(self, job: AgentJob, call: RelayCall, body: bytes) -> bool:
        waiting = sum(self._sizes.values()) + len(body)
        if waiting > self._pump.core.limits.spool_bytes:
            log.error("a final state is not kept: the spool is full", job=job.job_id, task=job.label)
            return False
        final = FinalState(call.target, kept_headers(call), body, time.time())
        try:
            await asyncio.to_thread(self._store.keep_final, job.job_id, final)
        except StoreError as error:
            log.error("a final state cannot be kept, it waits in memory", job=job.job_id, reason=str(error))
            return False
        log.warning(
            "the server is away: its final state is kept and will be delivered",
            job=job.job_id,
            task=job.label,
            state=final.state,
        )
        self._pump.feed(FinalKept(job.job_id))
        return True

    async def run(self) -> None:
        """Deliver, as long as the agent lives."""
        wait = RETRY_SECONDS
        while True:
            await self._pump.unsaid.wait()
            if await self._deliver_all():
                wait = RETRY_SECONDS
                continue
            connected = self._pump.core.connected
            with contextlib.suppress(TimeoutError):
                # A new session is a reason to try at once; one that is there already is none.
                waited_for = asyncio.Event() if connected else self._pump.linked
                await asyncio.wait_for(waited_for.wait(), wait)
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)

    def _waiting(self) -> list[AgentJob]:
        jobs = [job for job in self._pump.core.jobs.values() if job.unsaid]
        for job in jobs:
            if job.job_id not in self._order:
                final = self._store.final(job.job_id)
                self._order[job.job_id] = final.at if final is not None else 0.0
                self._sizes[job.job_id] = len(final.body) if final is not None else 0
        return sorted(jobs, key=lambda job: (self._order[job.job_id], job.job_id))

    async def _deliver_all(self) -> bool:
        """Deliver what waits, the oldest first; tell whether all of it has been settled."""
        settled = True
        for job in self._waiting():
            try:
                settled = await self._deliver(job) and settled
            except TransportError as error:
                if not self._out_of_patience(job):
                    return False
                self._settle(job, "unknown", refusal=f"it could not be told to Airflow: {error}")
        return settled

    async def _deliver(self, job: AgentJob) -> bool:
        """Make one attempt.

        :raises TransportError: no answer of the agent API came.
        """
        final = await asyncio.to_thread(self._store.final, job.job_id)
        if final is None:
            self._settle(job, "unknown", refusal="what was kept of its final state cannot be read")
            return True
        await self._rendered.deliver(job)
        fence, connected = job.fence, self._pump.core.connected
        call = RelayCall("PATCH", final.target, final.headers, final.body)
        async with self._execution.relay(job.job_id, fence, call) as reply:
            text = await beginning(reply.body)
        if not self._pump.core.connected:
            self._pump.reached.set()
        if is_good(reply.status):
            self._settle(job, final.state)
            return True
        reason, previous = explain(text)
        if reply.status in _GONE and not reply.refused and previous == final.state:
            self._settle(job, final.state)  # an earlier attempt, of which no answer came, has had its effect
            return True
        if reply.refused:
            # Before it has heard which jobs are held here, the server may not know better.
            if not connected or not self._pump.core.connected or job.fence != fence:
                return False
        elif may_pass(reply.status) and not self._out_of_patience(job):
            return False
        who = "the server" if reply.refused else "Airflow"
        overruled = reply.refused or reply.status in _GONE
        why = "has decided otherwise meanwhile" if overruled else "does not take it"
        refusal = (
            f"the task ended as '{final.state}' while the server was away, but {who} {why}: {reply.status} {reason}"
        )
        self._settle(job, final.state, refusal=refusal.strip(), overruled=overruled)
        return True

    def _out_of_patience(self, job: AgentJob) -> bool:
        now = time.monotonic()
        if not self._pump.core.connected:
            self._failing_since.pop(job.job_id, None)
            return False
        since = self._failing_since.setdefault(job.job_id, now)
        return now - since >= max(PATIENCE_SECONDS, job.disconnect_lease_seconds)

    def _settle(self, job: AgentJob, state: str, *, refusal: str | None = None, overruled: bool = False) -> None:
        for notes in (self._order, self._sizes, self._failing_since):
            notes.pop(job.job_id, None)
        size = 0 if refusal is None else self._store.append_log(job.job_id, f"edge agent: {refusal}")
        self._pump.feed(FinalSettled(job.job_id, state, size, refusal=refusal, overruled=overruled))


def is_long(call: RelayCall) -> bool:
    """Tell whether a call's body is longer than what is kept of a final state."""
    lengths = [value for name, value in call.headers if name == b"content-length"]
    return bool(lengths) and int(lengths[0]) > MAX_FINAL_BYTES


async def whole(call: RelayCall) -> RelayCall:
    """Read a body that comes in pieces."""
    if isinstance(call.body, bytes):
        return call
    return RelayCall(call.method, call.target, call.headers, b"".join([piece async for piece in call.body]))


def accepted() -> RelayReply:
    """Answer as Airflow does when it has taken a state."""
    return RelayReply.plain(204)
