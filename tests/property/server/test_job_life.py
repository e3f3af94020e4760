"""The real store with simulated agents over a network that loses requests and answers."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import StaticPool

from airflow_edge_agent.protocol.codec import pack_log
from airflow_edge_agent.protocol.frames import (
    Accept,
    AcceptAck,
    AnyFrame,
    Batch,
    Cancel,
    HeldJob,
    Hello,
    Log,
    LogAck,
    Refuse,
    Result,
    ResultAck,
    Started,
    Status,
    Versions,
    Welcome,
)
from airflow_edge_agent.protocol.jobs import HELD_STATES, RETURNABLE, JobState, Outcome
from airflow_edge_agent.protocol.states import AgentState
from airflow_edge_server.api.auth import Caller
from airflow_edge_server.api.service import Answer, Service
from airflow_edge_server.config import Settings
from airflow_edge_server.store.dispatch import Waiting, dispatch, read_rooms, sweep
from airflow_edge_server.store.models import EdgeAgent, EdgeAgentJob, EdgeAgentLog, metadata

Fate = Literal["arrives", "answer lost", "lost"]
FATES = st.sampled_from(["arrives", "arrives", "arrives", "answer lost", "lost"])
WHO = st.integers(0, 1)
WHICH = st.integers(0, 20)
LEASE_SECONDS = 10.0
SLOTS = 3


@dataclass
class Held:
    """A job as a simulated agent has it on its disk."""

    fence: int
    slots: int
    phase: Literal["offered", "accepted", "running", "finished"] = "offered"
    outcome: Outcome = Outcome.FINISHED
    log: bytes = b""
    log_acked: int = 0
    refused: bool = False
    """Airflow did not let it begin."""

    @property
    def end(self) -> Outcome | None:
        return self.outcome if self.phase == "finished" else None


@dataclass
class Agent:
    name: str
    agent_id: str
    instance_id: str
    session_id: str | None = None
    jobs: dict[str, Held] = field(default_factory=dict)
    lost: bool = False
    """Nothing comes through until its next hello."""

    def used(self) -> int:
        return sum(job.slots for job in self.jobs.values() if job.phase in {"accepted", "running"})


class JobLife(RuleBasedStateMachine):
    """Server, two agents, and everything that may go wrong between them."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
        metadata.create_all(self.engine)
        self.maker = sessionmaker(self.engine, autoflush=False, expire_on_commit=False)
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        options = Settings(
            api_enabled=True,
            heartbeat_seconds=25,
            lease_seconds=LEASE_SECONDS,
            agent_timeout_seconds=75,
            disconnect_grace_seconds=300,
            job_retention_days=1,
            log_retention_days=1,
            execution_api_url=None,
        )
        self.service = Service(
            options, self.sessions, server_version="1", airflow_version="3.3", clock=lambda: self.now
        )
        self.ids = iter(range(1, 10_000))
        self.agents = [Agent(f"agent-{n}", self.new_id(), self.new_id()) for n in range(2)]
        self.fences: dict[str, int] = {}
        self.ends: dict[str, tuple[Any, ...]] = {}
        self.runs: dict[tuple[str, int], str] = {}
        self.begun: dict[str, str] = {}
        """Who has begun with a task, as Airflow sees it: nobody else may."""
        self.waiting = 0

    def teardown(self) -> None:
        self.engine.dispose()

    def new_id(self) -> str:
        return str(uuid.UUID(int=next(self.ids)))

    @contextmanager
    def sessions(self) -> Iterator[Session]:
        with self.maker() as session:
            try:
                yield session
                session.commit()
            except BaseException:
                session.rollback()
                raise

    # The network.

    def send(self, agent: Agent, fate: Fate, *frames: AnyFrame) -> Answer | None:
        self.now += timedelta(milliseconds=10)
        if fate == "lost" or (agent.lost and not isinstance(frames[0], Hello)):
            return None
        batch = Batch(session_id=agent.session_id, frames=[frame.model_dump(mode="json") for frame in frames])
        answer = self.service.handle(Caller(agent.name, "0" * 16), batch)
        return None if fate == "answer lost" else answer

    def hear(self, agent: Agent, answer: Answer | None) -> None:
        for frame in answer.frames + answer.later if answer is not None else []:
            if isinstance(frame, Welcome):
                agent.session_id, agent.lost = frame.session_id, False
            elif isinstance(frame, LogAck) and frame.job_id in agent.jobs:
                agent.jobs[frame.job_id].log_acked = frame.next_offset
            elif isinstance(frame, AcceptAck | Cancel | ResultAck):
                self.hear_of_job(agent, frame)

    def hear_of_job(self, agent: Agent, frame: AcceptAck | Cancel | ResultAck) -> None:
        job = agent.jobs.get(frame.job_id)
        if isinstance(frame, AcceptAck) and job is not None and frame.held_fence == job.fence:
            assert not job.refused, "who was refused has no claim"
            job.fence = frame.fence
            return
        if job is None or job.fence != frame.fence:
            return
        if isinstance(frame, Cancel) and job.phase == "running" and self.begun.get(frame.job_id) == agent.name:
            with self.sessions() as session:
                row = session.get(EdgeAgentJob, frame.job_id)
                assert row is not None
                assert row.cancel_reason is not None or row.kind != "task", "who runs is not stopped without a reason"
        if isinstance(frame, ResultAck):
            if job.phase == "finished":
                del agent.jobs[frame.job_id]
        elif isinstance(frame, AcceptAck):
            job.phase = "accepted" if job.phase == "offered" else job.phase
        elif job.phase == "offered":
            del agent.jobs[frame.job_id]
        else:
            job.phase, job.outcome = "finished", Outcome.KILLED

    def all(self, *phases: str) -> list[tuple[Agent, str, Held]]:
        return [
            (agent, job_id, job) for agent in self.agents for job_id, job in agent.jobs.items() if job.phase in phases
        ]

    def one(self, which: int, *phases: str) -> tuple[Agent, str, Held]:
        entries = self.all(*phases)
        return entries[which % len(entries)]

    # What happens.

    @initialize(
        jobs=st.lists(st.tuples(st.integers(1, 2), st.integers(0, 2), st.booleans()), min_size=2, max_size=5),
        steps=st.lists(st.integers(0, 3), min_size=5, max_size=5),
    )
    def connect(self, jobs: list[tuple[int, int, bool]], steps: list[int]) -> None:
        """Begin with jobs at every stage: the way there is well trodden, the trouble comes after it."""
        for agent in self.agents:
            self.hello(agent, "arrives")
        self.queue_jobs(jobs)
        self.poll(set(range(len(self.agents))), set(), set())
        for (agent, job_id, job), count in zip(self.all("offered"), steps, strict=False):
            if count >= 1:
                self.hear(agent, self.send(agent, "arrives", Accept(job_id=job_id, fence=job.fence)))
            if count >= 2:
                self.begin(agent, job_id, job, "arrives")

    def hello(self, agent: Agent, fate: Fate) -> None:
        # An offer that is not accepted yet is kept in memory only.
        agent.jobs = {job_id: job for job_id, job in agent.jobs.items() if job.phase != "offered"}
        held = [
            HeldJob(
                job_id=job_id,
                fence=job.fence,
                phase=job.phase,
                outcome=job.outcome if job.phase == "finished" else None,
            )
            for job_id, job in agent.jobs.items()
            if job.phase != "offered"
        ]
        hello = Hello(
            protocol_min=1,
            protocol_max=1,
            name=agent.name,
            agent_id=agent.agent_id,
            boot_id="boot",
            instance_id=agent.instance_id,
            hostname="host",
            versions=Versions(agent="1", python="3"),
            queues=["q"],
            concurrency=SLOTS,
            state=AgentState.IDLE,
            jobs=held,
        )
        self.hear(agent, self.send(agent, fate, hello))

    @rule(jobs=st.lists(st.tuples(st.integers(1, 2), st.integers(0, 2), st.booleans()), min_size=1, max_size=4))
    @precondition(lambda self: self.waiting < 3)
    def queue_jobs(self, jobs: list[tuple[int, int, bool]]) -> None:
        with self.sessions() as session:
            for slots, weight, is_callback in jobs:
                session.add(
                    EdgeAgentJob(
                        id=self.new_id(),
                        kind="callback" if is_callback else "task",
                        owner="scheduler",
                        queue="q",
                        slots=slots,
                        priority_weight=weight,
                        ti_id="ti",
                        workload={},
                        queued_at=self.now,
                    )
                )

    @rule(who=st.sets(WHO, min_size=1), lost=st.sets(WHO, max_size=1), silent=st.sets(WHO, max_size=1))
    @precondition(lambda self: self.waiting > 0)
    def poll(self, who: set[int], lost: set[int], silent: set[int]) -> None:
        who = {n for n in who if not self.agents[n].lost}
        polling = [self.agents[n] for n in sorted(who)]
        for n in sorted(who - silent):
            agent = self.agents[n]
            state = AgentState.RUNNING if agent.jobs else AgentState.IDLE
            self.hear(
                agent, self.send(agent, "arrives", Status(state=state, slots_total=SLOTS, slots_used=agent.used()))
            )
        with self.sessions() as session:
            rooms = read_rooms(session, [agent.name for agent in polling])
        waiting = [Waiting(agent.name, agent.session_id or "") for agent in polling]
        found = dispatch(self.sessions, waiting, rooms, now=self.now, lease_seconds=LEASE_SECONDS, mint=str)
        for name, offers in found.offers.items():
            number = int(name[-1])
            for offer in offers if number not in lost else []:
                known = self.agents[number].jobs.get(offer.job_id)
                if known is None or known.fence < offer.fence:
                    self.agents[number].jobs[offer.job_id] = Held(offer.fence, offer.slots)

    @rule(which=WHICH, fate=FATES)
    @precondition(lambda self: self.all("offered"))
    def accept(self, which: int, fate: Fate) -> None:
        agent, job_id, job = self.one(which, "offered")
        self.hear(agent, self.send(agent, fate, Accept(job_id=job_id, fence=job.fence)))

    @rule(which=WHICH, fate=FATES)
    @precondition(lambda self: self.all("offered"))
    def refuse(self, which: int, fate: Fate) -> None:
        agent, job_id, job = self.one(which, "offered")
        del agent.jobs[job_id]
        self.hear(agent, self.send(agent, fate, Refuse(job_id=job_id, fence=job.fence, reason="full")))

    @rule(which=WHICH, fate=FATES)
    @precondition(lambda self: self.all("accepted", "running"))
    def start(self, which: int, fate: Fate) -> None:
        self.begin(*self.one(which, "accepted", "running"), fate)

    def begin(self, agent: Agent, job_id: str, job: Held, fate: Fate) -> None:
        if job.phase == "accepted":
            assert (job_id, job.fence) not in self.runs, "one dispatch starts once"
            self.runs[job_id, job.fence] = agent.name
            job.refused = self.begun.setdefault(job_id, agent.name) != agent.name
        job.phase = "running"
        self.hear(agent, self.send(agent, fate, Started(job_id=job_id, fence=job.fence, pid=1)))

    @rule(which=WHICH, fate=FATES, data=st.binary(max_size=6), back=st.integers(0, 4))
    @precondition(lambda self: self.all("running", "finished"))
    def ship_log(self, which: int, fate: Fate, data: bytes, back: int) -> None:
        agent, job_id, job = self.one(which, "running", "finished")
        if job.phase == "running":
            job.log += data
        offset = max(0, job.log_acked - back)
        frame = Log(job_id=job_id, offset=offset, data=pack_log(job.log[offset:]))
        self.hear(agent, self.send(agent, fate, frame, frame))

    @rule(which=WHICH, fate=FATES, outcome=st.sampled_from([*Outcome]))
    @precondition(lambda self: self.all("accepted", "running", "finished"))
    def finish(self, which: int, fate: Fate, outcome: Outcome) -> None:
        agent, job_id, job = self.one(which, "accepted", "running", "finished")
        if job.phase != "finished":
            job.outcome = Outcome.NOT_STARTED if job.phase == "accepted" else outcome
            if job.phase == "running" and (job.refused or outcome is Outcome.SUPERSEDED):
                job.outcome = Outcome.SUPERSEDED if job.refused else Outcome.FINISHED
            job.phase = "finished"
            if job.outcome in RETURNABLE and self.begun.get(job_id) == agent.name:
                del self.begun[job_id]
        frame = Result(job_id=job_id, fence=job.fence, outcome=job.outcome, log_bytes=len(job.log))
        self.hear(agent, self.send(agent, fate, frame))

    @rule(who=WHO, fate=FATES, forgets=st.sampled_from([False, False, True]))
    def restart(self, who: int, fate: Fate, forgets: bool) -> None:  # noqa: FBT001  Hypothesis passes it by name
        agent = self.agents[who]
        agent.instance_id = self.new_id()
        if forgets:
            agent.jobs.clear()
        self.hello(agent, fate)
        if fate != "arrives":
            # An agent goes on saying hello until it is welcomed.
            self.hello(agent, "arrives")

    @rule(who=WHO)
    def lose(self, who: int) -> None:
        """Lose an agent, and take from it what it has not begun with by all that is known here."""
        agent = self.agents[who]
        agent.lost = True
        with self.sessions() as session:
            query = select(EdgeAgentJob).where(
                EdgeAgentJob.agent_name == agent.name,
                EdgeAgentJob.state == JobState.ACCEPTED,
                EdgeAgentJob.kind == "task",
                EdgeAgentJob.cancel_reason.is_(None),
            )
            for job in session.scalars(query):
                if job.id not in self.begun:
                    job.state, job.agent_name, job.accepted_at, job.offered_at = JobState.QUEUED, None, None, None

    @rule(seconds=st.sampled_from([1, 6, 11]))
    def time_passes(self, seconds: int) -> None:
        for agent, job_id, job in self.all("running"):
            if job.refused:
                # It takes Airflow a moment to refuse a start, not ten seconds.
                job.phase, job.outcome = "finished", Outcome.SUPERSEDED
                frame = Result(job_id=job_id, fence=job.fence, outcome=job.outcome, log_bytes=len(job.log))
                self.hear(agent, self.send(agent, "arrives", frame))
        self.now += timedelta(seconds=seconds)
        sweep(self.sessions, now=self.now)

    @rule(which=WHICH)
    @precondition(lambda self: self.all("offered", "accepted", "running"))
    def cancel(self, which: int) -> None:
        _, job_id, _ = self.one(which, "offered", "accepted", "running")
        with self.sessions() as session:
            job = session.get(EdgeAgentJob, job_id)
            if job is not None and job.state != JobState.FINISHED:
                job.cancel_reason = "taken back"

    # What must hold.

    @precondition(lambda self: bool(self.agents))
    @invariant()
    def everything_holds(self) -> None:
        with self.sessions() as session:
            rows = {job.id: job for job in session.scalars(select(EdgeAgentJob))}
            known = set(session.scalars(select(EdgeAgent.name)))
            pieces = session.scalars(select(EdgeAgentLog).order_by(EdgeAgentLog.offset)).all()
        stored: dict[str, bytes] = dict.fromkeys(rows, b"")
        for piece in pieces:
            assert piece.offset == len(stored[piece.job_id])
            stored[piece.job_id] += piece.data

        self.waiting = sum(job.state == JobState.QUEUED for job in rows.values())
        held = dict.fromkeys(known, 0)
        for job in rows.values():
            assert job.fence >= self.fences.get(job.id, 0), "fences never go back"
            self.fences[job.id] = job.fence
            assert len(stored[job.id]) == job.log_next_offset
            if JobState(job.state) in HELD_STATES:
                assert job.agent_name is not None
                held[job.agent_name] += job.slots
            elif job.state == JobState.QUEUED:
                assert (job.agent_name, job.lease_until, job.outcome) == (None, None, None)
            else:
                assert job.outcome is not None
                assert job.finished_at is not None
                end = (job.outcome, job.finished_at, job.agent_name, job.fence)
                if job.outcome == Outcome.SUPERSEDED:
                    # Somebody else has begun, and may come back.
                    continue
                assert self.ends.setdefault(job.id, end) == end, "an end is final"
            assert (job.lease_until is not None) == (job.state == JobState.OFFERED)
        assert all(slots <= SLOTS for slots in held.values()), "slots are conserved"

        for agent in self.agents:
            for job_id, mine in agent.jobs.items():
                row = rows[job_id]
                if mine.phase in {"accepted", "running"}:
                    owner = (row.agent_name, row.fence) == (agent.name, mine.fence)
                    given_up = agent.lost or mine.refused or row.agent_name == agent.name
                    assert owner or given_up or row.state == JobState.FINISHED, "one live lease per job"
                if (row.agent_name, row.fence) == (agent.name, mine.fence):
                    assert mine.log.startswith(stored[job_id]), "the log is what was written"


TestJobLife = JobLife.TestCase
TestJobLife.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
