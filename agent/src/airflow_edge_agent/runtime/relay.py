"""Relays what jobs ask of Airflow's Execution API: knows who asks, and bridges a server that is away for a while."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import structlog

from airflow_edge_agent.core.events import JobEnding, JobHeard
from airflow_edge_agent.core.jobs import AgentJob, Phase
from airflow_edge_agent.ports import FINAL_TARGET, ExecutionApi, NotReached, RelayCall, RelayReply, TransportError
from airflow_edge_agent.runtime.finals import FinalStates, accepted, is_long, whole
from airflow_edge_agent.runtime.pump import Pump
from airflow_edge_agent.runtime.rendered import RenderedFields

log = structlog.get_logger()

EXECUTION_URL = "http://edge-agent/execution/"
"""What a job's client takes for the server; no name is ever looked up for it."""

PATIENCE_SECONDS = 240.0
"""How long a job is not told that the server is away, where the server names no disconnect lease. Airflow itself gives
up a task without heartbeats after ``[scheduler] task_instance_heartbeat_timeout``, 300 s."""

RETRY_SECONDS = 0.5

_HEARD_SECONDS = 1.0
"""That the server answers is noted this often."""

_LONGEST_WAIT_SECONDS = 10.0
_SAY_SECONDS = 60.0

_SECRET = re.compile(rb"[Bb]earer ([0-9a-f-]{36})\.([0-9a-f]{64})")
_BELOW = b"/execution/"
_HEARTBEAT = re.compile(rb"task-instances/[0-9a-fA-F-]{36}/heartbeat(\?|$)")
_START = re.compile(rb"task-instances/[0-9a-fA-F-]{36}/run(\?|$)")
_XCOM = re.compile(rb"xcoms/[^/?]+/[^/?]+/[^/?]+/[^/?]+(\?.*)?")
_CREATED = 201
_CONFLICT = 409
_MOST_REPEATS = 3
"""How often the push of an XCom is made anew that has met one of the same key: it takes the place of what is there."""
_RETURN_VALUE = re.compile(rb"xcoms/[^/?]+/[^/?]+/[^/?]+/return_value(\?.*)?")
_FAILED = 424
"""What a call is answered that fails at once: a status that the Task SDK takes for an error and does not try again."""

_NOT_KNOWN = "the server has not heard yet which jobs are held here"
_WORKS = (Phase.STARTING, Phase.RUNNING)


class Relay:
    """Answers the calls of this agent's jobs.

    A job shows its secret, which is good for nothing but its own calls on this socket. It is computed from the job's id
    and a key that is on disk, so the next daemon knows it, too.

    :param socket: where jobs find it.
    :param key: of the secrets; random, at least 32 bytes.
    :param finals: takes the states in which tasks end, while the server is away.
    :param rendered: takes what their templates became, at any time.
    :param fail_at_once: whether other calls fail then, instead of waiting.
    """

    def __init__(
        self,
        pump: Pump,
        execution: ExecutionApi,
        socket: Path,
        key: bytes,
        *,
        finals: FinalStates,
        rendered: RenderedFields,
        fail_at_once: bool = False,
    ) -> None:
        self._finals = finals
        self._rendered = rendered
        self._fail_at_once = fail_at_once
        self.socket = socket
        self._pump = pump
        self._execution = execution
        self._key = key
        self._said_at = -_SAY_SECONDS
        self._away = False
        """Whether the last call did not get through."""

    def access(self, job_id: str) -> tuple[str, Path, str]:
        """Return URL, socket and secret for this job."""
        return EXECUTION_URL, self.socket, self.secret(job_id)

    def secret(self, job_id: str) -> str:
        """Return what this job must show."""
        return f"{job_id}.{hmac.new(self._key, job_id.encode('ascii'), hashlib.sha256).hexdigest()}"

    @contextlib.asynccontextmanager
    async def handle(self, call: RelayCall) -> AsyncIterator[RelayReply]:
        """Answer a call."""
        job = self._caller(call)
        if job is None:
            yield RelayReply.plain(401, "no secret of a job that runs here")
            return
        if not call.target.startswith(_BELOW):
            yield RelayReply.plain(404, "there is nothing but the Execution API here")
            return
        passed = RelayCall(call.method, call.target[len(_BELOW) :], call.headers, call.body)
        async with AsyncExitStack() as stack:
            ends = _is_final(passed) or _is_result(passed)
            if ends:
                self._pump.feed(JobEnding(job.job_id, waits=True))
            reply = await self._answer(job, passed, stack)
            # If the task has given the call up meanwhile, it makes it again: its result still waits.
            if ends:
                self._pump.feed(JobEnding(job.job_id, waits=False))
            yield reply

    def _caller(self, call: RelayCall) -> AgentJob | None:
        shown = [value for name, value in call.headers if name == b"authorization"]
        match = _SECRET.fullmatch(shown[0]) if len(shown) == 1 else None
        if match is None:
            return None
        job_id = match[1].decode("ascii")
        if not hmac.compare_digest(f"{job_id}.{match[2].decode('ascii')}", self.secret(job_id)):
            return None
        job = self._pump.core.jobs.get(job_id)
        return job if job is not None and job.phase in _WORKS else None

    async def _answer(self, job: AgentJob, call: RelayCall, stack: AsyncExitStack) -> RelayReply:
        if await self._rendered.take(job, call):
            return RelayReply.plain(_CREATED)
        final = _is_final(call)
        if final and not is_long(call):
            call = await whole(call)
        attempts = 0
        while True:
            if final and job.unsaid:
                return accepted()  # it has been taken, and its task has not heard it
            attempts += 1
            try:
                if final:
                    await self._rendered.deliver(job)
                return await self._attempt(job, call, stack)
            except TransportError as error:
                self._away = True
                wait = min(error.retry_after_seconds, _LONGEST_WAIT_SECONDS)
                patience = job.disconnect_lease_seconds or PATIENCE_SECONDS
                if time.monotonic() >= job.heard_at + patience or job.phase not in _WORKS:
                    return RelayReply.plain(503, str(error))
                self._say(job, error)
                if _HEARTBEAT.match(call.target):
                    return RelayReply.plain(204)
                if final:
                    if await self._finals.keep(job, call):
                        return accepted()
                elif self._fails(call, attempts):
                    return RelayReply.plain(_FAILED, f"the server is away: {error}")
                if not isinstance(call.body, bytes):
                    # It is gone. The Task SDK makes the call again, which is in vain before the server is there.
                    await self._reachable(job, patience)
                    return RelayReply.plain(503, str(error))
            await asyncio.sleep(max(RETRY_SECONDS, wait))

    async def _attempt(self, job: AgentJob, call: RelayCall, stack: AsyncExitStack) -> RelayReply:
        reply = await self._pass_on(job, call, stack)
        if call.method == "POST" and _XCOM.fullmatch(call.target) and isinstance(call.body, bytes):
            # Something on the way may have sent it twice, and of two at once Airflow turns one away.
            for _ in range(_MOST_REPEATS):
                if reply.status != _CONFLICT or reply.refused:
                    break
                await stack.aclose()
                await asyncio.sleep(RETRY_SECONDS)
                reply = await self._pass_on(job, call, stack)
        return reply

    async def _pass_on(self, job: AgentJob, call: RelayCall, stack: AsyncExitStack) -> RelayReply:
        # The fence may change while a call waits: the server may have taken back that it had given the job up.
        async with AsyncExitStack() as attempt:
            reply = await attempt.enter_async_context(self._execution.relay(job.job_id, job.fence, call))
            if self._away:
                self._away = False
                self._pump.reached.set()
            if reply.refused and not self._pump.core.connected:
                raise NotReached(_NOT_KNOWN)  # as good as away
            await stack.enter_async_context(attempt.pop_all())
        if time.monotonic() >= job.heard_at + _HEARD_SECONDS:
            self._pump.feed(JobHeard(job.job_id))
        return reply

    def _fails(self, call: RelayCall, attempts: int) -> bool:
        """Tell whether a call is not to wait for the server. A task that begins waits all the same: nothing is lost."""
        if not self._fail_at_once or _START.match(call.target):
            return False
        # Of a session that is there, one broken connection says little.
        return attempts > 1 or not self._pump.core.connected or not isinstance(call.body, bytes)

    def _say(self, job: AgentJob, error: TransportError) -> None:
        if time.monotonic() >= self._said_at + _SAY_SECONDS:
            self._said_at = time.monotonic()
            log.warning(
                "what a job asks of Airflow does not get through, keeps trying", job=job.job_id, reason=str(error)
            )

    async def _reachable(self, job: AgentJob, patience: float) -> None:
        def waits() -> bool:
            away = not self._pump.core.connected and time.monotonic() < job.heard_at + patience
            return away and job.phase in _WORKS

        while waits():  # noqa: ASYNC110 -- three things may end it
            await asyncio.sleep(RETRY_SECONDS)


def _is_final(call: RelayCall) -> bool:
    return call.method == "PATCH" and FINAL_TARGET.fullmatch(call.target) is not None


def _is_result(call: RelayCall) -> bool:
    return call.method == "POST" and _RETURN_VALUE.fullmatch(call.target) is not None
