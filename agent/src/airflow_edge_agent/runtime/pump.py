"""Between the core and the world: every event passes through here, every instruction is carried out here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from airflow_edge_agent.core.agent import AgentCore
from airflow_edge_agent.core.events import (
    DropFinal,
    Event,
    Exit,
    ForgetJob,
    Instruction,
    JobEnded,
    JobFound,
    KeepMaintenance,
    LogGone,
    LogGrew,
    LogShed,
    NoteInLog,
    RuntimeChecked,
    Say,
    Send,
    ShedLog,
    ShipLog,
    SignalJob,
    StartJob,
)
from airflow_edge_agent.core.maintenance import MaintenanceMemory
from airflow_edge_agent.ports import JobStore, MaintenanceStore, Runner, RunnerError, StoreError
from airflow_edge_agent.protocol.codec import pack_log
from airflow_edge_agent.protocol.frames import Goodbye, Log, Offer
from airflow_edge_agent.protocol.jobs import Outcome
from airflow_edge_agent.protocol.limits import JobLimits
from airflow_edge_agent.runtime.outbox import Outbox

log = structlog.get_logger()


class Pump:
    """Feeds the core and does what it says.

    ``exit_code`` is set, and ``exiting`` with it, when the core wants to leave.
    """

    def __init__(
        self,
        core: AgentCore,
        *,
        store: JobStore,
        runner: Runner,
        boot_id: str,
        default_execution_url: str,
        maintenance: MaintenanceStore | None = None,
    ) -> None:
        self.core = core
        self.exit_code: int | None = None
        self.exiting = asyncio.Event()
        self.left = asyncio.Event()
        """Set once the last frames have been sent, too: then the loops may end."""
        self.outbox = Outbox()
        self.busy = asyncio.Event()
        """Set while there are jobs or a stop is under way: while time matters to the core."""
        self.unsaid = asyncio.Event()
        """Set while final states of jobs wait on disk for Airflow."""
        self.linked = asyncio.Event()
        """Set while there is a session with the server."""
        self.stirred = asyncio.Event()
        """Set when something was done that may have left memory free."""
        self.stirred.set()
        self.reached = asyncio.Event()
        """Set when the server answered a job after it had not answered one."""
        self.on_runner_problem: Callable[[str], None] = lambda _: None
        """Hears why the runner could not work with the task runtime."""
        self._store = store
        self._runner = runner
        self._boot_id = boot_id
        self.default_execution_url = default_execution_url
        self.maintenance_changed = asyncio.Event()
        self.before_forget: list[Callable[[ForgetJob], None]] = []
        """Called when the files of a job are about to go."""
        self.before_goodbye: Callable[[], None] = lambda: None
        """Called when the last frame is about to be said."""
        self.access: Callable[[str], tuple[str, Path, str]] | None = None
        """Returns URL, socket and secret with which a job reaches the Execution API through us."""
        self.wants_relay = False
        """Whether we have told the server that jobs may reach it through us."""
        self._told_direct = False
        self._maintenance = maintenance
        self._work: set[asyncio.Task[None]] = set()
        self._signals: asyncio.Queue[SignalJob] = asyncio.Queue()

    def feed(self, event: Event) -> None:
        """Tell the core, and carry out the answer."""
        if isinstance(event, JobEnded | JobFound) and self._store.has_final(event.job_id):
            event = replace(event, unsaid=True)
        for instruction in self.core.handle(event, time.monotonic()):
            self._do(instruction)
        _show(self.linked, on=self.core.connected)
        _show(self.unsaid, on=any(job.unsaid for job in self.core.jobs.values()))
        if self.core.jobs or self.core.stopping:
            self.busy.set()
            self.stirred.set()
        else:
            self.busy.clear()

    @property
    def quiet(self) -> bool:
        """Whether nothing is on its way to or from the server, so that a reconnect disturbs nobody."""
        return self.outbox.empty and not self.core.speaking

    def leave(self, code: int, reason: str, *, name: str | None = None) -> None:
        """Make the agent exit. ``name``: the kind of event, for the log."""
        if self.exit_code is None:
            self.exit_code = code
            if code:
                log.error(reason, **({"edge_event": name} if name is not None else {}))
            self.exiting.set()

    def _do(self, instruction: Instruction) -> None:
        match instruction:
            case Send(frame):
                if self.core.connected:
                    if isinstance(frame, Goodbye):
                        self.before_goodbye()
                    self.outbox.put(frame)
            case StartJob(offer, limits):
                self._spawn(self._start(offer, limits))
            case SignalJob():
                self._signals.put_nowait(instruction)
            case ShipLog():
                self._spawn(self._ship(instruction))
            case ShedLog() | NoteInLog() | DropFinal():
                self._change_files(instruction)
            case ForgetJob(job_id):
                for tell in self.before_forget:
                    tell(instruction)
                self._store.forget(job_id)
            case Say():
                getattr(log, instruction.level)(instruction.message, **_fields(instruction))
            case KeepMaintenance(memory):
                self._keep(memory)
            case Exit(code, reason):
                self.leave(code, reason)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a piece of work failed", error=repr(error))
            self.leave(70, "internal error")

    async def _start(self, offer: Offer, limits: JobLimits) -> None:
        server, relay = self.core.execution_api_url or self.default_execution_url, None
        if not offer.token and self.access is not None:
            # With the job's own secret in place of Airflow's token.
            server, relay, secret = self.access(offer.job_id)
            offer = offer.model_copy(update={"token": secret})
        elif offer.token:
            self._tell_direct(server)
        try:
            self._store.add(offer, self._boot_id)
            await self._runner.start(offer, server, limits, relay)
        except (StoreError, RunnerError) as error:
            if isinstance(error, RunnerError):
                self.on_runner_problem(str(error))
            # First the problem, then the job's return: or the server would offer it to us again at once.
            self.feed(RuntimeChecked(str(error)))
            self.feed(JobEnded(offer.job_id, Outcome.NOT_STARTED, detail=str(error)))

    def _tell_direct(self, server: str) -> None:
        if self.wants_relay and not self._told_direct:
            self._told_direct = True
            log.warning("the server does not relay: tasks reach Airflow by themselves", execution_api=server)

    async def _ship(self, piece: ShipLog) -> None:
        self._store.sending(piece.job_id, piece.offset + piece.limit_bytes)
        data = await asyncio.to_thread(self._store.read_log, piece.job_id, piece.offset, piece.limit_bytes)
        if not data:
            self.feed(LogGone(piece.job_id))
        elif self.core.connected:
            self.outbox.put(Log(job_id=piece.job_id, offset=piece.offset, data=pack_log(data)))

    def _keep(self, memory: MaintenanceMemory) -> None:
        self.maintenance_changed.set()
        if self._maintenance is None:
            return
        try:
            self._maintenance.save(memory)
        except StoreError as error:
            log.error("maintenance will not survive a restart", reason=str(error))

    def _change_files(self, instruction: ShedLog | NoteInLog | DropFinal) -> None:
        match instruction:
            case ShedLog():
                self._shed(instruction)
            case NoteInLog(job_id, text):
                self.feed(LogGrew(job_id, self._store.append_log(job_id, text)))
            case DropFinal(job_id, ended):
                if ended is not None:
                    self._store.record_end(ended)
                self._store.drop_final(job_id)

    def _shed(self, piece: ShedLog) -> None:
        try:
            size = self._store.shed_log(piece.job_id, piece.offset, piece.count)
        except StoreError as error:
            self.feed(LogShed(piece.job_id, 0, problem=str(error)))
        else:
            self.feed(LogShed(piece.job_id, size))

    async def signal_loop(self) -> None:
        """Pass signals to the runner, in order."""
        while True:
            instruction = await self._signals.get()
            await self._runner.signal(instruction.job_id, instruction.signal)

    async def settle(self) -> None:
        """Wait for pieces of work under way."""
        while self._work:
            await asyncio.gather(*self._work, return_exceptions=True)


def _show(event: asyncio.Event, *, on: bool) -> None:
    if on:
        event.set()
    else:
        event.clear()


def _fields(said: Say) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if said.job_id is not None:
        fields |= {"job": said.job_id, "task": said.label}
    if said.task is not None:
        fields |= said.task.told()
    if said.name is not None:
        fields["edge_event"] = said.name
    return fields
