"""Several agents and a model of the server, joined by links that delay, reorder, duplicate and break. Time is virtual.

What the carriers guarantee is all that the links guarantee: within a session the agent's frames arrive in order, any
frame may come twice, and whatever is lost takes its session with it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from airflow_edge_agent.core.agent import AgentCore
from airflow_edge_agent.core.events import (
    Event,
    ForgetJob,
    FrameArrived,
    JobEnded,
    JobFound,
    JobStarted,
    LinkLost,
    LinkOpened,
    LogGrew,
    Send,
    ShipLog,
    SignalJob,
    StartJob,
    Tick,
)
from airflow_edge_agent.core.policy import Limits
from airflow_edge_agent.protocol.codec import pack_log, unpack_log
from airflow_edge_agent.protocol.frames import (
    Accept,
    AcceptAck,
    AgentFrame,
    Cancel,
    HeldJob,
    Log,
    LogAck,
    Refuse,
    Result,
    ResultAck,
    ServerFrame,
    Started,
    Status,
)
from airflow_edge_agent.protocol.jobs import HELD_STATES, RETURNABLE, JobEvent, JobState, Outcome, next_job_state
from fakes.frames import make_offer, make_welcome

AGENTS = 2
CONCURRENCY = 2
LEASE_SECONDS = 10.0


@dataclass
class ServerJob:
    """A row of the server."""

    job_id: str
    slots: int
    state: JobState = JobState.QUEUED
    fence: int = 0
    agent: int | None = None
    lease_until: float = 0.0
    log: bytes = b""
    outcome: Outcome | None = None
    cancelled: bool = False

    def apply(self, event: JobEvent) -> None:
        self.state = next_job_state(self.state, event)
        if self.state is JobState.QUEUED:
            self.agent, self.log = None, b""
            if self.cancelled:
                self.state, self.outcome = next_job_state(self.state, JobEvent.END), Outcome.REVOKED


@dataclass
class Disk:
    """A job's files on an agent, and whether its process lives."""

    fence: int
    slots: int
    alive: bool = True
    log: bytes = b""
    ended: JobEnded | None = None


@dataclass
class Node:
    """An agent's host: the daemon's core, and what outlives it."""

    number: int
    core: AgentCore
    disk: dict[str, Disk] = field(default_factory=dict)
    session: int = 0
    """0: not connected."""
    up: deque[AgentFrame] = field(default_factory=deque)
    down: list[ServerFrame] = field(default_factory=list)


def new_core() -> AgentCore:
    return AgentCore(Limits(CONCURRENCY, kill_grace_seconds=5, drain_deadline_seconds=0))


class Fleet(RuleBasedStateMachine):
    """The rules break and delay; the teardown heals everything and checks that all has come to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.nodes = [Node(number, new_core()) for number in range(AGENTS)]
        self.jobs: dict[str, ServerJob] = {}
        self.final_logs: dict[tuple[str, int], bytes] = {}
        self.starts: dict[tuple[str, int], int] = {}
        self.sessions = 0

    # An agent

    def feed(self, node: Node, event: Event) -> None:
        for instruction in node.core.handle(event, self.now):
            match instruction:
                case Send(frame):
                    if node.session and not isinstance(frame, Status):
                        node.up.append(frame)
                case StartJob(offer):
                    key = (offer.job_id, offer.fence)
                    self.starts[key] = self.starts.get(key, 0) + 1
                    node.disk[offer.job_id] = Disk(offer.fence, offer.slots)
                case SignalJob(job_id, signal):
                    if signal == "KILL" and node.disk[job_id].alive:
                        self.end(node, job_id, Outcome.KILLED)
                case ShipLog(job_id, offset, limit):
                    data = node.disk[job_id].log[offset : offset + limit]
                    if node.session:
                        node.up.append(Log(job_id=job_id, offset=offset, data=pack_log(data)))
                case ForgetJob(job_id):
                    del node.disk[job_id]
                case _:
                    pass

    def end(self, node: Node, job_id: str, outcome: Outcome) -> None:
        disk = node.disk[job_id]
        disk.alive = False
        disk.ended = JobEnded(job_id, outcome, 0, log_bytes=len(disk.log))
        self.final_logs[job_id, disk.fence] = disk.log
        self.feed(node, disk.ended)

    def connect(self, node: Node) -> None:
        held = node.core.held_jobs()
        self.sessions += 1
        node.session = self.sessions
        answers = self.reconcile(node, held)
        self.feed(node, LinkOpened(make_welcome()))
        node.down.extend(answers)

    # The server

    def reconcile(self, node: Node, held: list[HeldJob]) -> list[ServerFrame]:
        frames: list[ServerFrame] = []
        listed = {job.job_id: job for job in held}
        for entry in held:
            job = self.jobs[entry.job_id]
            mine = job.agent == node.number and job.fence == entry.fence and job.state in HELD_STATES
            if entry.phase == "finished":
                continue
            if not mine or job.cancelled:
                frames.append(Cancel(job_id=entry.job_id, fence=entry.fence, reason="not yours"))
            if mine:
                if job.state is JobState.OFFERED:
                    job.apply(JobEvent.ACCEPT)
                if entry.phase == "running":
                    job.apply(JobEvent.START)
                frames.append(AcceptAck(job_id=job.job_id, fence=job.fence))
                frames.append(LogAck(job_id=job.job_id, next_offset=len(job.log)))
        for job in self.jobs.values():
            if job.agent == node.number and job.state in HELD_STATES and job.job_id not in listed:
                assert job.state is not JobState.RUNNING, "an agent never forgets a job that the server saw running"
                job.apply(JobEvent.RETURN)
        return frames

    def take(self, node: Node, frame: AgentFrame) -> list[ServerFrame]:
        match frame:
            case Accept() | Refuse() | Started() | Result():
                job = self.jobs[frame.job_id]
                mine = job.agent == node.number and job.fence == frame.fence
            case Log(job_id=job_id, offset=offset, data=packed):
                return [self.append(node, self.jobs[job_id], offset, unpack_log(packed))]
            case _:
                return []
        match frame:
            case Accept():
                held = (JobState.OFFERED, JobState.ACCEPTED, JobState.RUNNING)
                if not mine or job.state not in held or job.cancelled:
                    return [Cancel(job_id=job.job_id, fence=frame.fence, reason="too late")]
                job.apply(JobEvent.ACCEPT)
                return [AcceptAck(job_id=job.job_id, fence=job.fence)]
            case Refuse():
                if mine and job.state is JobState.OFFERED:
                    job.apply(JobEvent.REFUSE)
            case Started():
                if not mine:
                    return [Cancel(job_id=job.job_id, fence=frame.fence, reason="not yours")]
                job.apply(JobEvent.START)
            case Result(outcome=outcome):
                if mine and job.state in (JobState.ACCEPTED, JobState.RUNNING):
                    again = outcome in RETURNABLE and job.state is JobState.ACCEPTED and not job.cancelled
                    job.apply(JobEvent.RETURN if again else JobEvent.FINISH)
                    job.outcome = job.outcome if again else outcome
                return [ResultAck(job_id=job.job_id, fence=frame.fence)]
        return []

    def append(self, node: Node, job: ServerJob, offset: int, data: bytes) -> LogAck:
        end = offset + len(data)
        if job.agent != node.number:
            return LogAck(job_id=job.job_id, next_offset=end)
        if offset <= len(job.log) < end:
            job.log += data[len(job.log) - offset :]
        return LogAck(job_id=job.job_id, next_offset=len(job.log))

    def expire_leases(self) -> None:
        for job in self.jobs.values():
            if job.state is JobState.OFFERED and self.now > job.lease_until:
                job.apply(JobEvent.LEASE_EXPIRED)

    # Rules

    @initialize(slots=st.lists(st.integers(1, CONCURRENCY), min_size=1, max_size=4))
    def begin(self, slots: list[int]) -> None:
        for number in range(AGENTS):
            self.reconnect(number)
        for wanted in slots:
            self.submit(wanted)

    @rule(slots=st.integers(1, CONCURRENCY))
    def submit(self, slots: int) -> None:
        if len(self.jobs) < 6:
            job_id = f"00000000-0000-4000-8000-{len(self.jobs):012d}"
            self.jobs[job_id] = ServerJob(job_id, slots)

    @rule(number=st.integers(0, AGENTS - 1))
    def offer(self, number: int) -> None:
        node = self.nodes[number]
        used = sum(job.slots for job in self.jobs.values() if job.agent == number and job.state in HELD_STATES)
        for job in self.jobs.values():
            if node.session and job.state is JobState.QUEUED and not job.cancelled and used + job.slots <= CONCURRENCY:
                job.apply(JobEvent.OFFER)
                job.agent, job.fence, job.lease_until = number, job.fence + 1, self.now + LEASE_SECONDS
                used += job.slots
                node.down.append(
                    make_offer(job_id=job.job_id, fence=job.fence, slots=job.slots, lease_seconds=LEASE_SECONDS)
                )

    @rule(number=st.integers(0, AGENTS - 1), count=st.integers(1, 5), twice=st.booleans())
    def deliver_up(self, number: int, count: int = 1, *, twice: bool) -> None:
        node = self.nodes[number]
        for _ in range(count if node.session else 0):
            if node.up:
                frame = node.up.popleft()
                for _ in range(1 + twice):
                    node.down.extend(self.take(node, frame))

    @rule(number=st.integers(0, AGENTS - 1), which=st.lists(st.integers(0, 9), min_size=1), twice=st.booleans())
    def deliver_down(self, number: int, which: list[int], *, twice: bool) -> None:
        node = self.nodes[number]
        for index in which if node.session else ():
            if node.down:
                frame = node.down.pop(index % len(node.down))
                for _ in range(1 + twice):
                    self.feed(node, FrameArrived(frame))
                if twice:
                    node.down.append(frame)  # and once more, much later
                    break

    @rule(number=st.integers(0, AGENTS - 1))
    def all_goes_well(self, number: int) -> None:
        self.offer(number)
        for _ in range(3):
            self.deliver_down(number, [0] * 9, twice=False)
            self.deliver_up(number, 9, twice=False)

    @rule(number=st.integers(0, AGENTS - 1))
    def cut(self, number: int) -> None:
        node = self.nodes[number]
        if node.session:
            node.session = 0
            node.up.clear()
            node.down.clear()
            self.feed(node, LinkLost("cut"))

    @rule(number=st.integers(0, AGENTS - 1))
    def reconnect(self, number: int) -> None:
        if not self.nodes[number].session:
            self.connect(self.nodes[number])

    @rule(number=st.integers(0, AGENTS - 1))
    def daemon_restarts(self, number: int) -> None:
        node = self.nodes[number]
        self.cut(number)
        node.core = new_core()
        for job_id, disk in node.disk.items():
            pid = 7 if disk.ended is None else None
            self.feed(node, JobFound(job_id, disk.fence, disk.slots, "found", pid, disk.ended))

    @rule(number=st.integers(0, AGENTS - 1), text=st.binary(max_size=40))
    def work(self, number: int, text: bytes) -> None:
        node = self.nodes[number]
        for job_id, disk in node.disk.items():
            if disk.alive:
                self.feed(node, JobStarted(job_id, 7))
                disk.log += text
                self.feed(node, LogGrew(job_id, len(disk.log)))

    @rule(number=st.integers(0, AGENTS - 1), outcome=st.sampled_from([Outcome.FINISHED, Outcome.NOT_STARTED]))
    def finish_one(self, number: int, outcome: Outcome) -> None:
        node = self.nodes[number]
        for job_id, disk in list(node.disk.items()):
            if disk.alive:
                # What has been seen running cannot turn out never to have started.
                running = disk.log or node.core.jobs[job_id].pid is not None
                self.end(node, job_id, Outcome.FINISHED if running else outcome)
                return

    @rule(which=st.integers(0, 5))
    def cancel(self, which: int) -> None:
        if which < len(self.jobs):
            job = list(self.jobs.values())[which]
            job.cancelled = True
            if job.state is JobState.QUEUED:
                job.apply(JobEvent.END)
                job.outcome = Outcome.REVOKED
            elif job.state in HELD_STATES and job.agent is not None and self.nodes[job.agent].session:
                self.nodes[job.agent].down.append(Cancel(job_id=job.job_id, fence=job.fence, reason="asked"))

    @rule(seconds=st.floats(0.1, 25))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.expire_leases()
        for node in self.nodes:
            self.feed(node, Tick())

    # Promises

    @invariant()
    def at_most_one_copy_runs(self) -> None:
        for job_id in self.jobs:
            assert sum(job_id in node.disk and node.disk[job_id].alive for node in self.nodes) <= 1

    @invariant()
    def every_fence_is_started_at_most_once(self) -> None:
        assert all(count == 1 for count in self.starts.values())

    @invariant()
    def no_side_overbooks(self) -> None:
        for node in self.nodes:
            assert node.core.slots_used <= CONCURRENCY
            alive = sum(disk.slots for disk in node.disk.values() if disk.alive)
            assert alive <= node.core.slots_used
            held = [job for job in self.jobs.values() if job.agent == node.number and job.state in HELD_STATES]
            assert sum(job.slots for job in held) <= CONCURRENCY

    @invariant()
    def the_servers_log_is_a_beginning_of_the_real_one(self) -> None:
        for job in self.jobs.values():
            if job.agent is not None and job.log:
                disk = self.nodes[job.agent].disk.get(job.job_id)
                real = self.final_logs.get((job.job_id, job.fence)) or (disk.log if disk else b"")
                assert real.startswith(job.log)

    def teardown(self) -> None:
        for _ in range(60):
            for node in self.nodes:
                self.reconnect(node.number)
                self.offer(node.number)
                while node.up or node.down:
                    while node.up:
                        self.deliver_up(node.number, twice=False)
                    while node.down:
                        self.deliver_down(node.number, [0], twice=False)
                self.work(node.number, b"last line\n")
                self.finish_one(node.number, Outcome.FINISHED)
            self.time_passes(3)
        for job in self.jobs.values():
            assert job.state is JobState.FINISHED, job
            assert job.outcome is not None
            if job.outcome is Outcome.FINISHED:
                assert job.log == self.final_logs[job.job_id, job.fence]
        for node in self.nodes:
            assert node.core.jobs == {}
            assert node.disk == {}
            assert node.core.slots_used == 0


Fleet.TestCase.settings = settings(
    max_examples=300,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
TestFleet = Fleet.TestCase


def test_a_confirmation_that_took_longer_than_the_lease() -> None:
    fleet = Fleet()
    fleet.reconnect(0)
    fleet.submit(1)
    fleet.offer(0)
    fleet.deliver_down(0, [0], twice=False)
    fleet.deliver_up(0, twice=False)
    (job,) = fleet.jobs.values()
    assert job.state is JobState.ACCEPTED
    fleet.time_passes(LEASE_SECONDS + 1)
    assert fleet.nodes[0].core.jobs == {}
    fleet.teardown()
    assert job.outcome is Outcome.FINISHED
    assert job.fence == 2
