"""What the WebSocket carrier says about faults, and when the agent falls back to HTTP and climbs again."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import traceback
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trustme
from structlog.testing import capture_logs

from airflow_edge_agent import __version__
from airflow_edge_agent.adapters import websocket
from airflow_edge_agent.adapters.carriers import CarrierTransport
from airflow_edge_agent.adapters.network import Network
from airflow_edge_agent.adapters.websocket import WebSocketTransport
from airflow_edge_agent.core.carrier import Carrier, CarrierPolicy
from airflow_edge_agent.ports import CarrierUnsupported, CredentialRefused, Link, ServerLeft, TransportError
from airflow_edge_agent.protocol import CHANNEL_PATH
from airflow_edge_agent.protocol.frames import Accept, AgentFrame, Close, Intervals, Log, Welcome
from fakes import ScriptedServer
from fakes.credentials import SECRET, make_prover, refusal
from fakes.frames import make_hello, make_presence, make_welcome, new_id
from fakes.http_server import AgentApi, Reply, Request, serve
from fakes.waiting import eventually
from fakes.websocket import Channel

PATH = "/edge-agents/v1/channel"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


async def fault(url: str, network: Network | None = None) -> TransportError:
    """Connect, which must fail, and check what is true of every fault."""
    transport = WebSocketTransport(url, make_prover(), network or Network())
    with pytest.raises(TransportError) as caught:
        await asyncio.wait_for(transport.connect(make_hello(), make_presence), 20)
    error = caught.value
    text = str(error)
    assert "\n" not in text
    assert text.startswith(f"{url}{PATH}: ")
    assert ";" in text, "what happened; what to do about it"
    assert len(text) < 600
    secret = SECRET
    assert secret not in "".join(traceback.format_exception(error))
    assert secret not in repr(error)
    return error


async def fault_of(answer: Reply) -> TransportError:
    async def handler(_: Request) -> Reply:
        return answer

    async with serve(handler) as port:
        return await fault(f"http://127.0.0.1:{port}")


async def fault_after(talk: Callable[[Channel], object]) -> TransportError:
    async def upgraded(channel: Channel) -> None:
        await channel.receive()
        done = talk(channel)
        if asyncio.iscoroutine(done):
            await done

    return await fault_of(Reply(101, upgraded=upgraded))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# Nothing there: HTTP would fare no better


async def test_connection_refused() -> None:
    error = await fault(f"http://127.0.0.1:{free_port()}")
    assert "is the api-server running there?" in str(error)
    assert not isinstance(error, CarrierUnsupported)


async def test_a_name_that_does_not_exist() -> None:
    error = await fault("http://edge-agent-test.invalid")
    assert "check server_url and DNS" in str(error)
    assert not isinstance(error, CarrierUnsupported)


async def test_certificates_that_do_not_fit(tmp_path: Path) -> None:
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("airflow.example").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with serve(AgentApi(ScriptedServer()), tls) as port:
        unknown = await fault(f"https://127.0.0.1:{port}")
        misnamed = await fault(f"https://127.0.0.1:{port}", Network(tmp_path / "ca.pem"))
    for error in (unknown, misnamed):
        assert "not trusted" in str(error)
        assert not isinstance(error, CarrierUnsupported)


async def test_tls_to_a_plain_port() -> None:
    async with serve(AgentApi(ScriptedServer())) as port:
        assert "https right for that port?" in str(await fault(f"https://127.0.0.1:{port}"))


async def test_a_refused_credential() -> None:
    error = await fault_of(Reply(401, "Unauthorized", refusal()))
    assert isinstance(error, CredentialRefused)
    assert "airflow edge-agents enroll" in str(error)


# Something there, but no WebSocket: HTTP may get through


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(404, "Not Found"), "airflow-edge-server"),
        (Reply(403, "Forbidden"), "403 Forbidden"),
        (Reply(426, "Upgrade Required"), "426"),
        (Reply(200, "OK", body=b"<!doctype html>"), "200 OK"),
        (Reply(502, "Bad Gateway"), "502"),
        (Reply(302, "Found", {"location": "https://login.example/"}), "redirects to https://login.example/"),
        (Reply(101, "Switching Protocols"), "proxy or login page"),
    ],
)
async def test_an_answer_other_than_an_upgrade(reply: Reply, words: str) -> None:
    error = await fault_of(reply)
    assert isinstance(error, CarrierUnsupported)
    assert words in str(error)


async def test_retry_after_is_kept() -> None:
    error = await fault_of(Reply(503, "Service Unavailable", {"retry-after": "7"}))
    assert error.retry_after_seconds == 7


async def test_too_many_requests_are_no_reason_to_use_another_carrier() -> None:
    error = await fault_of(Reply(429, "Too Many Requests", {"retry-after": "9"}))
    assert not isinstance(error, CarrierUnsupported)
    assert error.retry_after_seconds == 9


async def test_a_redirect_is_not_followed() -> None:
    asked = []

    async def handler(request: Request) -> Reply:
        asked.append(request.path)
        return Reply(307, "Temporary Redirect", {"location": "/elsewhere"})

    async with serve(handler) as port:
        await fault(f"http://127.0.0.1:{port}")
    assert asked == [PATH]


async def test_something_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "_OPEN_SECONDS", 0.2)

    async def never(_: Request) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    async with serve(never) as port:
        error = await fault(f"http://127.0.0.1:{port}")
    assert isinstance(error, CarrierUnsupported)
    assert "stopped answering" in str(error)


async def test_something_that_hangs_up_or_babbles() -> None:
    for words in (b"", b"220 mail.example ESMTP\r\n\r\n"):

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, words: bytes = words) -> None:
            writer.write(words)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        error = await fault(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        assert isinstance(error, CarrierUnsupported)
        server.close()


async def test_an_upgrade_after_which_nothing_comes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "_ANSWER_SECONDS", 0.2)
    error = await fault_after(lambda channel: channel.receive())
    assert isinstance(error, CarrierUnsupported)
    assert "nothing comes through" in str(error)


@pytest.mark.parametrize(
    "talk",
    [
        lambda channel: channel.abort(),
        lambda channel: channel.close(1002, "no"),
        lambda channel: channel.send(b"<!doctype html>"),
        lambda channel: channel.send(b'{"frames": [{"type": "welcome"}]}'),
        lambda channel: channel.send(b" " * 5_000_000),
    ],
)
async def test_an_upgrade_to_something_else(talk: Callable[[Channel], object]) -> None:
    assert isinstance(await fault_after(talk), CarrierUnsupported)


# An open link


@contextlib.asynccontextmanager
async def linked(
    server: ScriptedServer | None = None,
) -> AsyncIterator[tuple[Link, AgentApi, list[Request]]]:
    api = AgentApi(server or ScriptedServer())
    async with serve(api) as port:
        link = await WebSocketTransport(f"http://127.0.0.1:{port}/airflow", make_prover(), Network()).connect(
            make_hello(), make_presence
        )
        assert link.carrier == "websocket"
        assert isinstance((await link.receive())[0], Welcome)
        try:
            yield link, api, api.requests
        finally:
            await link.close()


async def test_what_the_handshake_carries() -> None:
    async with linked() as (_, api, requests):
        (request,) = requests
        assert request.method == "GET"
        assert request.path == "/airflow" + PATH
        assert request.headers["authorization"].startswith("Bearer eap_0123456789abcdef_")
        assert request.headers["user-agent"] == f"airflow-edge-agent/{__version__}"
        assert api.channels[0].compressed


@pytest.mark.parametrize(("code", "kind"), [(1001, ServerLeft), (1012, ServerLeft), (4000, TransportError)])
async def test_closed_by_the_server(code: int, kind: type[TransportError]) -> None:
    async with linked() as (link, api, _):
        await api.channels[0].close(code, "bye")
        with pytest.raises(TransportError, match=f"{code} bye") as caught:
            await asyncio.wait_for(link.receive(), 10)
        assert type(caught.value) is kind
        with pytest.raises(TransportError):
            await link.send([Accept(job_id=new_id(), fence=1)])


async def test_a_dead_line_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "_PING_SECONDS", 0.2)
    async with linked() as (link, api, _):
        api.channels[0].deaf = True
        with pytest.raises(TransportError, match="ping"):
            await asyncio.wait_for(link.receive(), 10)


async def test_messages_stay_small_enough_for_a_slow_line() -> None:
    async with linked() as (link, api, _):
        frames: list[AgentFrame] = [
            Log(job_id=new_id(), offset=0, data=random.randbytes(45_000).hex()) for _ in range(10)
        ]
        await link.send(frames)
        await eventually(lambda: len(api.server.received) == 10)
        assert api.channels[0].largest < 300_000


async def test_signs_of_life_come_regularly() -> None:
    server = ScriptedServer()
    server.on_hello = lambda _: [make_welcome(intervals=Intervals(heartbeat_seconds=0.1))]
    async with linked(server):
        await eventually(lambda: len(server.presences) >= 3)
    assert [frame.type for frame in server.presences[0]] == ["status", "heartbeat"]


# Falling back and climbing


@contextlib.asynccontextmanager
async def choosing(policy: CarrierPolicy = "auto") -> AsyncIterator[tuple[CarrierTransport, AgentApi]]:
    api = AgentApi(ScriptedServer())
    async with serve(api) as port:
        transport = CarrierTransport(f"http://127.0.0.1:{port}", make_prover(), Network(), policy)
        try:
            yield transport, api
        finally:
            await transport.close()


async def carrier_of_a_link(transport: CarrierTransport) -> str:
    link = await transport.connect(make_hello(), make_presence)
    await link.receive()
    await link.close()
    return link.carrier


async def test_http_where_websockets_do_not_come_through() -> None:
    async with choosing() as (transport, api):
        api.websockets = False
        with capture_logs() as logs:
            assert await carrier_of_a_link(transport) == "http"
            assert await carrier_of_a_link(transport) == "http"
        assert [request.path.rsplit("/", 1)[-1] for request in api.requests][:2] == ["channel", "exchange"]
        assert sum(request.path.endswith(CHANNEL_PATH) for request in api.requests) == 1
        (line,) = logs
        assert "403" in line["reason"]
        assert 300 <= line["again_in_seconds"] <= 600


async def test_a_server_that_is_down_is_not_the_websockets_fault() -> None:
    async with choosing() as (transport, api):
        api.misbehave = lambda _: Reply(502, "Bad Gateway")
        with pytest.raises(TransportError, match="502"):
            await transport.connect(make_hello(), make_presence)
        api.misbehave = lambda _: None
        assert await carrier_of_a_link(transport) == "websocket"


async def test_no_fallback_where_none_is_wanted() -> None:
    async with choosing("websocket") as (transport, api):
        api.websockets = False
        with pytest.raises(CarrierUnsupported):
            await transport.connect(make_hello(), make_presence)
    async with choosing("http") as (transport, _):
        assert await carrier_of_a_link(transport) == "http"


async def test_a_websocket_that_keeps_breaking() -> None:
    async with choosing() as (transport, api):
        for expected in ("websocket", "websocket", "http"):
            link = await transport.connect(make_hello(), make_presence)
            assert link.carrier == expected
            await link.receive()
            if expected == "websocket":
                api.cut()
                with pytest.raises(TransportError):
                    await asyncio.wait_for(link.receive(), 10)
                with pytest.raises(TransportError):
                    await link.send([Accept(job_id=new_id(), fence=1)])
            await link.close()


async def test_a_server_that_leaves_or_closes_does_not_count_as_breaking() -> None:
    async with choosing() as (transport, api):
        for _ in range(3):
            link = await transport.connect(make_hello(), make_presence)
            await link.receive()
            await api.channels[-1].close(1012)
            with pytest.raises(ServerLeft):
                await asyncio.wait_for(link.receive(), 10)
            await link.close()
        for _ in range(3):
            link = await transport.connect(make_hello(), make_presence)
            await link.receive()
            api.server.push(Close(code="session_unknown", message="again"))
            assert (await asyncio.wait_for(link.receive(), 10))[0].type == "close"
            await link.close()
        assert transport.choice.choose(0) is Carrier.WEBSOCKET


async def test_climbing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async with choosing() as (transport, api):
        climb = asyncio.create_task(transport.climb())
        await asyncio.sleep(0)
        api.websockets = False
        assert await carrier_of_a_link(transport) == "http"
        assert not climb.done(), "a WebSocket was in favour when it began"
        climb.cancel()
        now = asyncio.get_running_loop().time()
        transport.choice.climb_at = now
        climb = asyncio.create_task(transport.climb())
        await eventually(lambda: transport.choice.climb_at != now)
        assert not climb.done()
        assert await carrier_of_a_link(transport) == "http"
        climb.cancel()
        api.websockets = True
        transport.choice.climb_at = now
        await asyncio.wait_for(transport.climb(), 10)
        assert await carrier_of_a_link(transport) == "websocket"
        assert transport.choice.climb_at is None
