"""The states in which tasks end while the server cannot be told: on disk before the task hears, and what follows."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path

import httpx
import pytest

from airflow_edge_agent.adapters.kept_calls import FINAL_FILE, read_final
from airflow_edge_agent.core.events import FinalSettled, FrameArrived, JobEnded, LinkLost, LinkOpened
from airflow_edge_agent.core.finals import judge_end
from airflow_edge_agent.ports import FinalState, RelayReply, StoreError
from airflow_edge_agent.protocol.frames import AgentFrame, Cancel, Result, ResultAck
from airflow_edge_agent.protocol.jobs import Outcome
from airflow_edge_agent.runner import relay as runner_relay
from airflow_edge_agent.runner.relay import RelayTransport
from airflow_edge_agent.runtime import finals as finals_module
from airflow_edge_agent.runtime.relay import EXECUTION_URL
from fakes.desk import TARGET, Desk, refusal
from fakes.frames import make_welcome, new_id


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def results(frames: list[AgentFrame]) -> list[Result]:
    return [frame for frame in frames if isinstance(frame, Result)]


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
    while not desk.core.jobs[job].ending:  # noqa: ASYNC110 -- it says nothing when it begins to wait
        await asyncio.sleep(0.01)
    desk.airflow.answer = RelayReply.plain(204)
    assert (desk.core.working, desk.core.results_waiting) == (0, 1)
    assert await waits == 204
    assert not desk.core.jobs[job].unsaid
    assert (desk.core.working, desk.core.results_waiting) == (1, 0)


async def test_a_return_value_that_waits_is_a_result_that_waits(desk: Desk) -> None:
    job, other = desk.add(), desk.add()
    value = asyncio.create_task(desk.call(job, "POST", "xcoms/d/r/t/return_value?map_index=-1", 42))
    another = asyncio.create_task(desk.call(other, "POST", "xcoms/d/r/t/so_far", 42))
    while not desk.core.jobs[job].ending:  # noqa: ASYNC110 -- it says nothing when it begins to wait
        await asyncio.sleep(0.01)
    assert (desk.core.working, desk.core.results_waiting) == (1, 1), "the other has more to do"
    assert await desk.call(job, "PUT", f"task-instances/{new_id()}/heartbeat", {}) == 204
    assert (desk.core.working, desk.core.results_waiting) == (1, 1), "a heartbeat is no result"
    value.cancel()
    await asyncio.wait([value])
    assert (desk.core.working, desk.core.results_waiting) == (1, 1), "the Task SDK makes it again"
    value = asyncio.create_task(desk.call(job, "POST", "xcoms/d/r/t/return_value?map_index=-1", 42))
    desk.airflow.answer = RelayReply.plain(201)
    assert (await value, await another) == (201, 201)
    assert (desk.core.working, desk.core.results_waiting) == (2, 0)
    desk.airflow.answer = None
    await desk.say(job)
    assert (desk.core.working, desk.core.results_waiting) == (1, 1), "from when it is taken, not from the process's end"
    desk.end(job)
    assert (desk.core.working, desk.core.results_waiting) == (1, 1)


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
