"""Whatever happens in whatever order, the agent's decisions keep their promises."""

from __future__ import annotations

import os
from typing import Any, get_args

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from airflow_edge_agent.core.agent import AgentCore
from airflow_edge_agent.core.events import (
    Event,
    Exit,
    ForgetJob,
    FrameArrived,
    Instruction,
    JobEnded,
    JobFound,
    JobStarted,
    LinkLost,
    LinkOpened,
    LogGone,
    LogGrew,
    RuntimeChecked,
    Send,
    ShipLog,
    SignalJob,
    StartJob,
    StopAsked,
    Tick,
)
from airflow_edge_agent.core.jobs import Phase
from airflow_edge_agent.core.policy import Limits
from airflow_edge_agent.protocol.codec import decode_agent_frame
from airflow_edge_agent.protocol.frames import (
    MAX_LOG_CHUNK_BYTES,
    Accept,
    AcceptAck,
    Cancel,
    Close,
    Goodbye,
    LogAck,
    Maintenance,
    Refuse,
    Result,
    ResultAck,
    UnknownFrame,
)
from airflow_edge_agent.protocol.jobs import Outcome
from airflow_edge_agent.protocol.states import AGENT_TRANSITIONS, AgentState
from fakes.frames import make_offer, make_welcome

PROFILE = settings(
    max_examples=120,
    stateful_step_count=40,
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)

CONCURRENCY = 3
IDS = [f"00000000-0000-4000-8000-00000000000{n}" for n in range(5)]

ids = st.sampled_from(IDS)
fences = st.integers(1, 3)
texts = st.text(max_size=5) | st.just("long " * 1_000)
sizes = st.integers(0, 3 * MAX_LOG_CHUNK_BYTES)
closes = st.sampled_from(get_args(Close.model_fields["code"].annotation))


def reachable() -> dict[AgentState, set[AgentState]]:
    """Where one event may lead: several transitions may follow each other, e.g. through maintenance exit to idle."""
    step = {state: {state} for state in AgentState}
    for (state, _), after in AGENT_TRANSITIONS.items():
        step[state].add(after)
    return {state: {z for y in step[state] for x in step[y] for z in step[x]} for state in AgentState}


REACHABLE = reachable()


class CoreMachine(RuleBasedStateMachine):
    """Feeds a core with sense and nonsense, and keeps its own short record of what it may do."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.core = AgentCore(Limits(CONCURRENCY, kill_grace_seconds=5, drain_deadline_seconds=60))
        self.started: set[tuple[str, int]] = set()
        self.confirmed: set[tuple[str, int]] = set()
        self.goodbyes = 0

    @initialize(found=st.lists(ids, unique=True, max_size=2), connected=st.booleans())
    def begin(self, found: list[str], connected: bool) -> None:  # noqa: FBT001 -- drawn by name
        for number, job_id in enumerate(found):
            ended = JobEnded(job_id, Outcome.LOST, log_bytes=10) if number else None
            self.started.add((job_id, 1))
            self.feed(JobFound(job_id, 1, 1, "found", pid=7, ended=ended))
        if connected:
            self.open(maintenance=None)

    def feed(self, event: Event) -> list[Instruction]:
        before = {job_id: (job.fence, job.phase, job.result_acked) for job_id, job in self.core.jobs.items()}
        state = self.core.state
        out = self.core.handle(event, self.now)
        assert self.core.state in REACHABLE[state]
        for instruction in out:
            self.check(instruction, event, before)
        return out

    def check(self, instruction: Instruction, event: Event, before: dict[str, Any]) -> None:
        match instruction:
            case StartJob(offer):
                assert isinstance(event, FrameArrived)
                assert event.frame == AcceptAck(job_id=offer.job_id, fence=offer.fence)
                assert (offer.job_id, offer.fence) not in self.started
                self.started.add((offer.job_id, offer.fence))
            case ForgetJob(job_id):
                fence, phase, acked = before[job_id]
                assert phase is Phase.FINISHED
                just_acked = isinstance(event, FrameArrived) and event.frame == ResultAck(job_id=job_id, fence=fence)
                assert acked or just_acked
                assert job_id not in self.core.jobs
            case Send(frame):
                # Whatever it says must be understood at the other end.
                assert decode_agent_frame(frame.model_dump(mode="json")) == frame
                if isinstance(frame, Accept):
                    assert not self.core.stopping
                    assert self.core.problem is None
                if isinstance(frame, Goodbye):
                    self.goodbyes += 1
            case ShipLog(job_id, offset, limit):
                assert self.core.connected
                job = self.core.jobs[job_id]
                assert job.log_in_flight
                assert 0 < limit <= MAX_LOG_CHUNK_BYTES
                assert offset + limit <= job.log_size
            case SignalJob(job_id):
                assert self.core.jobs[job_id].phase in (Phase.STARTING, Phase.RUNNING)
            case Exit(code):
                assert code in (0, 75, 76, 77)

    # The link

    @rule(maintenance=st.sampled_from([None, True, False]))
    def open(self, maintenance: bool | None) -> None:  # noqa: FBT001 -- drawn by name
        out = self.feed(LinkOpened(make_welcome(maintenance=maintenance)))
        told = {i.frame.job_id for i in out if isinstance(i, Send) and isinstance(i.frame, Result)}
        owed = {j.job_id for j in self.core.jobs.values() if j.phase is Phase.FINISHED}
        assert owed <= told, "a result is told again after each reconnect, until it is acknowledged"
        unshipped = {j.job_id for j in self.core.jobs.values() if j.log_acked < j.log_size}
        assert unshipped <= {i.job_id for i in out if isinstance(i, ShipLog)}

    @rule()
    def lose(self) -> None:
        self.feed(LinkLost("cut"))
        assert all(job.phase is not Phase.ACCEPTING for job in self.core.jobs.values())

    # The server, sensible or not

    @rule(job_id=ids, fence=fences, slots=st.integers(1, CONCURRENCY + 1), lease=st.floats(0, 30))
    def offer(self, job_id: str, fence: int, slots: int, lease: float) -> None:
        if (job_id, fence) in self.started:
            return  # no server offers the same fence again after its confirmation: that is what fences are for
        offer = make_offer(job_id=job_id, fence=fence, slots=slots, lease_seconds=lease)
        known = self.core.jobs.get(job_id)
        out = self.feed(FrameArrived(offer))
        answers = [i.frame for i in out if isinstance(i, Send) and isinstance(i.frame, Accept | Refuse)]
        if known is not None and known.fence == fence:
            assert answers == []
        else:
            assert [(a.job_id, a.fence) for a in answers] == [(job_id, fence)]

    @rule(job_id=ids, fence=fences)
    def confirm(self, job_id: str, fence: int) -> None:
        known = self.core.jobs.get(job_id)
        out = self.feed(FrameArrived(AcceptAck(job_id=job_id, fence=fence)))
        if known is None:
            # The server counts on a start that will not come: it must be told.
            assert [i.frame.outcome for i in out if isinstance(i, Send) and isinstance(i.frame, Result)] == [
                Outcome.NOT_STARTED
            ]

    @rule(job_id=ids, fence=fences)
    def cancel(self, job_id: str, fence: int) -> None:
        self.feed(FrameArrived(Cancel(job_id=job_id, fence=fence, reason="because")))

    @rule(job_id=ids, fence=fences)
    def take_result(self, job_id: str, fence: int) -> None:
        self.feed(FrameArrived(ResultAck(job_id=job_id, fence=fence)))

    @rule(job_id=ids, offset=sizes)
    def take_log(self, job_id: str, offset: int) -> None:
        self.feed(FrameArrived(LogAck(job_id=job_id, next_offset=offset)))

    @rule(on=st.booleans(), comment=st.none() | st.text(max_size=5))
    def maintenance(self, on: bool, comment: str | None) -> None:  # noqa: FBT001 -- drawn by name
        self.feed(FrameArrived(Maintenance(on=on, comment=comment)))

    @rule(code=closes)
    def close_session(self, code: Any) -> None:
        self.feed(FrameArrived(Close(code=code, message="m")))

    @rule()
    def nonsense(self) -> None:
        self.feed(FrameArrived(UnknownFrame(frame_type="future")))
        self.feed(FrameArrived(make_welcome()))

    # The runner

    @rule(job_id=ids, pid=st.integers(1, 2**31 - 1))
    def job_started(self, job_id: str, pid: int) -> None:
        self.feed(JobStarted(job_id, pid))

    @rule(job_id=ids, outcome=st.sampled_from(Outcome), detail=st.none() | texts, size=sizes)
    def job_ended(self, job_id: str, outcome: Outcome, detail: str | None, size: int) -> None:
        self.feed(JobEnded(job_id, outcome, 0, detail, size))

    @rule(job_id=ids, size=sizes)
    def log_grew(self, job_id: str, size: int) -> None:
        self.feed(LogGrew(job_id, size))

    @rule(job_id=ids)
    def log_gone(self, job_id: str) -> None:
        self.feed(LogGone(job_id))

    @rule(problem=st.none() | texts)
    def runtime(self, problem: str | None) -> None:
        self.feed(RuntimeChecked(problem))

    # The rest

    @rule(seconds=st.floats(0, 40))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.feed(Tick())

    @rule()
    def stop(self) -> None:
        self.feed(StopAsked("SIGTERM"))

    @invariant()
    def slots_are_never_overbooked(self) -> None:
        assert 0 <= self.core.slots_used <= CONCURRENCY

    @invariant()
    def nothing_that_is_done_is_kept(self) -> None:
        assert not [job for job in self.core.jobs.values() if job.done]

    @invariant()
    def goodbye_is_said_once(self) -> None:
        assert self.goodbyes <= 1

    @invariant()
    def a_hello_can_be_made(self) -> None:
        held = self.core.held_jobs()
        assert len(held) == sum(job.phase is not Phase.ACCEPTING for job in self.core.jobs.values())
        assert self.core.status().slots_used == self.core.slots_used

    @invariant()
    def tokens_are_kept_no_longer_than_needed(self) -> None:
        assert all(job.offer is None for job in self.core.jobs.values() if job.phase in (Phase.RUNNING, Phase.FINISHED))


CoreMachine.TestCase.settings = PROFILE
TestCore = CoreMachine.TestCase
