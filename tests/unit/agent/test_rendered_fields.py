"""What templates became: tasks do not wait until Airflow has heard it, and Airflow hears it before their end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from airflow_edge_agent.adapters.kept_calls import FINAL_FILE, RENDERED_FILE
from airflow_edge_agent.core.events import LinkLost, LinkOpened
from airflow_edge_agent.ports import RelayReply, StoreError
from airflow_edge_agent.protocol.jobs import Outcome
from airflow_edge_agent.runtime import rendered as rendered_module
from fakes.desk import Desk, refusal
from fakes.frames import make_welcome, new_id

TARGET = f"task-instances/{new_id()}/rtif"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(rendered_module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(rendered_module, "AWAY_SECONDS", 0.01)
    desk = Desk(tmp_path)
    desk.airflow.answer = RelayReply.plain(201)
    desk.pump.feed(LinkOpened(make_welcome()))
    return desk


async def told(desk: Desk, job: str, command: str = "true") -> int:
    return await desk.call(job, "PUT", TARGET, {"bash_command": command})


def heard(desk: Desk) -> list[tuple[str, str]]:
    """Return whom Airflow heard of, and what about."""
    return [(job, call.target.decode().rpartition("/")[2]) for job, call in desk.airflow.got]


def kept(desk: Desk, name: str = RENDERED_FILE) -> list[Path]:
    return list(desk.jobs.glob(f"*/{name}"))


async def until_settled(desk: Desk) -> None:
    async with asyncio.timeout(30):
        while kept(desk):  # noqa: ASYNC110 -- the absence of something
            await asyncio.sleep(0.01)


@asynccontextmanager
async def retrying(desk: Desk) -> AsyncIterator[None]:
    loop = asyncio.create_task(desk.rendered.run())
    try:
        yield
    finally:
        loop.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loop


async def test_a_task_goes_on_before_airflow_has_answered(desk: Desk) -> None:
    job = desk.add()
    desk.airflow.open = asyncio.Event()
    assert await told(desk, job) == 201
    (file,) = kept(desk)
    assert file.stat().st_mode & 0o077 == 0
    assert desk.relay.secret(job) not in file.read_text()
    desk.airflow.open.set()
    await until_settled(desk)
    assert heard(desk) == [(job, "rtif")]
    ((_, call),) = desk.airflow.got
    assert (call.method, call.body) == ("PUT", b'{"bash_command": "true"}')
    assert {name for name, _ in call.headers} == {b"content-type"}


async def test_airflow_hears_it_before_the_final_state(desk: Desk) -> None:
    job = desk.add()
    desk.airflow.open = asyncio.Event()
    await told(desk, job)
    ends = asyncio.create_task(desk.say(job))
    await asyncio.sleep(0.05)
    assert heard(desk) == [(job, "rtif")], "the state waits"
    desk.airflow.open.set()
    assert await ends == 201
    assert heard(desk) == [(job, "rtif"), (job, "state")]


async def test_what_is_told_again_takes_the_place_of_what_waits(desk: Desk) -> None:
    """Some operators tell their fields again after they have run."""
    job = desk.add()
    desk.airflow.open = asyncio.Event()
    await told(desk, job, "before")
    await asyncio.sleep(0)
    await told(desk, job, "after")
    desk.airflow.open.set()
    assert await desk.say(job) == 201
    assert [call.body for _, call in desk.airflow.got][-2] == b'{"bash_command": "after"}'
    assert not kept(desk)


async def test_an_outage_keeps_both_and_delivers_them_in_order(desk: Desk) -> None:
    job = desk.add()
    desk.airflow.answer = None
    assert await told(desk, job) == 201
    assert await desk.say(job) == 204
    desk.end(job)
    assert (len(kept(desk)), len(kept(desk, FINAL_FILE))) == (1, 1)
    assert not await desk.deliver()
    # The daemon, and the host with it, dies.
    desk.restart()
    desk.rendered.recall()
    desk.airflow.answer = RelayReply.plain(204)
    desk.pump.feed(LinkOpened(make_welcome()))
    assert await desk.deliver()
    assert heard(desk) == [(job, "rtif"), (job, "state")]
    assert not kept(desk)


async def test_the_loop_delivers_what_could_not_be_at_once(desk: Desk) -> None:
    jobs = [desk.add() for _ in range(3)]
    desk.airflow.answer = None
    desk.pump.feed(LinkLost("cut"))
    async with retrying(desk):
        for job in jobs:
            assert await told(desk, job) == 201
        await asyncio.sleep(0.05)
        assert len(kept(desk)) == 3
        desk.airflow.answer = RelayReply.plain(201)
        desk.pump.feed(LinkOpened(make_welcome()))
        await until_settled(desk)
    assert sorted(heard(desk)) == sorted((job, "rtif") for job in jobs)


async def test_a_server_that_has_not_heard_of_us_yet_cannot_refuse(desk: Desk) -> None:
    job = desk.add()
    desk.pump.feed(LinkLost("cut"))
    desk.airflow.again = lambda: refusal(404, refused=True)
    async with retrying(desk):
        await told(desk, job)
        while len(desk.airflow.got) < 3:  # noqa: ASYNC110 -- it says nothing of its attempts
            await asyncio.sleep(0.01)
        assert kept(desk)
        desk.airflow.again = None
        desk.pump.feed(LinkOpened(make_welcome()))
        await until_settled(desk)
    assert "rendered" not in desk.log(job)


@pytest.mark.parametrize(
    ("answer", "says", "tries"),
    [
        (lambda: refusal(422), "Airflow does not take them: 422 no: not so", 1),
        (lambda: refusal(410), "Airflow does not take them: 410 no: not so", 1),
        (lambda: refusal(404, refused=True), "the server does not take them: 404", 1),
        (lambda: refusal(500), "Airflow does not take them: 500", rendered_module.MOST_TRIES),
    ],
)
async def test_a_refusal_is_told_in_the_log_and_holds_nothing_up(
    desk: Desk, answer: object, says: str, tries: int
) -> None:
    job = desk.add()
    desk.airflow.again = answer  # type: ignore[assignment]
    assert await told(desk, job) == 201
    await until_settled(desk)
    assert len(desk.airflow.got) == tries
    assert f"Airflow has no rendered fields of this try: {says}" in desk.log(job)
    assert desk.core.jobs[job].log_size == len(desk.log(job))
    desk.airflow.again = None
    assert await desk.say(job) == 201


async def test_what_was_kept_and_is_damaged_is_told(desk: Desk) -> None:
    job = desk.add()
    (desk.jobs / job / RENDERED_FILE).write_text("{")
    desk.rendered.recall()
    assert "what was kept of them cannot be read" in desk.log(job)
    assert not kept(desk)


async def test_without_room_the_task_waits_for_airflow(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    job = desk.add()

    def full(*_: object) -> None:
        raise StoreError("no space")

    monkeypatch.setattr(desk.store, "keep_rendered", full)
    desk.airflow.open = asyncio.Event()
    waits = asyncio.create_task(told(desk, job))
    while not desk.airflow.got:  # noqa: ASYNC110 -- it says nothing when it begins to wait
        await asyncio.sleep(0.01)
    assert not waits.done()
    desk.airflow.open.set()
    assert await waits == 201


async def test_what_is_left_of_a_job_that_is_over_does_not_stay(desk: Desk) -> None:
    job = desk.add()
    desk.airflow.answer = None
    async with retrying(desk):
        await told(desk, job)
        desk.end(job, Outcome.KILLED)
        del desk.core.jobs[job]
        while desk.rendered._waiting:  # noqa: ASYNC110 -- the absence of something
            await asyncio.sleep(0.01)
