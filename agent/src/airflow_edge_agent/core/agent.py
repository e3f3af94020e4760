"""The agent's decisions: events in, instructions out."""

from __future__ import annotations

from dataclasses import replace

from airflow_edge_agent.core.events import (
    DropFinal,
    Event,
    Exit,
    FinalKept,
    FinalSettled,
    ForgetJob,
    FrameArrived,
    Instruction,
    JobEnded,
    JobEnding,
    JobFound,
    JobHeard,
    JobStarted,
    LinkLost,
    LinkOpened,
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
    StopAsked,
    StopPolicy,
    Tick,
)
from airflow_edge_agent.core.finals import judge_end
from airflow_edge_agent.core.jobs import AgentJob, Phase
from airflow_edge_agent.core.limits import grant
from airflow_edge_agent.core.operation import OperatedAgent
from airflow_edge_agent.core.policy import Limits
from airflow_edge_agent.core.spool import KEEP_PERCENT, plan, undelivered_bytes
from airflow_edge_agent.core.tasks import TaskKey
from airflow_edge_agent.protocol.frames import (
    MAX_JOBS,
    MAX_LOG_CHUNK_BYTES,
    Accept,
    AcceptAck,
    Cancel,
    Close,
    Controls,
    Goodbye,
    HeldJob,
    Intervals,
    LogAck,
    Maintenance,
    Offer,
    Refuse,
    Result,
    ResultAck,
    Started,
    Status,
    UnknownFrame,
)
from airflow_edge_agent.protocol.jobs import Outcome
from airflow_edge_agent.protocol.states import DRAINED_BY, TAKES_JOBS, AgentEvent, AgentState, can

LABELS_SHOWN = 3

TEXT_LENGTH = 2_000
"""What a frame's text may hold."""

EXIT_NAME_IN_USE = 75
EXIT_PROTOCOL = 76
EXIT_CREDENTIAL = 77

_CLOSE_EXITS = {
    "name_in_use": EXIT_NAME_IN_USE,
    "superseded": EXIT_NAME_IN_USE,
    "name_mismatch": EXIT_CREDENTIAL,
    "protocol_mismatch": EXIT_PROTOCOL,
}
"""What a close means for this process. Any other code: connect again."""

_RETRIED_CLOSES = frozenset({"name_in_use"})
"""Closes that may pass by themselves: the incumbent may be our own past, not yet timed out."""


class AgentCore(OperatedAgent):
    """State of one agent.

    Feed it with :meth:`handle`; it returns what is to be done. It never raises for what a server or runner says.
    """

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.jobs: dict[str, AgentJob] = {}
        self.jobs_started = 0
        self.jobs_ended = dict.fromkeys(Outcome, 0)
        """How many jobs this run of the daemon has seen end, by outcome."""
        self.problem: str | None = None
        self.spool_problem: str | None = None
        self.intervals = Intervals()
        self.execution_api_url: str | None = None
        self._stop_asked_at: float | None = None
        self._stop_reason = ""
        self._stop_policy: StopPolicy = "wait"
        self._idle_since_stop: float | None = None
        self._left = False
        self.lost_at: float | None = None
        """When the last connection was lost; ``None``: there has been none."""
        self._now = 0.0
        self._name_refused_at: float | None = None
        self._last_status: Status | None = None
        self._described: Status | None = None

    # --- What others may know -----------------------------------------------------------------------------------------

    @property
    def slots_used(self) -> int:
        """Slots of the jobs that hold some."""
        return sum(job.slots for job in self.jobs.values() if job.holds_slots or (self.connected and job.settling))

    @property
    def stopping(self) -> bool:
        """Whether the agent is on its way out."""
        return self._stop_asked_at is not None

    @property
    def speaking(self) -> bool:
        """Whether an answer of the server is awaited, or the agent is about to leave."""
        return self.stopping or any(
            job.phase in (Phase.ACCEPTING, Phase.STARTING, Phase.FINISHED) or job.log_in_flight
            for job in self.jobs.values()
        )

    @property
    def running_jobs(self) -> str:
        """Names the jobs that hold slots, the first few of them."""
        return self._describe_jobs()

    @property
    def undelivered(self) -> int:
        """How many ended jobs the server does not know everything of."""
        return sum(1 for job in self.jobs.values() if job.phase is Phase.FINISHED)

    @property
    def results_waiting(self) -> int:
        """How many results the server has not taken, those included that keep their tasks from ending."""
        return sum(1 for job in self.jobs.values() if not job.works)

    @property
    def working(self) -> int:
        """How many jobs have work to do."""
        return sum(1 for job in self.jobs.values() if job.works)

    @property
    def spooled_bytes(self) -> int:
        """How much log the server has not acknowledged."""
        return undelivered_bytes(job.spooled() for job in self.jobs.values())

    @property
    def lease_until(self) -> float | None:
        """When the first running job has to end because the server is away; ``None``: it is not, or none has to."""
        ends = [at for job in self.jobs.values() if (at := self.lease_ends_at(job)) is not None]
        return min(ends, default=None)

    @property
    def hindrance(self) -> str | None:
        """Why no jobs are taken although the agent may be connected and not in maintenance."""
        drained = self.drained_by and f"{DRAINED_BY}{self.drained_by}: takes no new jobs until it is resumed"
        return self.problem or self.spool_problem or drained

    def status(self) -> Status:
        """Describe state and slots as they are now, under a number that grows with each change."""
        number = 1 if self._described is None else self._described.sequence
        as_in_hello = self.controls is None and self.queues == self._first_queues
        status = Status(
            state=self.state,
            slots_total=self.concurrency,
            slots_used=self.slots_used,
            problem=self.hindrance,
            queues=None if as_in_hello else list(self.queues),
            controls=0 if self.controls is None else self.controls.revision,
            sequence=number,
        )
        if self._described is not None and status != self._described:
            status = status.model_copy(update={"sequence": number + 1})
        self._described = status
        return status

    def held_jobs(self) -> list[HeldJob]:
        """List the jobs for a hello."""
        return [held for job in self.jobs.values() if (held := job.held()) is not None]

    # --- Events -------------------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take in what happened at ``now`` (monotonic seconds) and return what is to be done, in order."""
        self._out = []
        self._now = now
        match event:
            case FrameArrived(frame):
                self._frame(frame, now)
            case LinkOpened():
                self._opened(event)
            case LinkLost():
                self._lost()
            case JobStarted():
                self._started(event)
            case JobHeard() | JobEnding():
                self._asked(event)
            case JobEnded():
                self.jobs_ended[event.outcome] += self._ended(event)
            case FinalKept() | FinalSettled():
                self._final_told(event)
            case JobFound():
                self._found(event)
            case LogGrew() | LogShed() | LogGone():
                self._log_changed(event)
            case RuntimeChecked(problem):
                self._runtime_checked(problem)
            case StopAsked(reason, policy):
                self._stop(reason, policy, now)
            case Tick():
                pass
            case _:
                self._operated(event, now)
        self._time_passes(now)
        self._settle()
        return self._out

    # --- The link -----------------------------------------------------------------------------------------------------

    def _opened(self, event: LinkOpened) -> None:
        welcome = event.welcome
        self.connected = True
        self._last_status = None
        self._name_refused_at = None
        self.intervals = welcome.intervals
        self.execution_api_url = welcome.execution_api_url
        if self.state is AgentState.STARTING:
            self._move(AgentEvent.INITIALISED)
        self._welcomed(welcome)
        # Whatever was on its way when the last link broke may be lost: say it again, each frame may come twice.
        for job in self.jobs.values():
            job.log_in_flight = job.log_offset_known = False
            job.log_sent_here = 0
            if job.phase is Phase.FINISHED:
                self._tell_result(job)
            elif job.pid is not None:
                self._out.append(Send(Started(job_id=job.job_id, fence=job.fence, pid=job.pid)))

    def _lost(self) -> None:
        self.connected = False
        self.lost_at = self._now
        for job in list(self.jobs.values()):
            job.log_in_flight = False
            if job.phase is Phase.ACCEPTING:
                # The server will offer it again, to us or to another: nothing of it ran here.
                del self.jobs[job.job_id]

    def _frame(self, frame: object, now: float) -> None:
        match frame:
            case Offer():
                self._offer(frame, now)
            case AcceptAck(job_id=job_id, fence=fence, held_fence=held_fence):
                if held_fence is None:
                    self._accept_acked(job_id, fence)
                else:
                    self._adopted(job_id, held_fence, fence)
            case Cancel():
                self._cancel(frame, now)
            case ResultAck(job_id=job_id, fence=fence):
                job = self.jobs.get(job_id)
                if job is not None and job.fence == fence and job.phase is Phase.FINISHED:
                    job.result_acked = True
            case LogAck(job_id=job_id, next_offset=next_offset):
                self._log_acked(job_id, next_offset)
            case Maintenance() | Controls():
                self._steered(frame)
            case Close():
                self._closed(frame, now)
            case UnknownFrame(frame_type="maintenance_asked"):
                # A server from before that frame: it hears of the state alone, and what it wants counts.
                self._remember(untold=None)
                if self._server_wish is not None:
                    self._maintenance(self._server_wish)
            case UnknownFrame(frame_type=kind):
                self._say("warning", f"the server sent or refused a frame of a kind unknown here: {kind!r}")
            case _:
                self._say("warning", f"unexpected frame from the server: {type(frame).__name__}")

    def _closed(self, frame: Close, now: float) -> None:
        code = _CLOSE_EXITS.get(frame.code)
        if code is None:
            self._say("info", f"the server closed the session ({frame.code}): {frame.message}")
            return
        if frame.code in _RETRIED_CLOSES:
            if self._name_refused_at is None:
                self._name_refused_at = now
                self._say("warning", f"{frame.message}; asking again for {self.limits.name_wait_seconds:.0f} s")
            if now - self._name_refused_at < self.limits.name_wait_seconds:
                return
        self._out.append(Exit(code, frame.message))

    # --- Jobs ---------------------------------------------------------------------------------------------------------

    def _offer(self, offer: Offer, now: float) -> None:
        known = self.jobs.get(offer.job_id)
        if known is not None and known.fence == offer.fence:
            return  # the same offer twice
        refusal = self._why_not(offer, known)
        if refusal is not None:
            self._out.append(Send(Refuse(job_id=offer.job_id, fence=offer.fence, reason=refusal)))
            return
        self.jobs[offer.job_id] = AgentJob(
            job_id=offer.job_id,
            fence=offer.fence,
            slots=offer.slots,
            label=offer.label,
            phase=Phase.ACCEPTING,
            offer=offer,
            task=TaskKey.of(offer.workload),
            lease_until=now + offer.lease_seconds,
            disconnect_lease_seconds=offer.disconnect_lease_seconds,
            heard_at=now,
        )
        self._out.append(Send(Accept(job_id=offer.job_id, fence=offer.fence)))

    def _why_not(self, offer: Offer, known: AgentJob | None) -> str | None:
        if known is not None:
            return f"this agent still holds an earlier offer of the job ({known.phase})"
        if self.stopping:
            return "the agent is shutting down"
        if (problem := self.hindrance) is not None:
            return problem
        if self.state not in TAKES_JOBS:
            return f"the agent is in state '{self.state}'"
        if self.slots_used + offer.slots > self.concurrency:
            return f"{max(self.concurrency - self.slots_used, 0)} slots free, {offer.slots} needed"
        if len(self.jobs) >= MAX_JOBS:
            return f"{len(self.jobs)} jobs are held here already; the server has not taken their results and logs"
        return None

    def _accept_acked(self, job_id: str, fence: int) -> None:
        job = self.jobs.get(job_id)
        if job is None:
            # It came so late that the offer was dropped here, and the server would wait for this job as long as the
            # session lasts. Had it run here before, the server would have its result and ignore this one.
            late = "the confirmation came after the lease had ended"
            self._out.append(Send(Result(job_id=job_id, fence=fence, outcome=Outcome.NOT_STARTED, detail=late)))
            return
        if job.fence != fence or job.phase is not Phase.ACCEPTING or job.offer is None:
            return
        offer = job.offer
        job.move(Phase.STARTING)
        granted = grant(self.limits.jobs, offer.queue, offer.limits)
        if granted.cut:
            self._say("warning", f"its {', '.join(granted.cut)} is cut down to this agent's [limits.maximum]", job)
        self._out.append(StartJob(offer, granted.limits))

    def _adopted(self, job_id: str, held_fence: int, fence: int) -> None:
        """Go on with a job under another fence: the server had given it up, and takes that back."""
        job = self.jobs.get(job_id)
        if job is None or job.fence != held_fence or job.phase is Phase.ACCEPTING:
            return
        job.fence = fence
        # What was said under the old fence has not been listened to.
        if job.phase is Phase.FINISHED:
            job.result_acked = False
            self._tell_result(job)
        elif job.pid is not None:
            self._out.append(Send(Started(job_id=job.job_id, fence=job.fence, pid=job.pid)))

    def _cancel(self, frame: Cancel, now: float) -> None:
        # Answered with a result in any case: the server asks until it hears that the job is over.
        job = self.jobs.get(frame.job_id)
        if job is None or (job.phase is Phase.ACCEPTING and job.fence == frame.fence):
            if job is not None:
                self._say("info", f"not started: {frame.reason}", job)
                del self.jobs[job.job_id]
            over = Result(job_id=frame.job_id, fence=frame.fence, outcome=Outcome.KILLED, detail=frame.reason)
            self._out.append(Send(over))
        elif job.fence != frame.fence:
            return
        elif job.phase is Phase.FINISHED:
            self._tell_result(job)
        elif job.cancel_reason is None:
            self._say("info", f"cancelled: {frame.reason}", job)
            self._end_job(job, frame.reason, now)

    def _tell_result(self, job: AgentJob) -> None:
        # Airflow is to hear of the task's state first: or it would take the end of the job for a failure.
        if not job.unsaid:
            self._out.append(Send(job.result()))

    def _end_job(self, job: AgentJob, reason: str, now: float) -> None:
        self._out.append(NoteInLog(job.job_id, f"the agent ends this task: {reason}"))
        job.cancel_reason = reason
        job.kill_at = now + self.limits.kill_grace_seconds
        self._out.append(SignalJob(job.job_id, "TERM"))

    def _started(self, event: JobStarted) -> None:
        job = self.jobs.get(event.job_id)
        if job is None or job.phase is not Phase.STARTING:
            return
        job.move(Phase.RUNNING)
        job.pid = event.pid
        job.started_at = self._now
        self.jobs_started += 1
        self._say("info", "started", job, name="job_started")
        self._out.append(Send(Started(job_id=job.job_id, fence=job.fence, pid=event.pid)))

    def _asked(self, event: JobHeard | JobEnding) -> None:
        job = self.jobs.get(event.job_id)
        if job is None:
            return
        if isinstance(event, JobEnding):
            job.ending = event.waits
        else:
            job.heard_at = self._now

    def lease_ends_at(self, job: AgentJob) -> float | None:
        """Return until when the job may run on while the server is away; ``None``: nothing is known of an end.

        The server counts from when it last heard of us, and waits longer than that.
        """
        if self.connected or not job.holds_slots or not job.disconnect_lease_seconds:
            return None
        # Tasks ask the server again and again, so it is known when it was there. Others may have nothing to ask.
        since = job.heard_at if job.task is not None else max(job.heard_at, self.lost_at or 0.0)
        return since + job.disconnect_lease_seconds

    def _end_of_lease(self, job: AgentJob, now: float) -> None:
        ends_at = self.lease_ends_at(job)
        if ends_at is not None and now >= ends_at and job.cancel_reason is None and job.phase is not Phase.ACCEPTING:
            seconds = job.disconnect_lease_seconds
            reason = f"the server has been away for longer than the disconnect lease allows, {seconds:g} s"
            self._say("warning", f"ended: {reason}", job)
            self._end_job(job, reason, now)

    def _ended(self, event: JobEnded) -> bool:
        job = self.jobs.get(event.job_id)
        if job is None or job.phase not in (Phase.STARTING, Phase.RUNNING):
            return False
        detail = event.detail and event.detail[:TEXT_LENGTH]
        if job.cancel_reason is not None and event.outcome is Outcome.KILLED:
            detail = job.cancel_reason
        job.move(Phase.FINISHED)
        job.unsaid |= event.unsaid
        job.ended_unsaid = job.unsaid
        job.ended = judge_end(replace(event, detail=detail), job.settled)
        job.log_size = max(job.log_size, event.log_bytes)
        outcome, detail = job.ended.outcome, job.ended.detail
        waits = "; its final state waits for the server" if job.unsaid else ""
        self._say("info", f"{outcome}" + (f": {detail}" if detail else "") + waits, job, name="job_ended")
        self._tell_result(job)
        return True

    def _final_told(self, event: FinalKept | FinalSettled) -> None:
        job = self.jobs.get(event.job_id)
        if job is None:
            return
        if isinstance(event, FinalKept):
            job.unsaid = True
        elif job.unsaid:
            self._final_settled(job, event)

    def _final_settled(self, job: AgentJob, event: FinalSettled) -> None:
        job.unsaid = False
        job.settled = event
        job.log_size = max(job.log_size, event.log_bytes)
        if event.refusal is None:
            self._say("info", f"Airflow has taken its final state, '{event.state}', which waited here", job)
        else:
            self._say("warning", event.refusal, job)
        if job.ended is not None:
            job.ended = judge_end(job.ended, event)
            self._out.append(DropFinal(job.job_id, job.ended))
            self._tell_result(job)
            return
        self._out.append(DropFinal(job.job_id))
        if event.refusal is not None and job.cancel_reason is None:
            self._end_job(job, event.refusal, self._now)

    def _found(self, event: JobFound) -> None:
        job = AgentJob(
            job_id=event.job_id,
            fence=event.fence,
            slots=event.slots,
            label=event.label,
            phase=Phase.RUNNING,
            pid=event.pid,
            task=event.task,
            log_size=event.log_bytes,
            # What was there before us may have been sent, whoever acknowledged it.
            log_sent=event.log_bytes if event.log_sent is None else min(event.log_sent, event.log_bytes),
            disconnect_lease_seconds=event.disconnect_lease_seconds,
            heard_at=self._now - event.heard_seconds_ago,
            unsaid=event.unsaid,
        )
        self.jobs[job.job_id] = job
        if event.ended is not None:
            self._ended(event.ended)
        else:
            self._say("info", "still running, taken over", job)

    # --- Logs ---------------------------------------------------------------------------------------------------------

    def _log_changed(self, event: LogGrew | LogShed | LogGone) -> None:
        match event:
            case LogGrew():
                self._log_grew(event)
            case LogShed():
                self._log_shed(event)
            case LogGone(job_id):
                self._log_gone(job_id)

    def _log_grew(self, event: LogGrew) -> None:
        job = self.jobs.get(event.job_id)
        if job is not None:
            job.log_size = max(job.log_size, event.size_bytes)

    def _log_acked(self, job_id: str, next_offset: int) -> None:
        job = self.jobs.get(job_id)
        if job is not None:
            job.log_acked = next_offset
            job.log_in_flight = False
            if not job.log_offset_known:
                # What an earlier session had sent and is not there has been lost: the server listens to it no more.
                job.log_offset_known = True
                job.log_sent = max(next_offset, job.log_sent_here)

    def _log_gone(self, job_id: str) -> None:
        job = self.jobs.get(job_id)
        if job is not None:
            self._say("warning", f"its log cannot be read beyond byte {job.log_acked}; the rest is lost", job)
            job.log_size = job.log_acked
            job.log_in_flight = False

    def _log_shed(self, event: LogShed) -> None:
        job = self.jobs.get(event.job_id)
        if job is None:
            return
        dropped = job.log_size - event.size_bytes
        job.log_unsheddable = event.problem is not None or dropped <= 0
        if event.problem is not None:
            self._say("error", f"its log cannot be shortened: {event.problem}", job)
        if job.log_unsheddable:
            return
        job.log_size = event.size_bytes
        self._say("warning", f"{dropped} bytes of its log were dropped: the spool is full", job)
        if job.phase is Phase.FINISHED:
            # It told of a longer log.
            job.result_acked = False
            self._tell_result(job)

    def _bound_spool(self) -> None:
        logs = [job.spooled() for job in self.jobs.values()]
        limit = self.limits.spool_bytes
        total = undelivered_bytes(logs)
        sheds = plan(logs, limit)
        self._out.extend(ShedLog(shed.job_id, shed.offset, shed.count) for shed in sheds)
        if total > limit and not sheds and self.spool_problem is None:
            self.spool_problem = (
                f"spool full: {total // 2**20} MiB of logs wait for the server, spool_max_mb allows {limit // 2**20}"
            )
            self._say("error", f"takes no jobs: {self.spool_problem}")
        elif total <= limit * KEEP_PERCENT // 100 and self.spool_problem is not None:
            self.spool_problem = None
            self._say("info", "the spool has room again")

    # --- State --------------------------------------------------------------------------------------------------------

    def _runtime_checked(self, problem: str | None) -> None:
        if problem is not None:
            problem = problem[:TEXT_LENGTH] or "the task runtime cannot be used"
        if problem == self.problem:
            return
        self.problem = problem
        if problem is not None:
            self._say("error", f"takes no jobs: {problem}")
        else:
            self._say("info", "the task runtime is usable")

    def _stop(self, reason: str, policy: StopPolicy, now: float) -> None:
        if self.stopping:
            self._stop_policy = "end"
            self._end_all(now, f"the agent was told to stop at once ({reason})")
            return
        self._stop_asked_at = now
        self._stop_reason = reason
        self._stop_policy = policy
        if can(self.state, AgentEvent.STOP):
            self._move(AgentEvent.STOP)
        verb = {"wait": "waits for", "leave": "leaves to the next start", "end": "ends"}[policy]
        jobs = f", {verb} {self._describe_jobs()}" if self.slots_used else ""
        self._say("info", f"stopping ({reason}){jobs}", name="stopping")
        if policy == "end":
            self._end_all(now, f"the agent was stopped ({reason})")
        elif policy == "leave":
            for job in [job for job in self.jobs.values() if job.phase is Phase.ACCEPTING]:
                del self.jobs[job.job_id]  # nothing of it ran: the server will offer it again

    def _describe_jobs(self) -> str:
        labels = [job.label for job in self.jobs.values() if job.holds_slots]
        shown = ", ".join(labels[:LABELS_SHOWN]) + (", ..." if len(labels) > LABELS_SHOWN else "")
        return f"{len(labels)} running job{'s' if len(labels) != 1 else ''}: {shown}"

    def _end_all(self, now: float, reason: str) -> None:
        for job in list(self.jobs.values()):
            if job.phase is Phase.ACCEPTING:
                del self.jobs[job.job_id]
            elif job.phase is not Phase.FINISHED and job.cancel_reason is None:
                self._end_job(job, reason, now)

    # --- After every event --------------------------------------------------------------------------------------------

    def _time_passes(self, now: float) -> None:
        for job in list(self.jobs.values()):
            self._end_of_lease(job, now)
            if job.phase is Phase.ACCEPTING and now > job.lease_until:
                self._say("warning", "dropped: the server did not confirm it in time", job)
                del self.jobs[job.job_id]
            elif job.holds_slots and job.kill_at is not None and now >= job.kill_at:
                job.kill_at = now + self.limits.kill_grace_seconds
                self._say("warning", "did not end when asked, killed", job)
                self._out.append(SignalJob(job.job_id, "KILL"))
        deadline = self.limits.drain_deadline_seconds
        waits = self._stop_asked_at is not None and self._stop_policy != "leave"
        if self._stop_asked_at is not None and waits and deadline and now >= self._stop_asked_at + deadline:
            self._end_all(now, f"the agent's drain deadline of {deadline:g} s passed")
        if self._drain_until is not None and now >= self._drain_until:
            self._drain_until = None
            self._end_all(now, f"the deadline of the drain by {self.drained_by} passed")
        self._leave(now)

    def _leave(self, now: float) -> None:
        """Exit once a stop has been asked for, nothing runs, and the server knows or cannot be told.

        What is left to the next start need not end, but it must have begun: its files tell of it then.
        """
        leaves = self._stop_policy == "leave"
        awaited = {Phase.STARTING} if leaves else {Phase.ACCEPTING, Phase.STARTING, Phase.RUNNING}
        if self._left or self._stop_asked_at is None or any(job.phase in awaited for job in self.jobs.values()):
            return
        if self._idle_since_stop is None:
            self._idle_since_stop = now
        delivered = all(job.done for job in self.jobs.values() if job.phase is Phase.FINISHED)
        grace = self.limits.leave_grace_seconds if leaves else self.limits.delivery_grace_seconds
        if not delivered and now - self._idle_since_stop < grace:
            return
        if can(self.state, AgentEvent.CLEAR):
            self._move(AgentEvent.CLEAR)
        if not delivered:
            self._say("warning", f"{self.undelivered} results wait on disk for the next start: the server is away")
        self._left = True
        self._out.append(Send(Goodbye(state=self.state, reason=self._stop_reason)))
        self._out.append(Exit(0, self._stop_reason))

    def _settle(self) -> None:
        """Bring slots, state, logs and status up to date with what just happened."""
        for job in list(self.jobs.values()):
            if job.done:
                del self.jobs[job.job_id]
                self._out.append(ForgetJob(job.job_id, job.label, job.task))
            elif job.phase is Phase.FINISHED and job.unsaid:
                pass  # first its state, then its result, then the rest of its log
            elif self.connected and not job.log_in_flight and job.log_acked < job.log_size:
                job.log_in_flight = True
                limit = min(MAX_LOG_CHUNK_BYTES, job.log_size - job.log_acked)
                job.log_sent_here = max(job.log_sent_here, job.log_acked + limit)
                job.log_sent = max(job.log_sent, job.log_sent_here)
                self._out.append(ShipLog(job.job_id, job.log_acked, limit))
        self._bound_spool()
        if self.state is not AgentState.STARTING:
            event = AgentEvent.BUSY if self.slots_used else AgentEvent.CLEAR
            # While stopping, only _leave() may say that all is clear: results may still be on their way.
            if can(self.state, event) and not self.stopping:
                self._move(event)
        status = self.status()
        if self.connected and status != self._last_status:
            self._last_status = status
            self._out.append(Send(status))

    def _say(self, level: str, message: str, job: AgentJob | None = None, *, name: str | None = None) -> None:
        assert level in ("debug", "info", "warning", "error")
        said = Say(level, message, name=name)  # type: ignore[arg-type]  # asserted above
        if job is not None:
            said = replace(said, job_id=job.job_id, label=job.label, task=job.task)
        self._out.append(said)
