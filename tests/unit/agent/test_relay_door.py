"""What jobs say on the agent's socket, and what becomes of it on the way to a server and back."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pytest

from airflow_edge_agent.adapters.execution import ExecutionClient
from airflow_edge_agent.adapters.files import relay_key
from airflow_edge_agent.adapters.network import Network
from airflow_edge_agent.adapters.relay_http import WHOLE_BYTES
from airflow_edge_agent.adapters.relay_socket import RelayListener
from airflow_edge_agent.core.agent import AgentCore
from airflow_edge_agent.core.backoff import Backoff
from airflow_edge_agent.core.events import JobEnding, LinkLost, LinkOpened
from airflow_edge_agent.core.jobs import AgentJob, Phase
from airflow_edge_agent.core.policy import Limits
from airflow_edge_agent.ctl import show
from airflow_edge_agent.runner import relay as runner_relay
from airflow_edge_agent.runner.relay import RelayTransport
from airflow_edge_agent.runtime import relay as relay_module
from airflow_edge_agent.runtime.finals import FinalStates
from airflow_edge_agent.runtime.link import LinkLoop
from airflow_edge_agent.runtime.pump import Pump
from airflow_edge_agent.runtime.relay import Relay
from airflow_edge_agent.runtime.rendered import RenderedFields
from airflow_edge_agent.runtime.reports import Person, Reporter
from fakes import FixedProbe, MemoryJobStore, MemoryRunner, MemoryTransport, ScriptedServer
from fakes.credentials import CREDENTIAL, SECRET, make_prover
from fakes.frames import make_hello, make_offer, make_welcome, new_id
from fakes.http_server import Reply, Request, serve

MARK = {"Edge-Agent-Relayed": "airflow"}
HEARTBEAT = f"/execution/task-instances/{new_id()}/heartbeat"


class FarEnd:
    """Notes what came, and answers as told."""

    def __init__(self) -> None:
        self.got: list[Request] = []
        self.reply = Reply(headers=MARK | {"Content-Type": "application/json"}, body=b'{"value": 1}')

    async def __call__(self, request: Request) -> Reply:
        self.got.append(request)
        return self.reply


@dataclass
class Place:
    pump: Pump
    job: AgentJob
    relay: Relay
    socket: Path
    finals: FinalStates
    store: MemoryJobStore

    @asynccontextmanager
    async def client(self, secret: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
        headers = {"Authorization": f"Bearer {self.relay.secret(self.job.job_id) if secret is None else secret}"}
        transport = httpx.AsyncHTTPTransport(uds=str(self.socket))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://edge-agent", headers=headers, timeout=30
        ) as client:
            yield client


@asynccontextmanager
async def placed(
    folder: Path, port: int, users: set[int] | None = None, *, fail_at_once: bool = False
) -> AsyncIterator[Place]:
    core = AgentCore(Limits(4, kill_grace_seconds=5, drain_deadline_seconds=0))
    job = AgentJob(job_id=new_id(), fence=7, slots=1, label="a job", phase=Phase.RUNNING, heard_at=time.monotonic())
    core.jobs[job.job_id] = job
    pump_store = MemoryJobStore()
    pump_store.add(make_offer(job_id=job.job_id, fence=7), "b")
    pump = Pump(core, store=pump_store, runner=MemoryRunner(), boot_id="b", default_execution_url="x")
    execution = ExecutionClient(f"http://127.0.0.1:{port}/air", make_prover(), Network())
    socket = folder / "execution.sock"
    rendered = RenderedFields(pump, execution, pump_store)
    finals = FinalStates(pump, execution, pump_store, rendered)
    relay = Relay(
        pump, execution, socket, relay_key(folder), finals=finals, rendered=rendered, fail_at_once=fail_at_once
    )
    allowed = {os.geteuid()} if users is None else users
    listener = RelayListener(socket, users=lambda: allowed, handler=relay.handle)
    await listener.open()
    try:
        yield Place(pump, job, relay, socket, finals, pump_store)
    finally:
        await listener.close()
        await execution.close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


async def test_what_is_only_asked_about_has_no_body(tmp_path: Path) -> None:
    far = FarEnd()
    far.reply.body = b""
    async with serve(far) as port, placed(tmp_path, port) as place:
        async with place.client() as client:
            # On one connection: what follows must not be taken for a body.
            for _ in range(2):
                assert (await client.head("/execution/xcoms/d/r/t/a")).status_code == 200
        async with place.client("no secret") as client:
            for _ in range(2):
                answer = await client.head("/execution/xcoms/d/r/t/a")
                assert (answer.status_code, answer.content) == (401, b"")


async def test_a_call_arrives_as_it_was_made_but_for_who_makes_it(tmp_path: Path) -> None:
    far = FarEnd()
    far.reply.headers |= {"Refreshed-API-Token": "eyJ", "Set-Cookie": "a=b", "Content-Range": "9"}
    async with serve(far) as port, placed(tmp_path, port) as place, place.client() as client:
        for size in (0, 100, WHOLE_BYTES, 3_000_000):
            answer = await client.post(
                "/execution/xcoms/d/r%3A1/t/a%2Fb?map_index=-1",
                content=b"x" * size,
                headers={"Airflow-API-Version": "2025-10-27", "Cookie": "c=d", "Content-Type": "application/json"},
            )
            assert (answer.status_code, answer.json()) == (200, {"value": 1})
            request = far.got[-1]
            path = f"/air/edge-agents/v1/jobs/{place.job.job_id}/execution/xcoms/d/r%3A1/t/a%2Fb?map_index=-1"
            assert (request.method, request.path, len(request.body)) == ("POST", path, size)
            assert request.headers["authorization"].startswith("Bearer eap_0123456789abcdef_")
            assert request.headers["edge-agent-fence"] == "7"
            assert request.headers["airflow-api-version"] == "2025-10-27"
            assert "cookie" not in request.headers
            assert place.relay.secret(place.job.job_id) not in request.head.decode()
            assert answer.headers["content-range"] == "9"
            assert not {"refreshed-api-token", "set-cookie", "edge-agent-relayed"} & set(answer.headers)


async def test_a_large_answer_comes_whole(tmp_path: Path) -> None:
    far = FarEnd()
    far.reply.body = os.urandom(4_000_000)
    async with serve(far) as port, placed(tmp_path, port) as place, place.client() as client:
        assert (await client.get("/execution/xcoms/d/r/t/k")).content == far.reply.body


@pytest.mark.parametrize("status", [204, 401, 403, 404, 409, 422, 500])
async def test_a_status_of_airflow_stays_what_it_is(tmp_path: Path, status: int) -> None:
    far = FarEnd()
    far.reply = Reply(status, headers=MARK, body=b"" if status == 204 else b"why")
    async with serve(far) as port, placed(tmp_path, port) as place, place.client() as client:
        answer = await client.put(HEARTBEAT, content=b"{}")
        assert (answer.status_code, answer.content) == (status, far.reply.body)


@pytest.mark.parametrize(("conflicts", "status", "calls"), [(2, 200, 3), (9, 409, 4)])
async def test_the_push_of_an_xcom_that_met_its_like_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conflicts: int, status: int, calls: int
) -> None:
    monkeypatch.setattr(relay_module, "RETRY_SECONDS", 0.01)
    bodies = []

    async def far(request: Request) -> Reply:
        bodies.append(request.body)
        return Reply(409 if len(bodies) <= conflicts else 200, headers=MARK, body=b"{}")

    async with serve(far) as port, placed(tmp_path, port) as place, place.client() as client:
        answer = await client.post("/execution/xcoms/d/r/t/return_value?map_index=1", content=b'"a value"')
        assert answer.status_code == status
        assert bodies == [b'"a value"'] * calls
        bodies.clear()
        # Of nothing else is it known that it may be made twice.
        assert (await client.post("/execution/dag-runs/d/r", content=b"{}")).status_code == 409
        assert len(bodies) == 1


async def test_only_the_jobs_own_secret_counts_while_it_runs(tmp_path: Path) -> None:
    far = FarEnd()
    async with serve(far) as port, placed(tmp_path, port) as place:
        other = new_id()
        own = place.relay.secret(place.job.job_id)
        forged = f"{place.job.job_id}.{place.relay.secret(other).partition('.')[2]}"
        for secret in ("x", CREDENTIAL, own[:-1], f"{own}0", forged, place.relay.secret(other)):
            async with place.client(secret) as client:
                assert (await client.get("/execution/variables/x")).status_code == 401, secret
        async with place.client() as client:
            assert (await client.get("/execution/variables/x")).status_code == 200
            assert (await client.get("/elsewhere")).status_code == 404
            place.job.move(Phase.FINISHED)
            assert (await client.get("/execution/variables/x")).status_code == 401
        assert len(far.got) == 1


async def test_other_users_are_not_heard(tmp_path: Path) -> None:
    far = FarEnd()
    async with serve(far) as port, placed(tmp_path, port, users={os.geteuid() + 1}) as place, place.client() as client:
        with pytest.raises(httpx.TransportError):
            await client.get("/execution/variables/x")
        assert not far.got


async def test_an_answer_of_something_on_the_way_is_not_airflows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = FarEnd()
    far.reply = Reply(404, body=b"<html>a proxy's own page</html>")
    async with serve(far) as port, placed(tmp_path, port) as place, place.client() as client:
        # 404 would end the task.
        assert (await client.put(HEARTBEAT, content=b"{}")).status_code == 204
        monkeypatch.setattr(relay_module, "PATIENCE_SECONDS", 0.0)
        answer = await client.get("/execution/variables/x")
        assert answer.status_code == 503
        assert SECRET not in answer.text


async def test_a_call_waits_for_a_server_that_is_away(tmp_path: Path) -> None:
    async with serve(FarEnd()) as port:
        pass
    async with placed(tmp_path, port) as place, place.client() as client:
        assert (await client.put(HEARTBEAT, content=b"{}")).status_code == 204
        waits = asyncio.create_task(client.get("/execution/variables/x"))
        await asyncio.sleep(0)
        assert not waits.done()
        assert not place.pump.reached.is_set()
        server = await asyncio.start_server(_answer_once, "127.0.0.1", port)
        async with server:
            assert (await waits).status_code == 200
        assert place.pump.reached.is_set(), "the link need not wait any longer"


async def _answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(Reply(headers=MARK, body=b"{}").encode())
    await writer.drain()
    writer.close()


async def test_patience_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "PATIENCE_SECONDS", 0.0)
    async with serve(FarEnd()) as port:
        pass
    async with placed(tmp_path, port) as place, place.client() as client:
        assert (await client.put(HEARTBEAT, content=b"{}")).status_code == 503
        answer = await client.get("/execution/variables/x")
        assert (answer.status_code, answer.json()["detail"]["reason"]) == (503, "relay")


async def test_calls_may_fail_at_once_but_not_what_a_task_lives_by(tmp_path: Path) -> None:
    async with serve(FarEnd()) as port:
        pass
    async with placed(tmp_path, port, fail_at_once=True) as place, place.client() as client:
        for method, url in (("GET", "/execution/variables/x"), ("POST", "/execution/xcoms/d/r/t/k")):
            answer = await client.request(method, url, content=b"")
            # The Task SDK would try again after a 5xx, and takes a 404 for something that is not there.
            assert answer.status_code == 424
            assert "the server is away" in answer.json()["detail"]["message"]
        assert (await client.put(HEARTBEAT, content=b"{}")).status_code == 204
        state = HEARTBEAT.replace("heartbeat", "state")
        assert (await client.patch(state, content=b'{"state": "success"}')).status_code == 204
        assert place.job.unsaid
        begins = asyncio.create_task(client.patch(HEARTBEAT.replace("heartbeat", "run"), content=b"{}"))
        done, _ = await asyncio.wait({begins}, timeout=1.0)
        assert not done, "a task that begins waits"
        begins.cancel()


async def test_the_disconnect_lease_says_how_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "PATIENCE_SECONDS", 0.0)
    async with serve(FarEnd()) as port:
        pass
    async with placed(tmp_path, port) as place, place.client() as client:
        place.job.disconnect_lease_seconds = 3_600.0
        assert (await client.put(HEARTBEAT, content=b"{}")).status_code == 204
        place.job.heard_at -= 3_600.0
        assert (await client.put(HEARTBEAT, content=b"{}")).status_code == 503


async def test_an_answer_begins_the_lease_anew(tmp_path: Path) -> None:
    async with serve(FarEnd()) as port, placed(tmp_path, port) as place, place.client() as client:
        place.job.heard_at -= 1_000.0
        before = time.monotonic()
        assert (await client.get("/execution/variables/x")).status_code == 200
        assert place.job.heard_at >= before


async def test_what_is_no_http_ends_the_conversation_only(tmp_path: Path) -> None:
    far = FarEnd()
    async with serve(far) as port, placed(tmp_path, port) as place, place.client() as client:
        reader, writer = await asyncio.open_unix_connection(str(place.socket))
        writer.write(b"\x16\x03 nonsense\r\n\r\n")
        assert await reader.read() == b""
        writer.close()
        answer = await client.post("/execution/xcoms/x", content=_pieces())
        assert answer.status_code == 413, "a body without a length has no bound"
        assert (await client.get("/execution/variables/x")).status_code == 200


async def _pieces() -> AsyncIterator[bytes]:
    yield b"x"


def test_the_key_survives_and_is_private(tmp_path: Path) -> None:
    key = relay_key(tmp_path)
    assert len(key) == 64
    assert relay_key(tmp_path) == key
    assert (tmp_path / "relay.key").stat().st_mode & 0o077 == 0
    (tmp_path / "relay.key").write_text("short")
    assert len(relay_key(tmp_path)) == 64


async def test_an_outage_is_told_with_its_end(tmp_path: Path) -> None:
    async with serve(FarEnd()) as port, placed(tmp_path, port) as place:
        core, link = (
            place.pump.core,
            LinkLoop(place.pump, MemoryTransport(ScriptedServer()), FixedProbe(), hello=make_hello, backoff=Backoff()),
        )
        reporter = Reporter(core, link, Person("edge-1", "1", 42, "a", "i", 0.0, "https://x"))
        assert reporter.away() is None, "never connected"
        place.pump.feed(LinkOpened(make_welcome()))
        assert reporter.away() is None
        place.job.disconnect_lease_seconds = 1_800.0
        ends = AgentJob(
            job_id=new_id(), fence=1, slots=1, label="x", phase=Phase.RUNNING, disconnect_lease_seconds=1_900.0
        )
        ends.heard_at = time.monotonic()
        core.jobs[ends.job_id] = ends
        place.pump.feed(JobEnding(ends.job_id, waits=True))
        place.pump.feed(LinkLost("cut"))
        away = reporter.report()["away"]
        since, until = (datetime.fromisoformat(away[key]) for key in ("since", "lease_until"))
        assert timedelta(minutes=29) < until - since <= timedelta(minutes=30, seconds=1)
        assert (away["running"], away["results_waiting"]) == (1, 1)
        words = r"disconnected since \S+ . lease until \S+ . 1 task running . 1 result waiting$"
        assert re.search(words, reporter.line())
        shown = " ".join(show.status(reporter.report()))
        assert "disconnected since" in shown
        assert "1 task running, 1 result waiting" in shown


# --- The runner's end -------------------------------------------------------------------------------------------------


def call(path: Path, method: str, url: str, *, aborts_at: int = 10**9) -> httpx.Response:
    attempts = 0

    def check() -> None:
        nonlocal attempts
        attempts += 1
        if attempts >= aborts_at:
            raise KeyboardInterrupt

    transport = RelayTransport(str(path), check)
    response = transport.handle_request(httpx.Request(method, f"http://edge-agent{url}"))
    assert isinstance(response, httpx.Response)
    return response


# The library leaves the socket of a failed attempt to the garbage collector.
left_open = pytest.mark.filterwarnings("ignore:unclosed <socket.socket:ResourceWarning")


@left_open
def test_without_an_agent_a_heartbeat_is_good_and_the_rest_waits(tmp_path: Path) -> None:
    nobody = tmp_path / "execution.sock"
    assert call(nobody, "PUT", HEARTBEAT).status_code == 204
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        call(nobody, "PATCH", HEARTBEAT.replace("heartbeat", "state"), aborts_at=4)
    assert time.monotonic() > began


@left_open
async def test_a_call_waits_for_the_next_agent(tmp_path: Path) -> None:
    far = FarEnd()
    waits = asyncio.create_task(asyncio.to_thread(call, tmp_path / "execution.sock", "GET", "/execution/variables/x"))
    async with serve(far) as port, placed(tmp_path, port):
        # It shows no secret, and is answered: that is all that counts here.
        assert (await asyncio.wait_for(waits, 30)).status_code == 401
    runner_relay.shared_transport(str(tmp_path / "execution.sock")).close()
