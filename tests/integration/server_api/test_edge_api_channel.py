"""The WebSocket carrier: the same frames, pushed."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from uvicorn.protocols.utils import ClientDisconnected
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from airflow_edge_agent.protocol.codec import encode_batch, pack_log
from airflow_edge_agent.protocol.frames import (
    MAX_BATCH_BYTES,
    Accept,
    Cancel,
    Close,
    Goodbye,
    HeldJob,
    Log,
    LogAck,
    Maintenance,
    Offer,
    Result,
    ResultAck,
    Started,
    Welcome,
)
from airflow_edge_agent.protocol.jobs import JobState, Outcome
from airflow_edge_agent.protocol.states import AgentState
from airflow_edge_server.api import channel
from airflow_edge_server.api.auth import SCOPE_KEY, Caller
from integration.server_api.channel_kit import ChannelAgent, Served, served
from integration.server_api.kit import PACE, SETTINGS, Database, FakeAgent, build_app, until

MakeChannelAgent = Callable[..., ChannelAgent]
PACE_LOST = replace(PACE, lost_seconds=0.2, watch_seconds=0.1)


@pytest.fixture
async def site(database: Database) -> AsyncIterator[Served]:
    async with served(build_app(database, pace=PACE_LOST)) as site:
        yield site


@pytest.fixture
def dial(database: Database, site: Served) -> MakeChannelAgent:
    def make(name: str = "factory", **given: Any) -> ChannelAgent:
        client: Any = None
        return ChannelAgent(client, name, database.credential(name), url=site.url, **given)

    return make


async def test_a_job_from_queue_to_result_is_pushed(database: Database, dial: MakeChannelAgent) -> None:
    agent = dial()
    (welcome,) = await agent.open()
    assert isinstance(welcome, Welcome)
    assert welcome.intervals.reconnect_spread_seconds == 2
    await agent.ready()
    await until(lambda: database.agent("factory").state == "idle")
    job_id = database.add_job()
    offer = await agent.take_one(start=True)
    key: dict[str, Any] = {"job_id": job_id, "fence": 1}
    assert (offer.job_id, offer.fence) == (job_id, 1)
    await agent.send(Log(job_id=job_id, offset=0, data=pack_log(b"hello\n")))
    assert await agent.hear(LogAck) == LogAck(job_id=job_id, next_offset=6)
    await agent.send(Result(**key, outcome=Outcome.FINISHED, log_bytes=6))
    assert await agent.hear(ResultAck) == ResultAck(**key)
    assert database.job(job_id).state == JobState.FINISHED
    assert database.log(job_id) == b"hello\n"


@pytest.mark.parametrize("token", [None, "eap_0123456789abcdef_1_" + "a" * 86, "nonsense"])
async def test_the_handshake_without_valid_proof_is_answered_401(dial: MakeChannelAgent, token: str | None) -> None:
    agent = dial()
    agent.token = token or ""
    with pytest.raises(InvalidStatus) as caught:
        await agent.dial()
    assert caught.value.response.status_code == 401
    assert not caught.value.response.body


async def test_before_hello_nothing_else_is_heard(dial: MakeChannelAgent) -> None:
    agent = dial()
    agent.socket = await agent.dial()
    await agent.ready()
    assert (await agent.hear(Close)).code == "session_unknown"
    assert await agent.closed() == 4000


async def test_a_name_in_use_is_closed_with_the_reason(dial: MakeChannelAgent) -> None:
    agent, clone = dial(), dial(hostname="host-2", boot_id="boot-2")
    await agent.open()
    (close,) = await clone.open()
    assert isinstance(close, Close)
    assert close.code == "name_in_use"
    assert await clone.closed() == 4000
    await agent.ready()


async def test_a_superseded_connection_is_closed_at_once(dial: MakeChannelAgent) -> None:
    agent = dial()
    await agent.open()
    successor = replace(agent, instance_id=str(uuid.uuid4()), heard=[], socket=None)
    started = time.monotonic()
    await successor.open()
    assert (await agent.hear(Close)).code == "superseded"
    assert await agent.closed() == 4000
    assert time.monotonic() - started < 2


async def test_a_session_taken_over_elsewhere_is_closed(database: Database, dial: MakeChannelAgent) -> None:
    agent = dial()
    await agent.open()
    database.set_agent("factory", session_id=str(uuid.uuid4()))
    assert await agent.closed() == 4000
    assert [frame.code for frame in agent.heard if isinstance(frame, Close)] == ["superseded"]


async def test_a_revoked_credential_ends_the_connection_within_two_seconds(
    database: Database, dial: MakeChannelAgent
) -> None:
    agent = dial()
    await agent.open()
    started = time.monotonic()
    database.revoke(agent)
    assert await agent.closed() == 1008
    assert time.monotonic() - started < 2

    async def refused() -> bool:
        try:
            await (await agent.dial()).close()
        except InvalidStatus as error:
            return error.response.status_code == 401
        return False

    while not await refused():
        assert time.monotonic() - started < 3
        await asyncio.sleep(0.05)


async def test_maintenance_and_cancel_are_pushed(database: Database, dial: MakeChannelAgent) -> None:
    agent = dial()
    await agent.open()
    await agent.ready()
    job_id = database.add_job()
    await agent.take_one(start=True)
    database.set_job(job_id, cancel_reason="enough")
    assert await agent.hear(Cancel) == Cancel(job_id=job_id, fence=1, reason="enough")
    database.set_agent("factory", maintenance_wanted=True)
    assert (await agent.hear(Maintenance)).on is True


async def test_room_decides_also_on_a_standing_line(database: Database, dial: MakeChannelAgent) -> None:
    agent = dial(slots=2)
    await agent.open()
    await agent.ready()
    jobs = [database.add_job() for _ in range(3)]
    offers = [await agent.hear(Offer) for _ in range(2)]
    assert {offer.job_id for offer in offers} < set(jobs)
    for offer in offers:
        await agent.send(Accept(job_id=offer.job_id, fence=1))
    with pytest.raises(TimeoutError):
        await agent.hear(Offer, seconds=0.5)
    await agent.send(Result(job_id=offers[0].job_id, fence=1, outcome=Outcome.FINISHED))
    assert (await agent.hear(Offer)).job_id not in {offer.job_id for offer in offers}


async def test_more_answers_than_fit_come_in_several_messages(dial: MakeChannelAgent) -> None:
    agent = dial()
    held = [HeldJob(job_id=str(uuid.uuid4()), fence=1, phase="running") for _ in range(700)]
    frames = await agent.open(*held)
    cancelled = {frame.job_id for frame in frames if isinstance(frame, Cancel)}
    while len(cancelled) < 700:
        cancelled.add((await agent.hear(Cancel)).job_id)
    assert cancelled == {job.job_id for job in held}


async def test_goodbye_ends_session_and_connection(database: Database, dial: MakeChannelAgent) -> None:
    agent = dial()
    await agent.open()
    await agent.send(Goodbye(state=AgentState.OFFLINE, reason="stopped"))
    assert await agent.closed() == 1000
    assert database.agent("factory").session_id is None


@pytest.mark.parametrize(
    ("message", "code"),
    [("no batch", 1008), (b"bytes", 1009), (" " * (MAX_BATCH_BYTES + 1), 1009)],
    ids=["no batch", "bytes", "too large"],
)
async def test_what_is_no_batch_ends_the_connection(dial: MakeChannelAgent, message: str | bytes, code: int) -> None:
    agent = dial()
    await agent.open()
    assert agent.socket is not None
    await agent.socket.send(message)
    assert await agent.closed() == code


async def test_frames_with_anything_in_their_fields_do_not_end_the_connection(
    database: Database, dial: MakeChannelAgent
) -> None:
    agent = dial()
    await agent.open()
    await agent.ready()
    assert agent.socket is not None
    anything: tuple[object, ...] = (True, 7, None, [], {"a": [1]}, "text")
    for odd in anything:
        for kind in ("log", "status", "heartbeat", "accept", "refuse", "started", "result", odd):
            frame = {"type": kind, "data": odd, "job_id": odd, "fence": odd, "offset": odd}
            batch = {"session_id": agent.session_id, "frames": [frame]}
            await agent.socket.send(json.dumps(batch))
    job_id = database.add_job()
    assert (await agent.take_one(start=True)).job_id == job_id


async def test_a_connection_that_says_nothing_is_closed(
    database: Database, dial: MakeChannelAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "HELLO_SECONDS", 0.2)
    mute = dial()
    mute.socket = await mute.dial()
    assert await mute.closed() == 1001
    monkeypatch.setattr(channel, "SILENCE_SECONDS", 0.1)
    async with served(build_app(database, settings=replace(SETTINGS, heartbeat_seconds=0.2))) as site:
        agent = replace(dial(), url=site.url)
        await agent.open()
        assert await agent.closed() == 1001


async def test_an_agent_that_does_not_read_is_given_up(
    dial: MakeChannelAgent, site: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "SEND_SECONDS", 0.1)
    agent = dial()
    hello = encode_batch([agent.hello_frame()]).decode()
    incoming: list[dict[str, Any]] = [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": hello}]
    never = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not incoming:
            await never.wait()
        return incoming.pop(0)

    async def send(message: Any) -> None:
        if message["type"] != "websocket.accept":
            await never.wait()

    async with asyncio.timeout(5):
        await site.channel({SCOPE_KEY: Caller("factory", agent.credential_id)}, receive, send)
    assert "factory" not in site.hub._lines


async def test_who_leaves_in_the_middle_of_the_handshake_is_no_error_of_ours(database: Database, site: Served) -> None:
    """uvicorn does not send the answer to a handshake whose other side is about to be gone, and tells us only then."""
    incoming: list[dict[str, Any]] = [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1006}]
    caller = Caller("factory", database.credential("factory").split("_")[1])
    sent: list[str] = []

    async def receive() -> dict[str, Any]:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"])
        if not incoming:
            raise ClientDisconnected

    with pytest.raises(ClientDisconnected):
        await site.channel({"type": "websocket", SCOPE_KEY: caller}, receive, send)
    assert sent == ["websocket.accept", "websocket.close"]


async def test_too_much_unsent_ends_the_connection(
    dial: MakeChannelAgent, site: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "MAX_UNSENT_FRAMES", 10)
    agent = dial()
    await agent.open()
    line = site.hub._lines["factory"]
    assert not line.say([Maintenance(on=True)] * 11)
    await until(lambda: "factory" not in site.hub._lines)
    assert await agent.closed() in {1000, 1006, 1008}


async def test_an_idle_connection_has_no_task_of_its_own(dial: MakeChannelAgent, site: Served) -> None:
    agents = [dial(f"agent-{n}", agent_id=str(uuid.uuid4())) for n in range(5)]
    for agent in agents:
        await agent.open()
        await agent.ready()
    await until(lambda: len(site.hub._lines) == 5)
    lines = [line for line in site.hub._lines.values() if isinstance(line, channel.Connection)]
    await until(lambda: all(line._writer is None or line._writer.done() for line in lines))
    assert len(lines) == 5


async def test_offers_of_a_lost_connection_return_at_once(database: Database, dial: MakeChannelAgent) -> None:
    agent = dial()
    await agent.open()
    await agent.ready()
    job_id = database.add_job()
    await agent.hear(Offer)
    await agent.hang_up()
    started = time.monotonic()
    await until(lambda: database.job(job_id).state == JobState.QUEUED)
    assert time.monotonic() - started < 2


async def test_what_a_lost_agent_never_started_is_offered_to_another(
    database: Database, dial: MakeChannelAgent
) -> None:
    agent, other = dial(), dial("other", agent_id=str(uuid.uuid4()))
    await agent.open()
    await agent.ready()
    waiting = database.add_job()
    begun = database.add_job()
    callback = database.add_job(kind="callback")
    for _ in range(3):
        await agent.take_one()
    # Airflow has heard of this one's start, although we have not.
    database.set_task(begun, state="running")
    await agent.hang_up()
    await other.open()
    await other.ready()
    offer = await other.hear(Offer, seconds=10)
    assert (offer.job_id, offer.fence) == (waiting, 2)
    assert {database.job(job_id).state for job_id in (begun, callback)} == {JobState.ACCEPTED}


async def test_an_agent_that_comes_back_keeps_what_it_accepted(database: Database, dial: MakeChannelAgent) -> None:
    agent = dial()
    await agent.open()
    await agent.ready()
    job_id = database.add_job()
    await agent.take_one()
    await agent.hang_up()
    await agent.open(HeldJob(job_id=job_id, fence=1, phase="accepted"))
    await asyncio.sleep(0.5)
    assert (database.job(job_id).state, database.job(job_id).fence) == (JobState.ACCEPTED, 1)


async def test_a_job_never_goes_back_more_than_five_times(database: Database, dial: MakeChannelAgent) -> None:
    job_id = database.add_job(fence=4)
    agent = dial()
    await agent.open()
    await agent.ready()
    assert (await agent.take_one()).fence == 5
    await agent.hang_up()
    await asyncio.sleep(0.6)
    assert database.job(job_id).state == JobState.ACCEPTED


async def test_an_agent_that_does_not_read_is_given_up_and_others_are_not_held_up(
    database: Database, dial: MakeChannelAgent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(channel, "SEND_SECONDS", 1.0)
    slow, quick = dial("slow", queues=["large"], slots=100), dial("quick", agent_id=str(uuid.uuid4()))
    with socket.socket() as small:
        # What the kernel keeps for a reader must not be enough for all that is sent.
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        small.setblocking(False)  # noqa: FBT003  the socket's own signature
        host, port = slow.url.removeprefix("http://").split(":")
        await asyncio.get_running_loop().sock_connect(small, (host, int(port)))
        slow.socket = await connect(
            f"ws://{host}:{port}/v1/channel",
            additional_headers=slow.headers,
            sock=small,
            compression=None,
            proxy=None,
            max_size=None,
        )
        await slow.send(slow.hello_frame())
        await slow.next_batch()
        await slow.ready()
        await until(lambda: database.agent("slow").state == "idle")
        slow.socket.transport.pause_reading()
        large = [database.add_job(queue="large", workload={"noise": "x" * 900_000}) for _ in range(20)]
        await until(lambda: database.job(large[0]).state == JobState.OFFERED, seconds=15)
        await quick.open()
        await quick.ready()
        database.add_job()
        assert (await quick.hear(Offer)).fence == 1
        await until(lambda: "Agent slow reads too slowly" in caplog.text, seconds=30)
        # Nothing of it is lost: it waits for somebody who reads.
        await until(lambda: all(database.job(job_id).state == JobState.QUEUED for job_id in large), seconds=15)
        slow.socket.transport.abort()


async def test_a_stop_closes_connections_at_once(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    client: Any = None
    with caplog.at_level(logging.ERROR):
        async with served(build_app(database)) as site:
            agent = ChannelAgent(client, "factory", database.credential("factory"), url=site.url)
            await agent.open()
            started = time.monotonic()
        assert await agent.closed() == 1012
        assert time.monotonic() - started < 2
    assert not caplog.records


async def test_http_and_channel_exclude_each_other(database: Database, dial: MakeChannelAgent, site: Served) -> None:
    import httpx  # noqa: PLC0415  only here

    agent = dial()
    await agent.open()
    async with httpx.AsyncClient(base_url=site.url) as client:
        fallback = FakeAgent(client, "factory", agent.credential, agent_id=agent.agent_id)
        await fallback.hello()
        assert await agent.closed() == 4000
        job_id = database.add_job()
        assert [offer.job_id for offer in await fallback.offers()] == [job_id]
        await fallback.exchange(Started(job_id=job_id, fence=1, pid=1))
