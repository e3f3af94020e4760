"""How much of the server anybody may have."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from logging import INFO
from pathlib import Path
from typing import Any

import httpx
import pytest
from airflow.exceptions import AirflowConfigException
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from airflow_edge_agent.protocol.codec import encode_batch, pack_log
from airflow_edge_agent.protocol.frames import Log, LogAck, Welcome
from airflow_edge_server import config
from fakes.credentials import make_prover
from integration.server_api.channel_kit import ChannelAgent, served
from integration.server_api.kit import SETTINGS, Database, FakeAgent, build_app, make_database, only, running

WRONG = {"Authorization": make_prover().header()}


@pytest.fixture(params=["sqlite"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return make_database(request, tmp_path)


@pytest.fixture
def site(database: Database) -> Callable[..., Any]:
    @asynccontextmanager
    async def run(**given: Any) -> AsyncIterator[httpx.AsyncClient]:
        async with running(build_app(database, settings=replace(SETTINGS, **given))) as client:
            yield client

    return run


async def test_wrong_credentials_are_soon_not_looked_at(
    site: Callable[..., Any], database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async with site(wrong_credentials_per_minute=5) as client:
        known, new = (FakeAgent(client, name, database.credential(name)) for name in ("known", "new"))
        assert isinstance((await known.hello())[0], Welcome)
        answers = [await client.post("/v1/exchange", headers=WRONG) for _ in range(30)]
        assert [answer.status_code for answer in answers] == [401] * 10 + [429] * 20
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 12
        assert answers[-1].json() == {"error": "too many wrong credentials from there"}
        # Behind the same address, who was right before is not affected; who is new has to come again.
        assert (await known.post(encode_batch([], session_id=known.session_id))).status_code == 200
        assert (await new.post(b"{}")).status_code == 429
        # Nor by somebody who tries to be it.
        known.token = known.prover.header().removeprefix("Bearer ")[:-4] + "aaaa"
        assert (await known.post(b"{}")).status_code == 401
        known.token = None
        assert (await known.post(encode_batch([], session_id=known.session_id))).status_code == 200
    lines = [record for record in caplog.records if "Wrong credentials again and again" in record.getMessage()]
    assert len(lines) == 1


async def test_right_credentials_cost_nothing(site: Callable[..., Any], database: Database) -> None:
    async with site(wrong_credentials_per_minute=1) as client:
        for number in range(10):
            agent = FakeAgent(client, f"press-{number}", database.credential(f"press-{number}"))
            assert isinstance((await agent.hello())[0], Welcome)


async def test_too_many_headers_are_refused(site: Callable[..., Any]) -> None:
    async with site() as client:
        answer = await client.get("/", headers={"x-padding": "x" * 40_000})
        assert answer.status_code == 431
        assert (await client.get("/?" + "q" * 40_000)).status_code == 431


async def test_an_agent_that_asks_too_often_is_told_when_to_come_again(
    site: Callable[..., Any], database: Database
) -> None:
    async with site(agent_requests_per_second=0.5) as client:
        fast, other = (FakeAgent(client, name, database.credential(name)) for name in ("fast", "other"))
        codes = [(await fast.post(b"{}")).status_code for _ in range(8)]
        assert codes == [200] * 5 + [429] * 3
        assert (await fast.post(b"{}")).headers["retry-after"] in {"1", "2"}
        assert (await other.post(b"{}")).status_code == 200, "others are not affected"


async def test_an_agent_has_a_few_connections_and_all_together_have_many(
    site: Callable[..., Any], database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async with site(agent_connections=4, max_connections=6) as client:
        never = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b"{"
            await never.wait()

        def hang(name: str) -> asyncio.Task[httpx.Response]:
            headers = FakeAgent(client, name, database.credential(name)).headers
            return asyncio.create_task(client.post("/v1/exchange", content=slow(), headers=headers))

        credential = database.credential("a")
        hanging = {hang("a") for _ in range(5)}
        done, hanging = await asyncio.wait(hanging, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        (refused,) = [task.result() for task in done]
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
        hanging |= {hang("b"), hang("c")}
        async with asyncio.timeout(10):
            while (answer := await client.get("/")).status_code != 503:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert answer.headers["retry-after"] == "5"
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
        assert (await FakeAgent(client, "a", credential).post(b"{}")).status_code == 200
    assert caplog.text.count("has 4 connections already") == 1
    assert caplog.text.count("All 6 connections") == 1


async def test_a_flood_on_a_websocket_counts_for_the_agent_and_not_for_the_connection(database: Database) -> None:
    settings = replace(SETTINGS, agent_requests_per_second=2)
    async with served(build_app(database, settings=settings)) as server:
        client: Any = None
        agent = ChannelAgent(client, "factory", database.credential("factory"), url=server.url)
        await agent.open()
        with contextlib.suppress(ConnectionClosed):
            for _ in range(100):
                await agent.ready()
        assert await agent.closed() == 1008
        with pytest.raises(InvalidStatus) as refused:
            await agent.dial()
        assert refused.value.response.status_code == 429
        assert refused.value.response.headers["retry-after"] == "1"
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"{server.url.replace('http', 'ws')}/v1/channel", additional_headers=WRONG, proxy=None)
        assert refused.value.response.status_code == 401


async def test_refused_handshakes_are_no_faults_of_the_server(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async def mute(socket: WebSocket) -> None:
        # Ends without an answer to the handshake: that is a fault, and has to be told.
        await socket.receive()

    settings = replace(SETTINGS, agent_connections=0)
    async with served(build_app(database, settings=settings)) as server:
        client: Any = None
        agent = ChannelAgent(client, "factory", database.credential("factory"), url=server.url)
        url = f"{server.url.replace('http', 'ws')}/v1/channel"
        codes = []
        for dialled in (lambda: connect(url, additional_headers=WRONG, proxy=None), agent.dial):
            with pytest.raises(InvalidStatus) as refused:
                await dialled()
            codes.append(refused.value.response.status_code)
        server.app.router.routes.insert(0, WebSocketRoute("/mute", mute))
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"{server.url.replace('http', 'ws')}/mute", proxy=None)
        codes.append(refused.value.response.status_code)
    assert codes == [401, 429, 500]
    told = [
        record.getMessage() for record in caplog.records if record.name == "uvicorn.error" and record.levelno > INFO
    ]
    assert told == ["ASGI callable returned without completing handshake."], "of the handshake that nobody answered"


async def test_agents_behind_one_address_may_stay_connected_all_at_once(database: Database) -> None:
    # Twice as many may be tried at once; what a connection was lent for its handshake comes back with the answer.
    settings = replace(SETTINGS, wrong_credentials_per_minute=1)
    async with served(build_app(database, settings=settings)) as server:
        client: Any = None
        for number in range(6):
            name = f"factory-{number}"
            await ChannelAgent(client, name, database.credential(name), url=server.url).open()


async def test_a_log_is_kept_up_to_its_bound_and_says_so(site: Callable[..., Any], database: Database) -> None:
    async with site(log_max_bytes=1000) as client:
        agent = FakeAgent(client, "factory", database.credential("factory"))
        await agent.hello()
        job_id = database.add_job()
        await agent.take(start=True)
        line = b"x" * 99 + b"\n"
        offset = 0
        for count in (5, 3, 5, 5, 7):
            data = line * count
            (ack,) = only(await agent.exchange(Log(job_id=job_id, offset=offset, data=pack_log(data))), LogAck)
            offset += len(data)
            assert ack.next_offset == offset, "what is not kept counts as delivered, so that the agent lets go of it"
        with database.sessions() as session:
            stored = b"".join(
                row[0]
                for row in session.connection().exec_driver_sql(
                    "SELECT data FROM edge_agent_log ORDER BY job_id, offset"
                )
            )
    assert stored.startswith(line * 10)
    assert stored.count(b"log_max_mb") == 1
    assert len(stored) < 1300


def test_the_bounds_are_told_where_they_are_wrong() -> None:
    class Source:
        def __init__(self, **values: str) -> None:
            self.values = values

        def get(self, section: str, option: str, fallback: object = None) -> object:
            return self.values.get(option, fallback)

        def getboolean(self, section: str, option: str, fallback: object = None) -> object:
            return fallback

    loaded = config.load(Source(log_max_mb="1.5", agent_connections="4"))
    assert (loaded.log_max_bytes, loaded.agent_connections) == (1_572_864, 4)
    for option, value in (("agent_connections", "1"), ("max_connections", "0"), ("log_max_mb", "-1")):
        with pytest.raises(AirflowConfigException, match=option):
            config.load(Source(**{option: value}))
