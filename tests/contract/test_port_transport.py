"""What every way to the server does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from airflow_edge_agent.adapters.http import HttpTransport
from airflow_edge_agent.adapters.network import Network
from airflow_edge_agent.adapters.websocket import WebSocketTransport
from airflow_edge_agent.ports import CredentialRefused, Link, Transport, TransportError
from airflow_edge_agent.protocol.frames import (
    MAX_FRAMES,
    Accept,
    AcceptAck,
    AgentFrame,
    Cancel,
    Close,
    Goodbye,
    Intervals,
    Log,
    LogAck,
    Maintenance,
    ServerFrame,
    Status,
    Welcome,
)
from airflow_edge_agent.protocol.states import AgentState
from fakes import MemoryTransport, ScriptedServer
from fakes.credentials import make_prover, refusal
from fakes.frames import make_hello, make_offer, make_presence, make_welcome, new_id
from fakes.http_server import AgentApi, Reply, serve

SECONDS = 10


@dataclass
class Way:
    """A transport and who is at its other end."""

    transport: Transport
    server: ScriptedServer
    api: AgentApi | None = None

    def refuse_credential(self) -> None:
        if self.api is None:
            self.server.fault = CredentialRefused("no")
        else:
            self.api.misbehave = lambda _: Reply(401, "Unauthorized", refusal())
            self.api.cut()

    def break_down(self) -> None:
        self.server.fault = TransportError("broken")
        if self.api is None:
            assert isinstance(self.transport, MemoryTransport)
            for link in self.transport.links:
                link.cut()
        else:
            self.api.misbehave = lambda _: Reply(502, "Bad Gateway")
            self.server.push()  # the waiting poll ends, the next one meets the fault
            self.api.cut()


@pytest.fixture(params=["http", "websocket", "memory"])
async def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Way]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = ScriptedServer()
    if request.param == "memory":
        transport = MemoryTransport(server)
        yield Way(transport, server)
        await transport.close()
        return
    api = AgentApi(server)
    async with serve(api) as port:
        kind = HttpTransport if request.param == "http" else WebSocketTransport
        carrier = kind(f"http://127.0.0.1:{port}", make_prover(), Network())
        yield Way(carrier, server, api)
        await carrier.close()


async def receive(link: Link) -> list[ServerFrame]:
    return await asyncio.wait_for(link.receive(), SECONDS)


async def receive_all(link: Link) -> None:
    while True:
        await receive(link)


async def send_until_it_breaks(link: Link) -> None:
    while True:
        await link.send([Accept(job_id=new_id(), fence=1)])
        await receive(link)


async def opened(way: Way) -> Link:
    link = await way.transport.connect(make_hello(), make_presence)
    (frame,) = await receive(link)
    assert isinstance(frame, Welcome)
    return link


async def test_the_answer_to_the_hello_comes_first(way: Way) -> None:
    hello, welcome = make_hello(jobs=[]), make_welcome()
    cancel = Cancel(job_id=new_id(), fence=1, reason="unknown here")
    way.server.on_hello = lambda _: [welcome, cancel]
    link = await way.transport.connect(hello, make_presence)
    assert await receive(link) == [welcome, cancel]
    assert way.server.hellos == [hello]
    await link.close()


async def test_a_close_instead_of_a_welcome(way: Way) -> None:
    close = Close(code="name_in_use", message="taken")
    way.server.on_hello = lambda _: [close]
    link = await way.transport.connect(make_hello(), make_presence)
    assert await receive(link) == [close]
    await link.close()
    assert way.server.presences == []


async def test_signs_of_life_are_asked_for_without_being_sent(way: Way) -> None:
    link = await opened(way)
    await way.server.wait_for(lambda: bool(way.server.presences))
    assert [frame.type for frame in way.server.presences[0]] == ["status", "heartbeat"]
    await link.close()


async def test_the_server_speaks_at_any_time(way: Way) -> None:
    link = await opened(way)
    offer = make_offer(workload={"type": "ExecuteTask", "deep": {"list": [1, None, "\N{SNOWMAN}"]}})
    way.server.push(offer)
    assert await receive(link) == [offer]
    maintenance = Maintenance(on=True, comment="new disk")
    way.server.push(maintenance)
    assert await receive(link) == [maintenance]
    await link.close()


async def test_the_next_sign_of_life_tells_of_the_effect_of_what_came(way: Way) -> None:
    used = 0

    def presence() -> list[AgentFrame]:
        state = Status(state=AgentState.RUNNING, slots_total=4, slots_used=used)
        return [state, *make_presence()[1:]]

    def told() -> int:
        (status,) = way.server.presences[-1][:1]
        assert isinstance(status, Status)
        return status.slots_used

    way.server.on_hello = lambda _: [make_welcome(intervals=Intervals(heartbeat_seconds=0.2))]
    link = await way.transport.connect(make_hello(), presence)
    await receive(link)
    await way.server.wait_for(lambda: bool(way.server.presences))
    waiting = asyncio.create_task(link.receive())
    way.server.push(make_offer())
    await asyncio.wait_for(asyncio.wait([waiting]), SECONDS)
    used = 1  # acted upon, and then received again
    waiting = asyncio.create_task(link.receive())
    await way.server.wait_for(lambda: told() == 1)
    waiting.cancel()
    await link.close()


async def test_frames_arrive_in_order_and_their_answers_come_back(way: Way) -> None:
    link = await opened(way)
    way.server.on_send = lambda frames: [
        AcceptAck(job_id=frame.job_id, fence=frame.fence) for frame in frames if isinstance(frame, Accept)
    ]
    accepts: list[AgentFrame] = [Accept(job_id=new_id(), fence=n) for n in range(1, 6)]
    await asyncio.wait_for(link.send(accepts), SECONDS)
    await way.server.wait_for(lambda: way.server.received == accepts)
    answers = await receive(link)
    assert [frame.fence for frame in answers if isinstance(frame, AcceptAck)] == [1, 2, 3, 4, 5]
    await link.close()


async def test_sending_does_not_wait_for_the_poll(way: Way) -> None:
    link = await opened(way)
    await way.server.wait_for(lambda: bool(way.server.presences))
    for _ in range(3):
        await asyncio.wait_for(link.send([Goodbye(state=AgentState.OFFLINE, reason="x")]), SECONDS)
    await way.server.wait_for(lambda: len(way.server.received) == 3)
    assert len(way.server.presences) == 1
    await link.close()


async def test_large_frames_and_many_frames_arrive(way: Way) -> None:
    link = await opened(way)
    job_id = new_id()
    frames: list[AgentFrame] = [Log(job_id=job_id, offset=n, data="A" * 300_000) for n in range(12)]
    frames += [Accept(job_id=job_id, fence=n + 1) for n in range(MAX_FRAMES)]
    way.server.on_send = lambda got: [LogAck(job_id=job_id, next_offset=len(got))]
    await asyncio.wait_for(link.send(frames), SECONDS)
    await way.server.wait_for(lambda: way.server.received == frames)
    await link.close()


async def test_a_broken_link_raises_on_both_sides(way: Way) -> None:
    link = await opened(way)
    await way.server.wait_for(lambda: bool(way.server.presences))
    way.break_down()
    with pytest.raises(TransportError):
        await receive_all(link)
    with pytest.raises(TransportError):
        await link.send([Accept(job_id=new_id(), fence=1)])
    await link.close()


async def test_no_server_there(way: Way) -> None:
    way.break_down()
    with pytest.raises(TransportError) as caught:
        await way.transport.connect(make_hello(), make_presence)
    assert not isinstance(caught.value, CredentialRefused)


async def test_a_refused_credential_is_told_apart(way: Way) -> None:
    way.refuse_credential()
    with pytest.raises(CredentialRefused):
        await way.transport.connect(make_hello(), make_presence)


async def test_a_credential_refused_later(way: Way) -> None:
    link = await opened(way)
    way.refuse_credential()
    with pytest.raises(TransportError):
        await send_until_it_breaks(link)
    await link.close()
    with pytest.raises(CredentialRefused):
        await way.transport.connect(make_hello(), make_presence)


async def test_closing_never_raises_and_ends_the_signs_of_life(way: Way) -> None:
    link = await opened(way)
    await way.server.wait_for(lambda: bool(way.server.presences))
    await link.close()
    await link.close()
    way.server.push(make_offer())
    again = await opened(way)
    await again.close()
    assert len(way.server.hellos) == 2


async def test_a_second_link_after_a_broken_one(way: Way) -> None:
    link = await opened(way)
    await way.server.wait_for(lambda: bool(way.server.presences))
    way.break_down()
    with pytest.raises(TransportError):
        await receive_all(link)
    await link.close()
    way.server.fault = None
    if way.api is not None:
        way.api.misbehave = lambda _: None
    again = await opened(way)
    await again.close()


async def test_the_interval_of_the_welcome_bounds_the_silence(way: Way) -> None:
    if way.api is None:
        pytest.skip("in memory nothing times out")
    way.server.on_hello = lambda _: [make_welcome(intervals=Intervals(heartbeat_seconds=0.1))]
    link = await opened(way)
    await way.server.wait_for(lambda: len(way.server.presences) >= 3)
    await link.close()
