"""The states in which tasks end while the server cannot be told: on disk before the task hears, and what follows."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from airflow_edge_agent.adapters.finals import FINAL_FILE, read_final
from airflow_edge_agent.adapters.jobstore import DirectoryJobStore
from airflow_edge_agent.core.agent import AgentCore
from airflow_edge_agent.core.events import FinalSettled, FrameArrived, JobEnded, JobFound, LinkLost, LinkOpened
from airflow_edge_agent.core.finals import judge_end
from airflow_edge_agent.core.policy import Limits
from airflow_edge_agent.ports import FinalState, NotReached, RelayCall, RelayReply, StoreError
from airflow_edge_agent.protocol.frames import AgentFrame, Cancel, Result, ResultAck
from airflow_edge_agent.protocol.jobs import Outcome
from airflow_edge_agent.runner import relay as runner_relay
from airflow_edge_agent.runner.relay import RelayTransport
from airflow_edge_agent.runtime import finals as finals_module
from airflow_edge_agent.runtime.finals import FinalStates
from airflow_edge_agent.runtime.pump import Pump
from airflow_edge_agent.runtime.relay import EXECUTION_URL, Relay
from fakes import MemoryRunner
from fakes.frames import make_offer, make_welcome, new_id

TARGET = f"task-instances/{new_id()}/state"


@dataclass
class Airflow:
    """Answers as told; ``None``: is not there."""

    answer: RelayReply | None = None
    got: list[tuple[str, RelayCall]] = field(default_factory=list)

    @asynccontextmanager
    async def relay(self, job_id: str, fence: int, call: RelayCall) -> AsyncIterator[RelayReply]:
        assert fence == 7
        if self.answer is None:
            raise NotReached("cut")
        self.got.append((job_id, call))
        yield self.answer


class Desk:
    """A daemon's part that has to do with final states, on a real disk."""

    def __init__(self, folder: Path) -> None:
        self.jobs = folder / "jobs"
        self.runner = folder / "runner"
        for path in (self.jobs, self.runner / "jobs"):
            path.mkdir(parents=True, exist_ok=True)
        self.airflow = Airflow()
        self.restart()

    def restart(self) -> None:
        """A daemon that knows nothing but what is on disk; the host has been booted."""
        self.store = DirectoryJobStore(self.jobs, self.runner)
        self.core = AgentCore(Limits(4, kill_grace_seconds=5, drain_deadline_seconds=0))
        self.pump = Pump(self.core, store=self.store, runner=MemoryRunner(), boot_id="b", default_execution_url="x")
        self.finals = FinalStates(self.pump, self.airflow, self.store)
        self.relay = Relay(self.pump, self.airflow, Path("nowhere"), b"k" * 64, finals=self.finals)
        for job in self.store.load():
            self.pump.feed(
                JobFound(job.job_id, job.fence, job.slots, job.label, None, JobEnded(job.job_id, Outcome.LOST))
            )

    def add(self, *, lease: float = 1_800.0) -> str:
        offer = make_offer(job_id=new_id(), fence=7, disconnect_lease_seconds=lease)
        self.store.add(offer, "b")
        folder = self.runner / "jobs" / offer.job_id
        folder.mkdir()
        (folder / "task.log").write_text('{"event": "hello"}\n')
        self.pump.feed(JobFound(offer.job_id, 7, 1, "a task", pid=5, disconnect_lease_seconds=lease))
        return offer.job_id

    async def say(self, job_id: str, state: str = "success") -> int:
        """Tell the relay a final state, as a task's supervisor does; return the status."""
        body = json.dumps({"state": state}).encode()
        headers = [(b"authorization", f"Bearer {self.relay.secret(job_id)}".encode()), (b"x-more", b"1")]
        headers.append((b"content-type", b"application/json"))
        async with self.relay.handle(RelayCall("PATCH", f"/execution/{TARGET}".encode(), headers, body)) as reply:
            return reply.status

    def end(self, job_id: str, outcome: Outcome = Outcome.FINISHED) -> None:
        self.pump.feed(JobEnded(job_id, outcome, 0, log_bytes=self.store.log_size(job_id)))

    async def sent(self) -> list[AgentFrame]:
        return [] if self.pump.outbox.empty else await self.pump.outbox.take()

    async def deliver(self) -> bool:
        return await self.finals._deliver_all()

    def log(self, job_id: str) -> str:
        return (self.runner / "jobs" / job_id / "task.log").read_text()


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def results(frames: list[AgentFrame]) -> list[Result]:
    return [frame for frame in frames if isinstance(frame, Result)]


def refusal(status: int, previous: str | None = None, *, refused: bool = False) -> RelayReply:
    async def body() -> AsyncIterator[bytes]:
        yield json.dumps({"detail": {"reason": "no", "message": "not so", "previous_state": previous}}).encode()

    return RelayReply(status, [], body(), refused=refused)


async def test_a_state_is_on_disk_before_its_task_hears_that_it_is_taken(desk: Desk) -> None:
    job = desk.add()
    assert await desk.say(job) == 204
    (kept,) = desk.jobs.glob(f"*/{FINAL_FILE}")
    assert kept.stat().st_mode & 0o077 == 0
    assert desk.relay.secret(job) not in kept.read_text()
    final = desk.store.final(job)
    assert final is not None
    assert (final.state, final.target) == ("success", TARGET.encode())
    assert dict(final.headers) == {b"content-type": b"application/json", b"content-length": b"%d" % len(final.body)}


async def test_it_comes_before_the_result_which_comes_before_the_log_and_the_slot(desk: Desk) -> None:
    job = desk.add()
    await desk.say(job)
    desk.end(job)
    assert desk.core.slots_used == 0
    desk.pump.feed(LinkOpened(make_welcome()))
    assert desk.core.slots_used == 1, "nothing new before this is settled"
    await desk.pump.settle()
    assert {frame.type for frame in await desk.sent()} == {"status"}
    desk.airflow.answer = RelayReply.plain(204)
    assert await desk.deliver()
    assert [(name, call.method, call.target) for name, call in desk.airflow.got] == [(job, "PATCH", TARGET.encode())]
    await desk.pump.settle()
    kinds = [frame.type for frame in await desk.sent()]
    assert kinds.index("result") < kinds.index("log")
    assert desk.core.slots_used == 1
    assert not list(desk.jobs.glob(f"*/{FINAL_FILE}"))
    desk.pump.feed(FrameArrived(ResultAck(job_id=job, fence=7)))
    desk.core.jobs[job].log_acked = desk.core.jobs[job].log_size
    desk.core.jobs[job].log_in_flight = False
    desk.pump.feed(LinkOpened(make_welcome()))
    desk.pump.feed(FrameArrived(ResultAck(job_id=job, fence=7)))
    assert (job in desk.core.jobs, desk.core.slots_used) == (False, 0)


async def test_a_crash_of_the_host_loses_nothing(desk: Desk) -> None:
    job = desk.add()
    await desk.say(job)
    desk.restart()
    desk.airflow.answer = RelayReply.plain(204)
    assert desk.core.jobs[job].unsaid
    desk.pump.feed(LinkOpened(make_welcome()))
    assert not results(await desk.sent())
    assert await desk.deliver()
    (result,) = results(await desk.sent())
    assert (result.outcome, result.detail) == (Outcome.FINISHED, "Airflow was told 'success'")
    # Another crash, before the server has acknowledged it.
    ended = desk.store.ended(job)
    assert ended is not None
    assert ended.outcome is Outcome.FINISHED


async def test_states_are_delivered_in_the_order_in_which_they_came(desk: Desk) -> None:
    jobs = [desk.add() for _ in range(5)]
    for job in reversed(jobs):
        await desk.say(job)
        desk.end(job)
    desk.restart()
    desk.airflow.answer = RelayReply.plain(204)
    await desk.deliver()
    assert [job for job, _ in desk.airflow.got] == list(reversed(jobs))


@pytest.mark.parametrize("status", [404, 409, 410])
async def test_airflows_word_wins_and_the_log_says_so(desk: Desk, status: int) -> None:
    job = desk.add()
    await desk.say(job)
    desk.end(job)
    desk.airflow.answer = refusal(status, "failed")
    assert await desk.deliver()
    desk.pump.feed(LinkOpened(make_welcome()))
    (result,) = results(await desk.sent())
    assert result.outcome is Outcome.SUPERSEDED
    assert f"Airflow has decided otherwise meanwhile: {status} no: not so (state: failed)" in str(result.detail)
    assert "ended as 'success'" in desk.log(job)
    assert result.log_bytes == len(desk.log(job))
    assert not desk.pump.unsaid.is_set(), "and nothing is tried again"


async def test_what_was_taken_without_an_answer_is_no_contradiction(desk: Desk) -> None:
    job = desk.add()
    await desk.say(job)
    desk.end(job)
    desk.airflow.answer = refusal(409, "success")
    assert await desk.deliver()
    desk.pump.feed(LinkOpened(make_welcome()))
    (result,) = results(await desk.sent())
    assert result.outcome is Outcome.FINISHED


async def test_a_server_that_has_not_heard_of_us_yet_cannot_refuse(desk: Desk) -> None:
    job = desk.add()
    desk.airflow.answer = refusal(404, refused=True)
    assert await desk.say(job) == 204, "kept instead"
    desk.end(job)
    assert not await desk.deliver()
    assert desk.core.jobs[job].unsaid
    desk.pump.feed(LinkOpened(make_welcome()))
    desk.airflow.answer = refusal(404, refused=True)
    assert await desk.deliver()
    (result,) = results(await desk.sent())
    assert (result.outcome, "the server has decided otherwise" in str(result.detail)) == (Outcome.SUPERSEDED, True)


async def test_nothing_is_tried_for_ever(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    job = desk.add(lease=0.0)
    await desk.say(job)
    desk.end(job)
    desk.pump.feed(LinkOpened(make_welcome()))
    desk.airflow.answer = refusal(500)
    assert not await desk.deliver()
    monkeypatch.setattr(finals_module, "PATIENCE_SECONDS", 0.0)
    desk.airflow.answer = refusal(500)
    assert await desk.deliver()
    (result,) = results(await desk.sent())
    assert (result.outcome, "500" in str(result.detail)) == (Outcome.UNDELIVERED, True)


async def test_a_refusal_ends_a_task_that_has_something_to_do_yet(desk: Desk) -> None:
    job = desk.add()
    await desk.say(job)
    desk.airflow.answer = refusal(409, "failed")
    assert await desk.deliver()
    assert desk.core.jobs[job].cancel_reason is not None
    desk.end(job)
    desk.pump.feed(LinkOpened(make_welcome()))
    (result,) = results(await desk.sent())
    assert result.outcome is Outcome.SUPERSEDED


async def test_a_cancelled_task_reads_why_in_its_log(desk: Desk) -> None:
    job = desk.add()
    desk.pump.feed(LinkOpened(make_welcome()))
    desk.pump.feed(FrameArrived(Cancel(job_id=job, fence=7, reason="Airflow has set the task to failed")))
    assert '"the agent ends this task: Airflow has set the task to failed"' in desk.log(job)
    assert desk.core.jobs[job].log_size == len(desk.log(job))


async def test_a_full_disk_makes_the_task_wait(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    job = desk.add()

    def full(*_: object) -> None:
        raise StoreError("no space")

    monkeypatch.setattr(desk.store, "keep_final", full)
    waits = asyncio.create_task(desk.say(job))
    while job not in desk.relay.ending:  # noqa: ASYNC110 -- it says nothing when it begins to wait
        await asyncio.sleep(0.01)
    desk.airflow.answer = RelayReply.plain(204)
    assert await waits == 204
    assert not desk.core.jobs[job].unsaid


async def test_the_loop_delivers_when_the_session_opens(desk: Desk) -> None:
    job = desk.add()
    desk.pump.feed(LinkOpened(make_welcome()))
    desk.pump.feed(LinkLost("cut"))
    await desk.say(job)
    desk.end(job)
    loop = asyncio.create_task(desk.finals.run())
    try:
        await asyncio.sleep(0)
        desk.airflow.answer = RelayReply.plain(204)
        desk.pump.feed(LinkOpened(make_welcome()))
        async with asyncio.timeout(30):
            while desk.pump.unsaid.is_set():  # noqa: ASYNC110 -- the absence of something
                await asyncio.sleep(0.01)
    finally:
        loop.cancel()


def test_what_tasks_can_write_is_not_believed(tmp_path: Path) -> None:
    good = {"method": "PATCH", "target": TARGET, "headers": [["X-Y", "1"], ["Content-Type", "a/b"]], "at": 1.0}
    body = base64.b64encode(b'{"state": "success"}').decode()
    final = read_final(json.dumps(good | {"body": body}).encode())
    assert final is not None
    assert final.headers == [(b"content-type", b"a/b"), (b"content-length", b"20")]
    for wrong in (
        {"method": "DELETE"},
        {"target": "variables/x"},
        {"target": TARGET + "/../x"},
        {"target": TARGET + "?a b\r\nx: y"},
        {"headers": [["a\r\nb", "c"]]},
        {"body": "!"},
        {"at": -1},
        {"at": "x"},
    ):
        assert read_final(json.dumps(good | {"body": body} | wrong).encode()) is None, wrong
    assert read_final(b"\xff") is None
    assert FinalState(b"", [], b"[]", 0.0).state == "unknown"


@pytest.mark.parametrize("outcome", [Outcome.LOST, Outcome.CRASHED, Outcome.KILLED])
def test_a_failure_that_airflow_was_told_of_stays_what_it_was(outcome: Outcome) -> None:
    ended = JobEnded("j", outcome, detail="why")
    assert judge_end(ended, None) is ended
    assert judge_end(ended, FinalSettled("j", "failed")).outcome is outcome
    assert judge_end(ended, FinalSettled("j", "deferred")).outcome is Outcome.FINISHED


# --- The runner's end, while there is no daemon -----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:unclosed <socket.socket:ResourceWarning")
async def test_without_an_agent_the_runner_keeps_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_relay, "KEEP_SECONDS", 0.2)
    job = desk.add()
    folder = desk.runner / "jobs" / job
    transport = RelayTransport(str(desk.runner / "nobody.sock"), lambda: None, 60.0, folder)
    headers = {"Authorization": "Bearer secret", "Content-Type": "application/json", "Airflow-API-Version": "1"}
    request = httpx.Request("PATCH", EXECUTION_URL + TARGET, json={"state": "success"}, headers=headers)
    response = await asyncio.to_thread(transport.handle_request, request)
    assert response.status_code == 204
    assert "secret" not in (folder / FINAL_FILE).read_text()
    desk.restart()
    assert desk.core.jobs[job].unsaid
    desk.airflow.answer = RelayReply.plain(204)
    assert await desk.deliver()
    ((_, call),) = desk.airflow.got
    assert (call.target, json.loads(call.body if isinstance(call.body, bytes) else b"")) == (
        TARGET.encode(),
        {"state": "success"},
    )
    assert (b"airflow-api-version", b"1") in call.headers
    assert not (folder / FINAL_FILE).exists()
