"""What edgectl may ask of the daemon."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from airflow_edge_agent.core.events import (
    DrainAsked,
    ForgetJob,
    LimitsChanged,
    MaintenanceDecided,
    ResumeAsked,
    StopKind,
)
from airflow_edge_agent.core.jobs import AgentJob, Phase
from airflow_edge_agent.ports import Caller, ControlRefused, JobStore
from airflow_edge_agent.protocol.frames import MAX_LOG_CHUNK_BYTES, Queue
from airflow_edge_agent.runtime.guard import FreezeKind, Progress
from airflow_edge_agent.runtime.pump import Pump
from airflow_edge_agent.runtime.reports import Reporter

FOLLOW_SECONDS = 0.5
LONGEST_MAINTENANCE_SECONDS = 366 * 86_400
SHORTEST_JOB_PREFIX = 4
PIECE_BYTES = MAX_LOG_CHUNK_BYTES // 8
MOST_SAVED_PIECES = 128
"""How much is kept in memory of a log whose file goes away before its reader has seen it: 4 MiB."""


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    on_behalf_of: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@-]{1,64}$")] | None = None
    """Who became root by sudo. Believed of root only."""


class _Look(_Request):
    do: Literal["status", "jobs", "queues", "version", "facts"]


class _Logs(_Request):
    do: Literal["logs"]
    job: Annotated[str, Field(min_length=SHORTEST_JOB_PREFIX, max_length=300)]
    follow: bool = False


class _Maintenance(_Request):
    do: Literal["maintenance"]
    on: bool
    comment: Annotated[str, Field(max_length=2_000)] | None = None
    for_seconds: Annotated[float, Field(gt=0, le=LONGEST_MAINTENANCE_SECONDS)] | None = None


class _Drain(_Request):
    do: Literal["drain"]
    deadline_seconds: Annotated[float, Field(ge=0, le=LONGEST_MAINTENANCE_SECONDS)] | None = None


class _Resume(_Request):
    do: Literal["resume"]


class _Concurrency(_Request):
    do: Literal["concurrency"]
    slots: Annotated[int, Field(ge=1, le=1_000)]


class _SetQueues(_Request):
    do: Literal["set_queues"]
    add: Annotated[list[Queue], Field(max_length=100)] = []
    remove: Annotated[list[Queue], Field(max_length=100)] = []


class _Reload(_Request):
    do: Literal["reload", "enroll"]


class _Stopping(_Request):
    do: Literal["stopping"]
    kind: StopKind


class _Freeze(_Request):
    do: Literal["freeze"]
    loop: str
    how: FreezeKind


AnyRequest = _Look | _Logs | _Maintenance | _Drain | _Resume | _Concurrency | _SetQueues | _Reload | _Stopping | _Freeze
_requests: TypeAdapter[AnyRequest] = TypeAdapter(Annotated[AnyRequest, Field(discriminator="do")])


@dataclass(frozen=True)
class Powers:
    """What the daemon can do beside what the core does."""

    reload: Callable[[], Awaitable[dict[str, Any]]]
    """Read configuration and credential again; say what has come of it."""
    announce_stop: Callable[[StopKind], None]
    """Take note of what the next SIGTERM means."""
    facts: Callable[[], dict[str, Any]]
    """What only the daemon's own process knows, for ``edgectl doctor``."""
    debug: bool = False
    """Whether loops may be frozen."""


class Control:
    """Answers requests."""

    def __init__(
        self,
        pump: Pump,
        store: JobStore,
        reporter: Reporter,
        progress: Progress,
        powers: Powers,
        *,
        operator_group: str,
        read_group: str | None,
    ) -> None:
        self._pump = pump
        self._store = store
        self._reporter = reporter
        self._progress = progress
        self._powers = powers
        self._operator_group = operator_group
        self._read_group = read_group

    async def __call__(self, data: dict[str, Any], caller: Caller) -> AsyncIterator[dict[str, Any]]:
        """Answer a request with one or several objects.

        :raises ControlRefused: the caller may not, or the request is none.
        """
        try:
            request = _requests.validate_python(data)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in fault["loc"][1:])
            code = "unknown" if fault["type"] == "union_tag_invalid" else "bad_request"
            raise ControlRefused(code, f"{where + ': ' if where else ''}{fault['msg']}") from None
        self._permit(request, caller)
        if isinstance(request, _Logs):
            async for piece in self._logs(request):
                yield piece
            return
        yield {"ok": True, **await self._do(request, _who(request, caller))}

    def _permit(self, request: AnyRequest, caller: Caller) -> None:
        if isinstance(request, _Look | _Logs):
            if not caller.may_read:
                groups = " or ".join(filter(None, (self._read_group, self._operator_group)))
                raise ControlRefused("permission", f"{caller.user} may not look: root and members of {groups} may")
        elif isinstance(request, _Freeze):
            if not (self._powers.debug and caller.uid == 0):
                raise ControlRefused("permission", "only for tests: root, and a daemon with EDGE_AGENT_DEBUG=1")
        elif isinstance(request, _Stopping):
            if not caller.trusted:
                raise ControlRefused("permission", "only the service manager may announce a stop")
        elif not caller.may_change:
            raise ControlRefused(
                "permission", f"{caller.user} may not change anything: root and members of {self._operator_group} may"
            )

    async def _do(self, request: AnyRequest, who: str) -> dict[str, Any]:
        core = self._pump.core
        match request:
            case _Look(do="jobs"):
                return {"jobs": self._reporter.jobs()}
            case _Look(do="queues"):
                return {"queues": list(core.queues)}
            case _Look(do="facts"):
                return self._powers.facts() | {"status": self._reporter.report()}
            case _Maintenance():
                self._maintenance(request, who)
            case _Drain(deadline_seconds=deadline):
                self._pump.feed(DrainAsked(who, deadline))
            case _Resume():
                self._pump.feed(ResumeAsked(who))
            case _Concurrency(slots=slots):
                self._pump.feed(LimitsChanged(replace(core.limits, concurrency=slots)))
            case _SetQueues():
                self._set_queues(request)
            case _Reload():
                return await self._powers.reload()
            case _Stopping(kind=kind):
                self._powers.announce_stop(kind)
            case _Freeze(loop=loop, how=how):
                if loop not in self._progress.names:
                    raise ControlRefused("not_found", f"no loop {loop!r}; there are {', '.join(self._progress.names)}")
                self._progress.freeze(loop, how)
        return {"status": self._reporter.report()}

    def _maintenance(self, request: _Maintenance, who: str) -> None:
        if self._pump.core.stopping:
            raise ControlRefused("refused", "the agent is stopping")
        now = datetime.now(UTC)
        until = None
        if request.on and request.for_seconds is not None:
            until = now + timedelta(seconds=request.for_seconds)
        self._pump.feed(MaintenanceDecided(request.on, who, now, request.comment, until))
        self._pump.maintenance_changed.set()

    def _set_queues(self, request: _SetQueues) -> None:
        limits = self._pump.core.limits
        queues = [queue for queue in limits.queues if queue not in request.remove]
        unknown = [queue for queue in request.remove if queue not in limits.queues]
        if unknown:
            raise ControlRefused("not_found", f"does not serve {', '.join(unknown)}, but: {', '.join(limits.queues)}")
        queues += [queue for queue in dict.fromkeys(request.add) if queue not in queues]
        if not queues:
            raise ControlRefused("refused", "at least one queue must stay; `edgectl drain` stops taking jobs")
        self._pump.feed(LimitsChanged(replace(limits, queues=tuple(queues))))

    # --- Logs ---------------------------------------------------------------------------------------------------------

    async def _logs(self, request: _Logs) -> AsyncIterator[dict[str, Any]]:
        job = self._find(request.job)
        yield {"ok": True, "job_id": job.job_id, "task": job.label, "phase": str(job.phase)}
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        tail = _Tail(self._store, job.job_id)
        self._pump.before_forget.append(tail.forgotten)
        try:
            while True:
                over = job.phase is Phase.FINISHED or job.job_id not in self._pump.core.jobs
                while data := tail.read():
                    yield {"ok": True, "data": decoder.decode(data)}
                    await asyncio.sleep(0)
                if over or not request.follow:
                    break
                await asyncio.sleep(FOLLOW_SECONDS)
        finally:
            self._pump.before_forget.remove(tail.forgotten)
        outcome = str(job.ended.outcome) if job.ended is not None else None
        yield {"ok": True, "end": True, "bytes": tail.offset, "outcome": outcome}

    def _find(self, words: str) -> AgentJob:
        jobs = self._pump.core.jobs.values()
        found = [job for job in jobs if job.job_id.startswith(words) or job.label == words]
        if not found:
            raise ControlRefused(
                "not_found",
                f"no job {words!r} here; `edgectl jobs` lists them. Logs of jobs that have ended are at the server",
            )
        if len(found) > 1:
            raise ControlRefused("refused", f"{words!r} fits {len(found)} jobs; give more of the id")
        return found[0]


class _Tail:
    """Reads a log piece by piece, also what was added just before its file went away."""

    def __init__(self, store: JobStore, job_id: str) -> None:
        self.offset = 0
        self._store = store
        self._job_id = job_id
        self._saved: list[bytes] = []

    def read(self) -> bytes:
        """Return the next piece; empty: there is none now."""
        if self._saved:
            return self._saved.pop(0)
        data = self._store.read_log(self._job_id, self.offset, PIECE_BYTES)
        self.offset += len(data)
        return data

    def forgotten(self, job: ForgetJob) -> None:
        """Save what is still to be read."""
        while job.job_id == self._job_id and len(self._saved) < MOST_SAVED_PIECES:
            data = self._store.read_log(self._job_id, self.offset, PIECE_BYTES)
            if not data:
                break
            self.offset += len(data)
            self._saved.append(data)


def _who(request: _Request, caller: Caller) -> str:
    if caller.uid == 0 and request.on_behalf_of is not None and request.on_behalf_of != caller.user:
        return f"{request.on_behalf_of} (as {caller.user})"
    return caller.user
