"""What the HTTP carrier says about faults: one line each, with the address and what to do."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from airflow_edge_agent import __version__
from airflow_edge_agent.adapters.batches import groups
from airflow_edge_agent.adapters.http import _MAX_SEND_BYTES, HttpTransport
from airflow_edge_agent.adapters.network import Network
from airflow_edge_agent.ports import CredentialRefused, TransportError
from airflow_edge_agent.protocol.codec import encode_batch
from airflow_edge_agent.protocol.frames import MAX_BATCH_BYTES, MAX_FRAMES, Accept, AgentFrame, Log, Welcome
from fakes import ScriptedServer
from fakes.credentials import SECRET, make_prover, refusal
from fakes.frames import make_hello, make_offer, make_presence, make_welcome, new_id
from fakes.http_server import AgentApi, Reply, Request, serve

PATH = "/edge-agents/v1/exchange"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@asynccontextmanager
async def transport_to(url: str, ca_file: Path | None = None) -> AsyncIterator[HttpTransport]:
    transport = HttpTransport(url, make_prover(), Network(ca_file=ca_file))
    try:
        yield transport
    finally:
        await transport.close()


async def fault(url: str, ca_file: Path | None = None) -> TransportError:
    """Connect, which must fail, and check what is true of every fault."""
    async with transport_to(url, ca_file) as transport:
        with pytest.raises(TransportError) as caught:
            await asyncio.wait_for(transport.connect(make_hello(), make_presence), 20)
    error = caught.value
    text = str(error)
    assert "\n" not in text
    assert text.startswith(f"{url}{PATH}: ")
    assert ";" in text, "what happened; what to do about it"
    assert len(text) < 500
    assert SECRET not in "".join(traceback.format_exception(error))
    assert SECRET not in repr(error)
    return error


async def fault_of(answer: Callable[[Request], Reply]) -> TransportError:
    async def handler(request: Request) -> Reply:
        return answer(request)

    async with serve(handler) as port:
        return await fault(f"http://127.0.0.1:{port}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_connection_refused() -> None:
    assert "is the api-server running there?" in str(await fault(f"http://127.0.0.1:{free_port()}"))


async def test_a_name_that_does_not_exist() -> None:
    assert "check server_url and DNS" in str(await fault("http://edge-agent-test.invalid"))


async def test_a_certificate_of_an_unknown_authority() -> None:
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    async with serve(AgentApi(ScriptedServer()), tls) as port:
        text = str(await fault(f"https://127.0.0.1:{port}"))
    assert "not trusted" in text
    assert "ca_file" in text


async def test_a_certificate_of_an_authority_given_as_ca_file(tmp_path: Path) -> None:
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with (
        serve(AgentApi(ScriptedServer()), tls) as port,
        transport_to(f"https://127.0.0.1:{port}", tmp_path / "ca.pem") as transport,
    ):
        link = await transport.connect(make_hello(), make_presence)
        await link.close()


async def test_a_certificate_for_another_name(tmp_path: Path) -> None:
    authority = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("airflow.example").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with serve(AgentApi(ScriptedServer()), tls) as port:
        text = str(await fault(f"https://127.0.0.1:{port}", tmp_path / "ca.pem"))
    assert "the name in server_url" in text


async def test_tls_to_a_plain_port() -> None:
    async with serve(AgentApi(ScriptedServer())) as port:
        assert "https right for that port?" in str(await fault(f"https://127.0.0.1:{port}"))


async def test_plain_to_a_tls_port() -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    async with serve(AgentApi(ScriptedServer()), tls) as port:
        assert "connection broke" in str(await fault(f"http://127.0.0.1:{port}"))


@pytest.mark.parametrize("content", [None, "", "no certificate"])
async def test_a_ca_file_that_cannot_be_used(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(TransportError, match="ca_file") as caught:
        HttpTransport("https://airflow.example", make_prover(), Network(ca_file=path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_refused_credential() -> None:
    error = await fault_of(lambda _: Reply(401, "Unauthorized", refusal()))
    assert isinstance(error, CredentialRefused)
    assert "airflow edge-agents enroll" in str(error)


async def test_a_login_page_before_the_server_says_nothing_about_the_credential() -> None:
    error = await fault_of(lambda _: Reply(401, "Unauthorized", {"WWW-Authenticate": 'Basic realm="proxy"'}))
    assert not isinstance(error, CredentialRefused)
    assert "wants a login" in str(error)


async def test_a_clock_that_is_wrong_is_corrected_by_the_refusal() -> None:
    api = AgentApi(ScriptedServer())
    moments: list[int] = []

    async def handler(request: Request) -> Reply:
        moments.append(int(request.headers["authorization"].split("_")[2]))
        server_time = time.time() + 3_600
        if abs(moments[-1] - server_time) > 120:
            return Reply(401, "Unauthorized", refusal(server_time))
        return await api(request)

    async with serve(handler) as port, transport_to(f"http://127.0.0.1:{port}") as transport:
        link = await transport.connect(make_hello(), make_presence)
        assert isinstance((await link.receive())[0], Welcome)
        await link.close()
    assert moments[1] - moments[0] > 3_000
    assert all(moment - moments[0] > 3_000 for moment in moments[1:])


@pytest.mark.parametrize("status", [404, 405])
async def test_a_server_without_the_plugin(status: int) -> None:
    error = await fault_of(lambda _: Reply(status, "Nope"))
    assert not isinstance(error, CredentialRefused)
    assert "airflow-edge-server" in str(error)


async def test_a_redirect_is_named_and_not_followed() -> None:
    asked = []

    def answer(request: Request) -> Reply:
        asked.append(request.path)
        return Reply(302, "Found", {"location": "https://login.example/" + "x" * 5_000})

    error = await fault_of(answer)
    assert "redirects to https://login.example/" in str(error)
    assert asked == [PATH]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), ("0.5", 0.5), ("-3", 0), ("1e9", 300), ("inf", 300), ("nan", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)],
)
async def test_a_busy_server_may_say_when_to_come_back(header: str, seconds: float) -> None:
    error = await fault_of(lambda _: Reply(503, "Service Unavailable", {"retry-after": header}))
    assert "503 Service Unavailable" in str(error)
    assert error.retry_after_seconds == seconds


@pytest.mark.parametrize("status", [400, 403, 413, 500, 502])
async def test_any_other_status(status: int) -> None:
    assert f"answers {status} Because" in str(await fault_of(lambda _: Reply(status, "Because")))


@pytest.mark.parametrize(
    "body",
    [
        b"<!doctype html><title>Sign in</title>",
        b"",
        b"[]",
        b'{"frames": [{"type": "welcome"}]}',
        b'{"frames": [{}]}',
        b"\xff\xfe\x00",
    ],
)
async def test_an_answer_that_is_none_of_ours(body: bytes) -> None:
    assert "proxy or login page" in str(await fault_of(lambda _: Reply(body=body)))


async def test_an_answer_without_end() -> None:
    assert "longer than" in str(await fault_of(lambda _: Reply(body=b" " * (MAX_BATCH_BYTES + 70_000))))


async def test_a_server_that_hangs_up_in_the_middle_of_an_answer() -> None:
    error = await fault_of(lambda _: Reply(body=b'{"frames"', announce_bytes=1000))
    assert "the connection broke" in str(error)


async def test_a_server_that_hangs_up_without_an_answer() -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert "the connection broke" in str(await fault(f"http://127.0.0.1:{port}"))
    server.close()


async def test_something_that_is_not_http() -> None:
    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert "the connection broke" in str(await fault(f"http://127.0.0.1:{port}"))
    server.close()


async def test_a_server_that_stops_answering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_edge_agent.adapters.http._SLACK_SECONDS", 0.1)

    async def never(_: Request) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    async with serve(never) as port:
        assert "stopped answering" in str(await fault(f"http://127.0.0.1:{port}"))


async def test_a_proxy_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")
    await fault("https://airflow.example")


async def test_a_proxy_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(_: Request) -> Reply:
        return Reply(407, "Proxy Authentication Required")

    async with serve(refuse) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        assert "HTTPS_PROXY" in str(await fault("https://airflow.example"))


async def test_every_request_carries_proof_and_version() -> None:
    api = AgentApi(ScriptedServer())
    async with serve(api) as port, transport_to(f"http://127.0.0.1:{port}/airflow") as transport:
        link = await transport.connect(make_hello(), make_presence)
        await link.send([Accept(job_id=new_id(), fence=1)])
        await link.close()
    for request in api.requests:
        assert (request.method, request.path) == ("POST", "/airflow" + PATH)
        assert request.headers["authorization"].startswith("Bearer eap_0123456789abcdef_")
        assert request.headers["user-agent"] == f"airflow-edge-agent/{__version__}"
        assert request.headers["content-type"] == "application/json"


async def test_the_two_lanes_and_the_session() -> None:
    server = ScriptedServer()
    welcome = make_welcome()
    server.on_hello = lambda _: [welcome]
    api = AgentApi(server)
    async with serve(api) as port, transport_to(f"http://127.0.0.1:{port}") as transport:
        link = await transport.connect(make_hello(), make_presence)
        await server.wait_for(lambda: bool(server.presences))
        await link.send([Accept(job_id=new_id(), fence=1)])
        await link.close()
    hello, poll, send = (json.loads(request.body) for request in api.requests)
    assert (hello["session_id"], hello["wait_seconds"]) == (None, 0)
    assert (poll["session_id"], poll["wait_seconds"]) == (welcome.session_id, 25)
    assert (send["session_id"], send["wait_seconds"]) == (welcome.session_id, 0)
    assert [frame["type"] for frame in poll["frames"]] == ["status", "heartbeat"]
    assert [frame["type"] for frame in send["frames"]] == ["accept"]


async def test_a_server_that_never_holds_an_answer_back_is_not_stormed() -> None:
    server = ScriptedServer()
    api = AgentApi(server)
    polled_at = []

    def at_once(request: Request) -> Reply | None:
        if json.loads(request.body)["wait_seconds"]:
            polled_at.append(time.monotonic())
            return Reply(body=encode_batch([]))
        return None

    api.misbehave = at_once
    async with serve(api) as port, transport_to(f"http://127.0.0.1:{port}") as transport:
        link = await transport.connect(make_hello(), make_presence)
        async with asyncio.timeout(10):
            while len(polled_at) < 2:  # noqa: ASYNC110 -- the list tells nobody of its changes
                await asyncio.sleep(0.01)
        await link.close()
    assert polled_at[1] - polled_at[0] > 0.9


async def test_offers_of_a_newer_server_arrive_and_unknown_frames_are_passed_on() -> None:
    server = ScriptedServer()
    offer = make_offer().model_dump(mode="json") | {"gpu": True}
    body = {"frames": [make_welcome().model_dump(mode="json"), {"type": "of the future"}, offer]}

    async def answer(_: Request) -> Reply:
        return Reply(body=json.dumps(body).encode())

    async with serve(answer) as port, transport_to(f"http://127.0.0.1:{port}") as transport:
        frames, _ = await transport.exchange([make_hello()])
    assert [frame.type for frame in frames] == ["welcome", "unknown", "offer"]
    assert server.hellos == []


def test_groups_stay_within_the_limits() -> None:
    job_id = new_id()
    frames: list[AgentFrame] = [Log(job_id=job_id, offset=n, data="A" * 390_000) for n in range(10)]
    frames += [Accept(job_id=job_id, fence=1)] * 600
    split = groups(frames, _MAX_SEND_BYTES)
    assert [frame for group in split for frame in group] == frames
    assert max(len(group) for group in split) <= MAX_FRAMES
    assert max(len(encode_batch(list(group))) for group in split) <= MAX_BATCH_BYTES
    assert groups([], _MAX_SEND_BYTES) == []


async def test_too_many_requests_are_made_again_when_the_server_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def no_pause(seconds: float) -> None:
        pauses.append(seconds)

    server = ScriptedServer()
    api = AgentApi(server)
    busy = 2

    def misbehave(request: Request) -> Reply | None:
        nonlocal busy
        if b"accept" not in request.body or busy == 0:
            return None
        busy -= 1
        return Reply(429, "Too Many Requests", {"retry-after": "7"})

    api.misbehave = misbehave
    async with serve(api) as port, transport_to(f"http://127.0.0.1:{port}") as transport:
        link = await transport.connect(make_hello(), make_presence)
        monkeypatch.setattr("airflow_edge_agent.adapters.http.asyncio.sleep", no_pause)
        accept = Accept(job_id=new_id(), fence=1)
        await link.send([accept])
        await link.close()
    assert server.received == [accept], "once, and the session goes on"
    assert pauses.count(7.0) == 2


async def test_too_many_requests_at_the_hello_end_with_the_time_to_come_again() -> None:
    error = await fault_of(lambda _: Reply(429, "Too Many Requests", {"retry-after": "9"}))
    assert error.retry_after_seconds == 9
    assert "fewer requests" in str(error)
