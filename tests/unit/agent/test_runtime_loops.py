"""The loops around the core, with everything around them in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from airflow_edge_agent.core.agent import AgentCore
from airflow_edge_agent.core.backoff import Backoff
from airflow_edge_agent.core.events import FrameArrived, JobEnded, LinkOpened, RuntimeChecked, StopAsked
from airflow_edge_agent.core.jobs import Phase
from airflow_edge_agent.core.policy import Limits
from airflow_edge_agent.ports import (
    CredentialRefused,
    RunnerEnded,
    RunnerError,
    RunnerGone,
    RunnerNotRenewed,
    RunnerReady,
    RunnerRefused,
    RunnerStarted,
    RunnerUnusable,
    ServerLeft,
    StoreError,
    TransportError,
)
from airflow_edge_agent.protocol.codec import decode_server_frame, unpack_log
from airflow_edge_agent.protocol.frames import (
    Accept,
    AcceptAck,
    AgentFrame,
    Close,
    Goodbye,
    Heartbeat,
    Intervals,
    Log,
    LogAck,
    Maintenance,
    Result,
    ResultAck,
    ServerFrame,
    Started,
    Status,
    Usage,
)
from airflow_edge_agent.protocol.jobs import Outcome
from airflow_edge_agent.protocol.states import AgentState
from airflow_edge_agent.runtime.guard import LoopEnded, run_guarded
from airflow_edge_agent.runtime.jobs import recover, runner_loop, runtime_loop, time_loop
from airflow_edge_agent.runtime.link import LinkLoop
from airflow_edge_agent.runtime.outbox import Outbox
from airflow_edge_agent.runtime.pump import Pump
from fakes import FixedProbe, MemoryJobStore, MemoryRunner, MemoryTransport, ScriptedServer
from fakes.frames import make_hello, make_offer, make_welcome, new_id
from fakes.waiting import eventually


class Agent:
    """The daemon's inside, put together from fakes."""

    def __init__(self) -> None:
        self.server = ScriptedServer()
        self.server.on_hello = lambda _: [make_welcome(intervals=Intervals(log_seconds=0.05))]
        self.transport = MemoryTransport(self.server)
        self.store = MemoryJobStore()
        self.runner = MemoryRunner()
        self.core = AgentCore(Limits(4, kill_grace_seconds=5, drain_deadline_seconds=0))
        self.pump = Pump(
            self.core,
            store=self.store,
            runner=self.runner,
            boot_id="boot",
            default_execution_url="https://a/execution/",
        )
        self.link = LinkLoop(
            self.pump,
            self.transport,
            FixedProbe(),
            hello=lambda: make_hello(jobs=self.core.held_jobs()),
            backoff=Backoff(first_seconds=0.001, longest_seconds=0.002),
        )
        self.versions: dict[str, str] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        loops = [
            asyncio.create_task(self.link.run()),
            asyncio.create_task(runner_loop(self.pump, self.runner, self.store, self.versions.update)),
            asyncio.create_task(time_loop(self.pump, self.store)),
            asyncio.create_task(self.pump.signal_loop()),
        ]
        try:
            yield
        finally:
            for loop in loops:
                loop.cancel()
            ended = await asyncio.gather(*loops, return_exceptions=True)
            await self.pump.settle()
        assert [e for e in ended if not isinstance(e, asyncio.CancelledError)] == []

    def heard(self, kind: type[AgentFrame]) -> list[Any]:
        return [frame for frame in self.server.received if isinstance(frame, kind)]


@pytest.fixture
def agent() -> Agent:
    return Agent()


def obliging(frames: list[AgentFrame]) -> list[ServerFrame]:
    """A server that takes everything."""
    answers: list[ServerFrame] = []
    for frame in frames:
        match frame:
            case Accept():
                answers.append(AcceptAck(job_id=frame.job_id, fence=frame.fence))
            case Result():
                answers.append(ResultAck(job_id=frame.job_id, fence=frame.fence))
            case Log():
                end = frame.offset + len(unpack_log(frame.data))
                answers.append(LogAck(job_id=frame.job_id, next_offset=end))
            case _:
                pass
    return answers


async def test_a_job_from_offer_to_oblivion(agent: Agent) -> None:
    agent.server.on_send = obliging
    offer = make_offer()
    async with agent.running():
        await eventually(lambda: agent.core.connected)
        agent.server.push(offer)
        await eventually(lambda: agent.heard(Started))
        assert agent.runner.servers == ["https://a/execution/"]
        assert agent.versions["task_sdk"] == "1.3.2"
        agent.store.runner_logged(offer.job_id, b"hello\n")
        await eventually(lambda: agent.heard(Log))
        agent.store.runner_logged(offer.job_id, b"world\n")
        agent.store.runner_ended(offer.job_id, Outcome.FINISHED, 0, None, Usage(cpu_seconds=1))
        agent.runner.end(offer.job_id)
        await eventually(lambda: agent.store.forgotten == [offer.job_id])
    (result,) = agent.heard(Result)
    assert (result.outcome, result.log_bytes, result.usage.cpu_seconds) == (Outcome.FINISHED, 12, 1)
    assert b"".join(unpack_log(frame.data) for frame in agent.heard(Log)) == b"hello\nworld\n"
    assert agent.heard(Status)[-1].slots_used == 0


async def test_the_servers_execution_api_wins_over_the_default(agent: Agent) -> None:
    agent.server.on_hello = lambda _: [make_welcome(execution_api_url="https://b/execution/")]
    agent.server.on_send = obliging
    async with agent.running():
        await eventually(lambda: agent.core.connected)
        agent.server.push(make_offer())
        await eventually(lambda: agent.runner.servers)
    assert agent.runner.servers == ["https://b/execution/"]


@pytest.mark.parametrize("where", ["runner", "store"])
async def test_a_job_that_cannot_be_handed_over_goes_back_after_the_reason_is_told(agent: Agent, where: str) -> None:
    if where == "runner":
        agent.runner.fault = RunnerError("/x/python: cannot be run")
    else:
        agent.store.fault = StoreError("/state: No space left on device")
    agent.server.on_send = obliging
    async with agent.running():
        await eventually(lambda: agent.core.connected)
        agent.server.push(make_offer())
        await eventually(lambda: agent.heard(Result))
        await eventually(lambda: agent.heard(Status)[-1].problem)
    assert agent.heard(Result)[0].outcome is Outcome.NOT_STARTED
    assert agent.heard(Result)[0].detail == agent.heard(Status)[-1].problem


async def test_a_log_that_cannot_be_read_does_not_hold_the_job(agent: Agent) -> None:
    agent.server.on_send = obliging
    offer = make_offer()
    async with agent.running():
        await eventually(lambda: agent.core.connected)
        agent.server.push(offer)
        await eventually(lambda: agent.heard(Started))
        agent.pump.feed(JobEnded(offer.job_id, Outcome.FINISHED, 0, log_bytes=500))
        await eventually(lambda: agent.store.forgotten == [offer.job_id])


async def test_reconnect_after_a_cut_tells_the_results_again(agent: Agent) -> None:
    agent.server.on_send = lambda frames: [f for f in obliging(frames) if not isinstance(f, ResultAck)]
    offer = make_offer()
    async with agent.running():
        await eventually(lambda: agent.core.connected)
        agent.server.push(offer)
        await eventually(lambda: agent.heard(Started))
        agent.store.runner_ended(offer.job_id, Outcome.FINISHED, 0, None, Usage())
        agent.runner.end(offer.job_id)
        await eventually(lambda: agent.heard(Result))
        agent.server.on_send = obliging
        agent.transport.links[-1].cut()
        await eventually(lambda: agent.store.forgotten)
    assert [job.phase for job in agent.server.hellos[-1].jobs] == ["finished"]
    assert agent.transport.links[0].closed


async def test_a_server_that_does_not_relay_is_named_once_and_its_jobs_run(agent: Agent) -> None:
    """One from before the relay sends a token with each offer, as one does that is set to it."""
    agent.server.on_send = obliging
    agent.pump.wants_relay = True
    agent.pump.access = lambda job_id: ("http://edge-agent/execution/", Path("/execution.sock"), f"{job_id}.secret")
    direct = [make_offer(token="airflow's"), make_offer(token="airflow's")]
    relayed = make_offer(token="")
    with capture_logs() as logs:
        async with agent.running():
            await eventually(lambda: agent.core.connected)
            for offer in (*direct, relayed):
                agent.server.push(offer)
                await eventually(lambda: offer.job_id in agent.runner.offers)  # noqa: B023  awaited before the next
    assert agent.runner.relays == [None, None, Path("/execution.sock")]
    assert agent.runner.servers[0] == "https://a/execution/"
    said = [line for line in logs if "does not relay" in line["event"]]
    assert [line["execution_api"] for line in said] == ["https://a/execution/"]


async def test_waits_grow_and_the_same_fault_is_said_once(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    real_sleep = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds > 0:
            waits.append(seconds)
        await real_sleep(0)

    monkeypatch.setattr("airflow_edge_agent.runtime.link.asyncio.sleep", sleep)
    agent.link._backoff = Backoff()
    agent.server.fault = TransportError("https://a: cannot connect; is the api-server running there?")
    with capture_logs() as logs:
        loop = asyncio.create_task(agent.link.run())
        async with asyncio.timeout(10):
            while len(waits) < 9:
                await real_sleep(0)
        busy = TransportError("busy")
        busy.retry_after_seconds = 120
        agent.server.fault = busy
        async with asyncio.timeout(10):
            while max(waits) < 120:
                await real_sleep(0)
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
    for number, wait in enumerate(waits[:9]):
        bound = min(30, 0.5 * 2**number)
        assert bound / 2 <= wait <= bound
    assert [line["reason"] for line in logs] == [
        "https://a: cannot connect; is the api-server running there?",
        "busy",
    ]


async def test_a_name_in_use_is_asked_for_again_soon_and_ever_again(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    real_sleep = asyncio.sleep

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await real_sleep(0)

    monkeypatch.setattr("airflow_edge_agent.runtime.link.asyncio.sleep", sleep)
    agent.link._backoff = Backoff(first_seconds=100, longest_seconds=100)
    agent.server.on_hello = lambda _: [Close(code="name_in_use", message="taken by b")]
    loop = asyncio.create_task(agent.link.run())
    async with asyncio.timeout(10):
        while len(agent.server.hellos) < 20:
            await real_sleep(0)
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
    pauses = [wait for wait in waits if wait > 0]
    assert len(pauses) >= 19
    assert all(1 <= wait <= 2 for wait in pauses)
    assert max(pauses) - min(pauses) > 0.05
    assert agent.link._backoff.tries == 0


async def test_a_job_that_gets_through_ends_the_wait(agent: Agent) -> None:
    agent.server.fault = TransportError("nobody there")
    agent.link._backoff = Backoff(first_seconds=1_000, longest_seconds=1_000)
    async with agent.running():
        await eventually(lambda: agent.link._backoff.tries == 1)
        agent.server.fault = None
        agent.pump.reached.set()
        await eventually(lambda: agent.core.connected)


async def test_a_refused_credential_ends_the_agent_at_the_third_time(agent: Agent) -> None:
    agent.server.fault = CredentialRefused("https://a: the server refuses this agent's token")
    with capture_logs() as logs:
        async with agent.running():
            await asyncio.wait_for(agent.pump.exiting.wait(), 10)
    assert agent.pump.exit_code == 77
    assert [line["event"] for line in logs if line["log_level"] == "error"] == [
        "https://a: the server refuses this agent's token"
    ]


async def test_a_credential_refused_once_is_forgiven(agent: Agent) -> None:
    agent.server.fault = CredentialRefused("no")
    agent.link._backoff = Backoff(first_seconds=0.2)
    async with agent.running():
        await eventually(lambda: agent.link._refusals >= 1)
        agent.server.fault = None
        await eventually(lambda: agent.core.connected)
        assert agent.link._refusals == 0
    assert agent.pump.exit_code is None


@pytest.mark.parametrize(("code", "exit_code"), [("superseded", 75), ("protocol_mismatch", 76), ("name_mismatch", 77)])
async def test_a_close_that_ends_the_agent(agent: Agent, code: Any, exit_code: int) -> None:
    agent.server.on_hello = lambda _: [Close(code=code, message="m")]
    async with agent.running():
        await asyncio.wait_for(agent.pump.exiting.wait(), 10)
    assert agent.pump.exit_code == exit_code


async def test_a_closed_session_is_opened_again(agent: Agent) -> None:
    async with agent.running():
        await eventually(lambda: agent.core.connected)
        agent.server.push(Close(code="session_unknown", message="say hello"))
        await eventually(lambda: len(agent.server.hellos) == 2 and agent.core.connected)
    assert agent.pump.exit_code is None


async def test_an_answer_that_is_neither_welcome_nor_close_is_named(agent: Agent) -> None:
    agent.server.on_hello = lambda _: []
    with capture_logs() as logs:
        async with agent.running():
            await eventually(lambda: len(agent.server.hellos) >= 3)
    assert [line["event"] for line in logs] == ["not connected, keeps trying"]
    assert "server_url" in logs[0]["reason"]


async def test_a_clock_that_differs_is_named(agent: Agent) -> None:
    agent.server.on_hello = lambda _: [make_welcome(server_time=datetime(2020, 1, 1, tzinfo=UTC))]
    with capture_logs() as logs:
        async with agent.running():
            await eventually(lambda: agent.core.connected)
    assert any("clock" in line["event"] for line in logs)


async def test_after_a_leave_in_good_order_agents_come_back_spread(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    real_sleep = asyncio.sleep

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await real_sleep(0)

    spread = Intervals(log_seconds=0.05, reconnect_spread_seconds=100)
    agent.server.on_hello = lambda _: [make_welcome(intervals=spread)]
    async with agent.running():
        await eventually(lambda: agent.core.connected)
        monkeypatch.setattr("airflow_edge_agent.runtime.link.asyncio.sleep", sleep)
        for number in range(2, 12):
            if number % 2:
                agent.server.push(Close(code="session_unknown", message="say hello"))
            else:
                agent.transport.links[-1].cut(ServerLeft("https://a: closed by the server: 1012"))
            async with asyncio.timeout(10):
                while len(agent.server.hellos) < number or not agent.core.connected:
                    await real_sleep(0.001)
        monkeypatch.undo()
    spread_waits = [wait for wait in waits if wait > 0.01]
    assert len(spread_waits) >= 8
    assert max(spread_waits) <= 100
    assert max(spread_waits) - min(spread_waits) > 10


async def test_a_server_that_leaves_before_its_welcome_is_not_asked_again_and_again(agent: Agent) -> None:
    agent.server.fault = ServerLeft("https://a: closed by the server: 1012")
    async with agent.running():
        await eventually(lambda: agent.link._backoff.tries >= 3)


async def test_what_carries_the_frames_is_visible(agent: Agent) -> None:
    def carrier() -> str | None:
        return agent.link.carrier

    assert carrier() is None
    with capture_logs() as logs:
        async with agent.running():
            await eventually(lambda: agent.core.connected)
            assert carrier() == "memory"
    assert [line["carrier"] for line in logs if line["event"] == "connected"] == ["memory"]
    assert carrier() is None


async def test_a_climb_waits_for_a_quiet_moment(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_edge_agent.runtime.link.QUIET_POLL_SECONDS", 0.01)
    possible = asyncio.Event()
    agent.link._climb = possible.wait  # type: ignore[assignment]  # its result does not matter
    agent.server.on_send = obliging
    offer = make_offer()
    async with agent.running():
        await eventually(lambda: agent.core.connected)
        agent.server.on_send = lambda _: []  # the accept stays unanswered
        agent.server.push(offer)
        await eventually(lambda: agent.heard(Accept))
        possible.set()
        await asyncio.sleep(0.1)
        assert len(agent.server.hellos) == 1
        possible.clear()
        agent.server.push(AcceptAck(job_id=offer.job_id, fence=1))
        await eventually(lambda: len(agent.server.hellos) == 2 and agent.core.connected)
        await asyncio.sleep(0.05)
        assert len(agent.server.hellos) == 2
    assert [job.phase for job in agent.server.hellos[-1].jobs] == ["running"]


async def test_a_runtime_of_another_release_is_a_warning(agent: Agent) -> None:
    with capture_logs() as logs:
        async with agent.running():
            await eventually(lambda: agent.core.connected)
            versions = make_hello().versions
            agent.link.runtime_known(versions.model_copy(update={"task_sdk": "1.3.9"}))
            agent.link.runtime_known(versions.model_copy(update={"task_sdk": "1.2.1"}))
            agent.link.runtime_known(versions.model_copy(update={"task_sdk": "1.2.1"}))
            agent.transport.links[-1].cut()
            await eventually(lambda: len(agent.server.hellos) == 2 and agent.core.connected)
    warnings = [line["event"] for line in logs if "Task SDK" in line["event"]]
    assert len(warnings) == 1
    assert "1.2.1" in warnings[0]
    assert agent.pump.exit_code is None


@pytest.mark.parametrize(("ours", "spoken"), [((1, 1), 1), ((1, 2), 1), ((1, 2), 2), ((2, 3), 2)])
async def test_a_neighbouring_revision_works(agent: Agent, ours: tuple[int, int], spoken: int) -> None:
    agent.link._hello = lambda: make_hello(protocol_min=ours[0], protocol_max=ours[1])
    newer = {"protocol": spoken, "of_the_future": {"x": 1}}
    welcome = decode_server_frame(make_welcome().model_dump(mode="json") | newer)
    agent.server.on_hello = lambda _: [welcome, decode_server_frame({"type": "of the future"})]
    agent.server.on_send = obliging
    async with agent.running():
        await eventually(lambda: agent.core.connected)
        agent.server.push(make_offer())
        await eventually(lambda: agent.heard(Started))
    assert agent.pump.exit_code is None


async def test_a_revision_that_does_not_fit_ends_with_the_servers_words(agent: Agent) -> None:
    words = "this server (0.3.0) speaks protocol 3 to 4, the agent (0.1.0) 1 to 1; upgrade the agent"
    agent.server.on_hello = lambda _: [Close(code="protocol_mismatch", message=words)]
    with capture_logs() as logs:
        async with agent.running():
            await asyncio.wait_for(agent.pump.exiting.wait(), 10)
    assert agent.pump.exit_code == 76
    assert words in [line["event"] for line in logs]


def _state_told(agent: Agent) -> AgentState | None:
    status = agent.server.presences[-1][0]
    return status.state if isinstance(status, Status) else None


async def test_signs_of_life_say_how_the_agent_is(agent: Agent) -> None:
    async with agent.running():
        # Before the welcome has been taken in, it would be undone by it.
        await eventually(lambda: agent.core.connected and agent.server.presences)
        agent.server.push(Maintenance(on=True))
        await eventually(lambda: _state_told(agent) is AgentState.MAINTENANCE_MODE)
    status, heartbeat = agent.server.presences[-1]
    assert isinstance(status, Status)
    assert isinstance(heartbeat, Heartbeat)
    assert heartbeat.metrics == FixedProbe().measure()


async def test_goodbye_is_flushed(agent: Agent) -> None:
    async with agent.running():
        await eventually(lambda: agent.core.connected)
        agent.pump.feed(StopAsked("SIGTERM"))
        await asyncio.wait_for(agent.pump.exiting.wait(), 10)
        await asyncio.wait_for(agent.pump.outbox.drained(), 10)
        assert agent.heard(Goodbye) == [Goodbye(state=AgentState.OFFLINE, reason="SIGTERM")]
    assert agent.pump.exit_code == 0


async def test_a_piece_of_work_that_fails_ends_the_agent(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(agent.store, "add", bug)
    agent.server.on_send = obliging
    with capture_logs():
        async with agent.running():
            await eventually(lambda: agent.core.connected)
            agent.server.push(make_offer())
            await asyncio.wait_for(agent.pump.exiting.wait(), 10)
    assert agent.pump.exit_code == 70


# The runner's reports


async def bring_to(agent: Agent, phase: Phase) -> str:
    offer = make_offer()
    agent.runner._automatic = phase is Phase.RUNNING
    agent.pump.feed(LinkOpened(make_welcome()))
    agent.pump.feed(FrameArrived(offer))
    agent.pump.feed(FrameArrived(AcceptAck(job_id=offer.job_id, fence=1)))
    await agent.pump.settle()
    if phase is Phase.RUNNING:
        await eventually(lambda: agent.core.jobs[offer.job_id].phase is Phase.RUNNING)
    return offer.job_id


async def test_no_sign_of_life_says_that_a_welcomed_agent_is_starting(agent: Agent) -> None:
    assert [frame.type for frame in agent.link._presence()] == ["heartbeat"]
    agent.pump.feed(LinkOpened(make_welcome()))
    status, _ = agent.link._presence()
    assert isinstance(status, Status)
    assert status.state == "idle"


@pytest.mark.parametrize(
    ("phase", "report", "outcome"),
    [
        (Phase.STARTING, lambda job: RunnerRefused(job, "no memory"), Outcome.NOT_STARTED),
        (Phase.STARTING, lambda job: RunnerGone(None, frozenset({job})), Outcome.NOT_STARTED),
        (Phase.RUNNING, lambda job: RunnerGone(None, frozenset({job})), Outcome.LOST),
        (Phase.RUNNING, lambda job: RunnerGone("no Task SDK", frozenset({job})), Outcome.LOST),
    ],
)
async def test_what_the_runner_reports(
    agent: Agent, phase: Phase, report: Callable[[str], Any], outcome: Outcome
) -> None:
    loop = asyncio.create_task(runner_loop(agent.pump, agent.runner, agent.store, agent.versions.update))
    job_id = await bring_to(agent, phase)
    agent.runner.report(report(job_id))
    await eventually(lambda: agent.core.jobs[job_id].phase is Phase.FINISHED)
    ended = agent.core.jobs[job_id].ended
    assert ended is not None
    assert ended.outcome is outcome
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


async def test_the_server_hears_of_an_unusable_runner_before_its_jobs_come_back(agent: Agent) -> None:
    loop = asyncio.create_task(runner_loop(agent.pump, agent.runner, agent.store, agent.versions.update))
    job_id = await bring_to(agent, Phase.STARTING)
    agent.pump.outbox.clear()
    agent.runner.report(RunnerUnusable("no Task SDK"))
    agent.runner.report(RunnerRefused(job_id, "no Task SDK"))
    await eventually(lambda: agent.core.jobs[job_id].phase is Phase.FINISHED)
    said = await agent.pump.outbox.take()
    first = next(frame for frame in said if isinstance(frame, Status))
    assert first.problem == "no Task SDK"
    assert said.index(first) < next(place for place, frame in enumerate(said) if isinstance(frame, Result))
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


async def test_an_end_without_a_result_is_a_crash(agent: Agent) -> None:
    loop = asyncio.create_task(runner_loop(agent.pump, agent.runner, agent.store, agent.versions.update))
    job_id = await bring_to(agent, Phase.RUNNING)
    agent.store.runner_logged(job_id, b"the last words")
    agent.runner.end(job_id)
    await eventually(lambda: agent.core.jobs[job_id].phase is Phase.FINISHED)
    ended = agent.core.jobs[job_id].ended
    assert ended is not None
    assert ended.outcome is Outcome.CRASHED
    assert agent.core.jobs[job_id].result().log_bytes == len(b"the last words")
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


async def test_a_result_that_found_no_room_on_disk_is_taken_from_the_runners_word(agent: Agent) -> None:
    loop = asyncio.create_task(runner_loop(agent.pump, agent.runner, agent.store, agent.versions.update))
    job_id = await bring_to(agent, Phase.RUNNING)
    agent.store.runner_logged(job_id, b"12345")
    agent.runner.report(RunnerEnded(job_id, JobEnded(job_id, Outcome.FAILED, 3, "boom")))
    await eventually(lambda: agent.core.jobs[job_id].phase is Phase.FINISHED)
    assert agent.core.jobs[job_id].ended == JobEnded(job_id, Outcome.FAILED, 3, "boom", 5)
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


async def test_a_log_beyond_the_limit_arrives_with_a_marker(agent: Agent) -> None:
    agent.core.limits = replace(agent.core.limits, spool_bytes=100_000)
    agent.server.on_send = obliging
    offer = make_offer()
    lines = b"".join(b"line %06d\n" % number for number in range(20_000))
    async with agent.running():
        await eventually(lambda: agent.core.connected)
        agent.server.push(offer)
        await eventually(lambda: agent.heard(Started))
        agent.server.fault = TransportError("away")
        agent.transport.links[-1].cut()
        await eventually(lambda: not agent.core.connected)
        agent.store.runner_logged(offer.job_id, lines)
        await eventually(
            lambda: agent.core.jobs[offer.job_id].log_size < 100_000 and agent.store.log_size(offer.job_id)
        )
        agent.store.runner_ended(offer.job_id, Outcome.FINISHED, 0, None, Usage())
        agent.runner.end(offer.job_id)
        agent.server.fault = None
        await eventually(lambda: agent.store.forgotten == [offer.job_id])
    log = b"".join(unpack_log(frame.data) for frame in agent.heard(Log))
    marker, rest = log.split(b"\n", 1)
    assert b"bytes of log were dropped" in marker
    assert lines.endswith(rest)
    assert 50_000 < len(rest) < 100_000
    assert agent.heard(Result)[-1].log_bytes == len(log)


async def test_a_job_of_the_next_runner_is_not_lost_with_the_last_one(agent: Agent) -> None:
    loop = asyncio.create_task(runner_loop(agent.pump, agent.runner, agent.store, agent.versions.update))
    job_id = await bring_to(agent, Phase.STARTING)
    agent.runner.report(RunnerGone(None, frozenset({new_id()})))
    agent.runner.report(RunnerReady({"task_sdk": "2"}))
    agent.runner.report(RunnerStarted(job_id, 5))
    await eventually(lambda: agent.core.jobs[job_id].phase is Phase.RUNNING)
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


async def test_the_runtime_is_looked_at_first_thing(agent: Agent) -> None:
    loop = asyncio.create_task(runtime_loop(agent.pump, lambda prove: "no Task SDK", asyncio.Event()))
    await eventually(lambda: agent.core.problem == "no Task SDK")
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


# Taking over


async def test_a_runner_of_older_code_is_renewed_by_the_next_daemon(agent: Agent) -> None:
    loop = asyncio.create_task(runner_loop(agent.pump, agent.runner, agent.store, agent.versions.update))
    await recover(agent.pump, agent.runner, agent.store, "boot")
    await agent.runner.start(make_offer(), "https://a/")
    await recover(agent.pump, agent.runner, agent.store, "boot")
    assert agent.runner.renewals == 0
    agent.runner.changed = True
    await recover(agent.pump, agent.runner, agent.store, "boot")
    await recover(agent.pump, agent.runner, agent.store, "boot")
    assert agent.runner.renewals == 1
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


async def test_what_isolates_jobs_is_passed_on(agent: Agent) -> None:
    found: list[dict[str, Any] | None] = []
    loop = asyncio.create_task(runner_loop(agent.pump, agent.runner, agent.store, agent.versions.update, found.append))
    agent.runner.report(RunnerReady({}, {"cgroups": True, "missing": [], "own_supervisor": None}))
    agent.runner.report(RunnerNotRenewed("it did not start"))
    await eventually(lambda: found)
    assert found == [{"cgroups": True, "missing": [], "own_supervisor": None}]
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


async def test_recover(agent: Agent) -> None:
    running, ended, rebooted, died, waiting = (make_offer(label=label) for label in "abcde")
    for offer in (running, ended, died, waiting):
        agent.store.add(offer, "boot")
    agent.store.add(rebooted, "an earlier boot")
    for offer in (running, ended, died):
        agent.store.runner_logged(offer.job_id, b"log")
    agent.store.runner_ended(ended.job_id, Outcome.FAILED, 1, "boom", Usage())
    agent.runner._left_behind = {running.job_id: 77}
    await recover(agent.pump, agent.runner, agent.store, "boot")
    found = {job.label: job for job in agent.core.jobs.values()}
    assert (found["a"].phase, found["a"].pid) == (Phase.RUNNING, 77)
    outcomes = {label: job.ended.outcome for label, job in found.items() if job.ended is not None}
    assert outcomes == {"b": Outcome.FAILED, "c": Outcome.LOST, "d": Outcome.LOST, "e": Outcome.NOT_STARTED}
    assert found["d"].log_size == 3
    assert agent.core.slots_used == 1


# Small parts


async def test_a_loop_that_ends_is_named() -> None:
    async def stops() -> None:
        await asyncio.sleep(0)

    async def fails() -> None:
        raise ZeroDivisionError

    async def goes_on() -> None:
        await asyncio.Event().wait()

    with pytest.raises(LoopEnded, match="the short loop"):
        await run_guarded({"short": stops(), "long": goes_on()}, asyncio.Event())
    with pytest.raises(LoopEnded, match="the broken loop") as caught:
        await run_guarded({"broken": fails(), "long": goes_on()}, asyncio.Event())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_loops_end_when_they_are_told_to() -> None:
    cancelled = []

    async def goes_on() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    until = asyncio.Event()
    task = asyncio.create_task(run_guarded({"a": goes_on(), "b": goes_on()}, until))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    until.set()
    await asyncio.wait_for(task, 10)
    assert cancelled == [1, 1]


async def test_the_outbox_knows_when_all_has_gone_out() -> None:
    box = Outbox()
    await asyncio.wait_for(box.drained(), 1)
    frames = [Accept(job_id=new_id(), fence=1) for _ in range(300)]
    for frame in frames:
        box.put(frame)
    first = await box.take()
    box.sent()
    assert not box._drained.is_set()
    second = await box.take()
    assert not box._drained.is_set()
    box.sent()
    assert box._drained.is_set()
    assert [*first, *second] == frames
    box.put(frames[0])
    box.clear()
    await asyncio.wait_for(box.drained(), 1)


def test_back_off_grows_to_a_bound_and_starts_again() -> None:
    backoff = Backoff(first_seconds=1, longest_seconds=8)
    assert [backoff.next_seconds(1.0) for _ in range(5)] == [1, 2, 4, 8, 8]
    assert backoff.next_seconds(0.0) == 4
    assert backoff.next_seconds(0.0, at_least_seconds=60) == 60
    backoff.reset()
    assert backoff.next_seconds(0.0) == 0.5
    backoff.tries = 10**6
    assert backoff.next_seconds(1.0) == 8


async def test_a_problem_is_cleared_by_a_runner_that_is_ready(agent: Agent) -> None:
    loop = asyncio.create_task(runner_loop(agent.pump, agent.runner, agent.store, agent.versions.update))
    agent.pump.feed(RuntimeChecked("broken"))
    agent.runner.report(RunnerReady({}))
    await eventually(lambda: agent.core.problem is None)
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
