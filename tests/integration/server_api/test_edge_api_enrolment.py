"""A machine becomes an agent, its key is replaced, and what becomes of copies."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import sqlite3
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, get_args

import httpx
import pytest
from airflow.models.log import Log as AuditLog
from fastapi import FastAPI
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from starlette.types import Message, Receive, Scope, Send

from airflow_edge_agent.adapters.carriers import CarrierTransport
from airflow_edge_agent.adapters.credential import Credential, Prover, possession, read_credential
from airflow_edge_agent.adapters.enrolment import Enrolment
from airflow_edge_agent.adapters.keys import new_private_key
from airflow_edge_agent.adapters.network import Network
from airflow_edge_agent.core.agent import AgentCore
from airflow_edge_agent.core.backoff import Backoff
from airflow_edge_agent.core.policy import Limits
from airflow_edge_agent.protocol import API_PREFIX
from airflow_edge_agent.protocol.codec import pack_log
from airflow_edge_agent.protocol.enrolment import MAX_ENROLL_BYTES
from airflow_edge_agent.protocol.frames import (
    Accept,
    AgentFrame,
    Cancel,
    Close,
    HeldJob,
    Hello,
    KeyStored,
    Log,
    LogAck,
    NewKey,
    Offer,
    Refuse,
    Result,
    Rotate,
    Started,
    Welcome,
)
from airflow_edge_agent.protocol.jobs import Outcome
from airflow_edge_agent.runtime.link import LinkLoop
from airflow_edge_agent.runtime.pump import Pump
from airflow_edge_server.store import enrolment, queue
from airflow_edge_server.store.models import EdgeAgentCredential, EdgeAgentJoinToken
from fakes.frames import make_hello
from fakes.host import FixedProbe
from fakes.runner import MemoryRunner
from fakes.store import MemoryJobStore
from integration.server_api.channel_kit import ChannelAgent, Served, served
from integration.server_api.kit import SETTINGS, Database, FakeAgent, MakeAgent, build_app, only, running, until


def _wrong_clock(by: float) -> float:
    return time.time() + by


def join_token(database: Database, **given: Any) -> str:
    values: dict[str, Any] = {"name_pattern": "factory", "queues": ["default"], "valid_seconds": 60.0, **given}
    with database.sessions() as session:
        return enrolment.create_join_token(session, by="me", **values).text


def audit(database: Database, verb: str) -> list[dict[str, Any]]:
    with database.sessions() as session:
        rows = session.scalars(select(AuditLog).where(AuditLog.event == f"edge_agents.{verb}").order_by(AuditLog.id))
        return [json.loads(row.extra or "{}") for row in rows]


def request(name: str = "factory", **given: Any) -> tuple[dict[str, Any], bytes]:
    """Return a request for enrolment, and the private key that belongs to it."""
    key = new_private_key()
    public, signature = possession(key, name)
    body = {
        "name": name,
        "public_key": public,
        "signature": signature,
        "agent_id": str(uuid.uuid4()),
        "boot_id": "boot-1",
        "hostname": "host-1",
        **given,
    }
    return body, key


async def enroll(client: httpx.AsyncClient, token: str, body: dict[str, Any]) -> httpx.Response:
    return await client.post("/v1/enroll", json=body, headers={"Authorization": f"Bearer {token}"})


async def test_a_join_token_is_exchanged_for_a_credential(database: Database, client: httpx.AsyncClient) -> None:
    token = join_token(database, queues=["press"], team="plant")
    body, key = request()
    response = await enroll(client, token, body)
    assert response.status_code == 200, response.text
    told = response.json()
    assert (told["name"], told["queues"], told["team"], told["replaced"]) == ("factory", ["press"], "plant", False)
    assert datetime.fromisoformat(told["expires_at"]) > datetime.now(UTC) + timedelta(days=179)
    agent = FakeAgent(client, "factory", Credential(told["credential_id"], key).text(), agent_id=body["agent_id"])
    (welcome,) = await agent.hello()
    assert isinstance(welcome, Welcome)
    assert (welcome.granted_queues, welcome.team) == (["press"], "plant")
    # It was good once.
    response = await enroll(client, token, request()[0])
    assert response.status_code == 403
    assert "as often as it may be" in response.json()["error"]
    (entry,) = audit(database, "enroll")
    assert (entry["agent"], entry["invited_by"], entry["credential"]) == ("factory", "me", told["credential_id"])
    assert token.split("_", 2)[2] not in json.dumps(audit(database, "enroll") + audit(database, "create_join_token"))


async def test_a_lost_answer_is_given_again_and_counts_once(database: Database, client: httpx.AsyncClient) -> None:
    token = join_token(database, uses=2)
    body, key = request()
    first, twin = await asyncio.gather(enroll(client, token, body), enroll(client, token, body))
    told = first.json()
    assert (first.status_code, twin.json()) == (200, told)
    assert left(database) == 1
    # Another key is another use, of a token for one name in place of the first; and nobody gets that answer for it.
    other, _ = request()
    replaced = (await enroll(client, token, other)).json()
    assert (replaced["replaced"], left(database)) == (True, 0)
    assert replaced["credential_id"] != told["credential_id"]
    # Used up, but the answer may be lost.
    assert (await enroll(client, token, other)).json() == replaced
    assert (await enroll(client, token, request()[0])).status_code == 403
    # What stands no more is not given again.
    response = await enroll(client, token, body)
    assert response.status_code == 403
    assert "revoked or replaced since" in response.json()["error"]
    assert len(audit(database, "enroll")) == 2
    agent = FakeAgent(client, "factory", Credential(told["credential_id"], key).text())
    assert (await agent.post(b'{"frames": []}')).status_code == 401


async def test_a_lost_answer_is_told_with_what_the_agent_may_do_now(
    database: Database, client: httpx.AsyncClient
) -> None:
    token = join_token(database, queues=["press"], team="plant")
    body, _ = request()
    told = (await enroll(client, token, body)).json()
    with database.sessions() as session:
        enrolment.set_granted_queues(session, "factory", ["oven"])
    assert (await enroll(client, token, body)).json() == told | {"queues": ["oven"]}


@pytest.mark.parametrize("ended", ["agent", "token", "time"])
async def test_nothing_comes_back_by_a_repeated_request(
    database: Database, client: httpx.AsyncClient, ended: str
) -> None:
    token = join_token(database, uses=5)
    body, _ = request()
    assert (await enroll(client, token, body)).status_code == 200
    with database.sessions() as session:
        match ended:
            case "agent":
                enrolment.revoke_agent(session, "factory", by="me")
            case "token":
                enrolment.revoke_join_token(session, token.split("_")[1], by="me")
            case _:
                row = session.get_one(EdgeAgentJoinToken, token.split("_")[1])
                row.expires_at = datetime.now(UTC) - timedelta(seconds=1)
    assert (await enroll(client, token, body)).status_code == 403
    assert left(database) == 4
    if ended == "agent":
        assert valid(database) == set()
        assert database.agent("factory").revoked_at is not None


async def test_edgectl_asks_again_with_the_same_key(database: Database, tmp_path: Path) -> None:
    """The program itself against the real app, behind a proxy that loses the first answer."""
    token = join_token(database)
    lost: list[bytes] = []
    app = build_app(database)

    async def lossy(scope: Scope, receive: Receive, send: Send) -> None:
        """Do what is asked for; the first success is heard of by nobody."""

        async def keep(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200 and not lost:
                lost.append(b"")
                message = {"type": "http.response.start", "status": 502, "headers": [(b"content-length", b"0")]}
            elif lost == [b""] and message["type"] == "http.response.body":
                lost[0] = message["body"]
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        await outer(scope, receive, keep)

    outer = FastAPI(lifespan=app.router.lifespan_context)
    outer.mount(API_PREFIX, app)
    config = tmp_path / "agent.toml"
    config.write_text(
        f'name = "factory"\nstate_dir = "{tmp_path}/state"\nruntime_dir = "{tmp_path}/run"\nallow_root = true\n'
    )
    async with served(lossy) as site:  # type: ignore[arg-type]  # an app, if not a FastAPI

        async def edgectl(expected: int) -> str:
            options = ["--config", str(config), "--socket", f"{tmp_path}/none", "enroll", site.url, "--json"]
            program = [sys.executable, "-m", "airflow_edge_agent.ctl.main", *options, "--token-file", "-"]
            pipe = asyncio.subprocess.PIPE
            process = await asyncio.create_subprocess_exec(*program, stdin=pipe, stdout=pipe, stderr=pipe)
            output, errors = await asyncio.wait_for(process.communicate(token.encode()), 60)
            assert process.returncode == expected, errors
            return output.decode() or errors.decode()

        assert "502" in await edgectl(3)
        assert not (tmp_path / "state" / "credential").exists()
        told = json.loads((await edgectl(0)).splitlines()[0])
        assert told["credential_id"] == json.loads(lost[0])["credential_id"]
        credential = read_credential(tmp_path / "state" / "credential")
        assert valid(database) == {credential.id} == {told["credential_id"]}
        async with httpx.AsyncClient(base_url=site.url + API_PREFIX) as client:
            assert isinstance((await FakeAgent(client, "factory", credential.text()).hello())[0], Welcome)
    assert not list((tmp_path / "state").glob("enrolling*"))


def left(database: Database) -> int:
    """Return how often the only join token may be used yet."""
    with database.sessions() as session:
        return session.scalars(select(EdgeAgentJoinToken.uses_left)).one()


async def test_what_is_no_request_changes_nothing(database: Database, client: httpx.AsyncClient) -> None:
    token = join_token(database)
    body, _ = request()
    others = request()[0]
    for wrong, status in (
        ({}, 400),
        (body | {"name": "a b"}, 400),
        (body | {"public_key": others["public_key"]}, 400),
        (body | {"signature": others["signature"]}, 400),
        (body | {"signature": "A" * 86}, 400),
        (request("other")[0], 403),
        (body | {"hostname": "x" * MAX_ENROLL_BYTES}, 400),
    ):
        response = await enroll(client, token, wrong)
        assert response.status_code == status, response.text
        assert "\n" not in response.json()["error"]
    with database.sessions() as session:
        assert session.scalars(select(EdgeAgentJoinToken.uses_left)).one() == 1
        assert session.scalars(select(EdgeAgentCredential)).all() == []


async def test_a_join_token_opens_nothing_else(database: Database, client: httpx.AsyncClient, agent: FakeAgent) -> None:
    headers = {"Authorization": f"Bearer {join_token(database)}"}
    for method, path in (("POST", "/v1/exchange"), ("GET", "/v1/enroll"), ("POST", "/v1/enroll/"), ("GET", "/docs")):
        assert (await client.request(method, path, headers=headers, content=b"{}")).status_code == 401
    # And an agent's proof does not enroll.
    body, _ = request()
    response = await client.post("/v1/enroll", json=body, headers=agent.headers)
    assert (response.status_code, response.content) == (401, b"")
    wrong = headers["Authorization"][:-4] + "aaaa"
    assert (await client.post("/v1/enroll", json=body, headers={"Authorization": wrong})).status_code == 401


async def test_enrolling_again_replaces(database: Database, client: httpx.AsyncClient, agent: FakeAgent) -> None:
    await agent.hello()
    body, key = request()
    told = (await enroll(client, join_token(database), body)).json()
    assert told["replaced"] is True
    deadline = time.monotonic() + 2
    while (await agent.post(b'{"frames": []}')).status_code != 401:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)  # not as fast as it goes: what an agent may ask is bounded
    after = FakeAgent(client, "factory", Credential(told["credential_id"], key).text(), agent_id=agent.agent_id)
    assert isinstance((await after.hello())[0], Welcome)


async def test_a_proof_is_good_for_two_minutes(agent: FakeAgent) -> None:
    for wrong_by, good in ((-100, True), (100, True), (-150, False), (150, False), (10**9, False)):
        prover = Prover(agent.prover.credential, Path("/nonexistent"), wall=functools.partial(_wrong_clock, wrong_by))
        agent.token = prover.header().removeprefix("Bearer ")
        response = await agent.post(b'{"frames": []}')
        assert (response.status_code == 200) is good, wrong_by
        if not good:
            assert prover.was_late(response.headers["www-authenticate"])
            agent.token = prover.header().removeprefix("Bearer ")
            assert (await agent.post(b'{"frames": []}')).status_code == 200


# --- Queues -----------------------------------------------------------------------------------------------------------


async def test_queues_that_were_not_granted_bring_no_jobs(
    database: Database, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    agent = FakeAgent(client, "factory", database.credential("factory", queues=["press"]), queues=["oven", "press"])
    (welcome,) = await agent.hello()
    assert isinstance(welcome, Welcome)
    assert welcome.granted_queues == ["press"]
    assert "asks for queues that it was not granted, and gets no jobs of them: oven" in caplog.text
    database.add_job(queue="oven")
    granted = database.add_job(queue="press")
    assert [offer.job_id for offer in await agent.offers()] == [granted]
    # Nor by asking for them later.
    assert await agent.exchange(agent.status(1, queues=["oven"])) == []
    assert await agent.poll(1, wait=0.3, queues=["oven"]) == []
    with database.sessions() as session:
        enrolment.set_granted_queues(session, "factory", ["oven"], by="me")
    assert [offer.queue for offer in await agent.offers(1, queues=["oven"])] == ["oven"]


async def test_nothing_is_granted_to_who_was_not_enrolled(database: Database, client: httpx.AsyncClient) -> None:
    agent = FakeAgent(client, "factory", database.credential("factory", queues=[]))
    await agent.hello()
    database.add_job()
    assert await agent.poll(wait=0.3) == []


# --- Replacement of the key -------------------------------------------------------------------------------------------


@pytest.fixture
async def site(database: Database) -> AsyncIterator[Served]:
    async with served(build_app(database)) as site:
        yield site


class Device:
    """What survives on an agent's disk, and a process that may be killed."""

    def __init__(self, client: httpx.AsyncClient, path: Path, agent_id: str) -> None:
        self.client, self.path, self.agent_id = client, path, agent_id
        self.boot()

    def boot(self) -> None:
        """Start anew: all that was in memory is lost."""
        self.prover = Prover(read_credential(self.path), self.path)

    @property
    def agent(self) -> FakeAgent:
        return FakeAgent(self.client, "factory", self.prover.credential.text(), agent_id=self.agent_id)

    async def connect(self) -> FakeAgent:
        agent = self.agent
        answer = await agent.hello()
        assert isinstance(answer[0], Welcome), answer
        return agent


def valid(database: Database) -> set[str]:
    with database.sessions() as session:
        return set(session.scalars(select(EdgeAgentCredential.id).where(EdgeAgentCredential.revoked_at.is_(None))))


@pytest.fixture
def device(database: Database, client: httpx.AsyncClient, tmp_path: Path) -> Device:
    """An agent whose credential is to be replaced: more than half of its life is over."""
    now = datetime.now(UTC)
    aged: dict[str, Any] = {"created_at": now - timedelta(days=100), "expires_at": now + timedelta(days=80)}
    text = database.credential("factory", **aged)
    path = tmp_path / "credential"
    path.touch(mode=0o600)
    path.write_text(text)
    return Device(client, path, str(uuid.uuid4()))


async def ask(agent: FakeAgent) -> None:
    """Wait until the server asks for a new key."""
    while not any(isinstance(frame, Rotate) for frame in await agent.poll(wait=2)):
        pass


@pytest.mark.parametrize("step", ["asked", "sent", "stored", "answered", "written", "used"])
async def test_an_agent_that_is_killed_while_its_key_is_replaced_is_not_locked_out(
    database: Database, device: Device, step: str
) -> None:
    """Kill it behind each step: it comes back, with a key that is good, and there is one that is valid in the end."""
    old = device.prover.credential
    agent = await device.connect()
    await ask(agent)
    if step != "asked":
        frame = device.prover.new_key()
    if step in {"stored", "answered", "written", "used"}:
        (stored,) = only(await agent.exchange(frame), KeyStored)
        assert len(valid(database)) == 2
    if step in {"written", "used"}:
        assert device.prover.adopt(stored)
    if step == "used":
        await device.connect()
    device.boot()
    agent = await device.connect()
    assert (agent.credential == old.text()) is (step not in {"written", "used"})
    if agent.credential == old.text():
        # It is asked again, and this time it comes through.
        await ask(agent)
        (stored,) = only(await agent.exchange(device.prover.new_key()), KeyStored)
        assert device.prover.adopt(stored)
        await device.connect()
    assert valid(database) == {device.prover.credential.id}
    assert read_credential(device.path) == device.prover.credential != old
    assert [entry["replaces"] for entry in audit(database, "rotate_credential")] == [[old.id]]


@pytest.mark.parametrize("carrier", ["websocket", "http"])
async def test_an_agent_replaces_its_key_by_itself(
    database: Database, device: Device, carrier: Literal["websocket", "http"]
) -> None:
    """The agent's own loop against the real app, over each carrier: asked, answered, written, connected anew."""
    old = device.prover.credential
    app = build_app(database)
    outer = FastAPI(lifespan=app.router.lifespan_context)
    outer.mount(API_PREFIX, app)
    core = AgentCore(Limits(4, kill_grace_seconds=5, drain_deadline_seconds=0))
    pump = Pump(core, store=MemoryJobStore(), runner=MemoryRunner(), boot_id="boot", default_execution_url="http://a/")
    enrolment_ = Enrolment()
    attempts = itertools.count(1)
    instance = str(uuid.uuid4())

    def hello() -> Hello:
        return make_hello(name="factory", agent_id=device.agent_id, instance_id=instance, attempt=next(attempts))

    async with served(outer) as site:
        await enrolment_.use(CarrierTransport(site.url, device.prover, Network(), carrier))
        link = LinkLoop(
            pump,
            enrolment_,
            FixedProbe(),
            hello=hello,
            backoff=Backoff(),
            climb=enrolment_.climb,
            enrolled=enrolment_.wait,
            renew=enrolment_.renew,
        )
        life = asyncio.create_task(link.run())
        await until(lambda: valid(database) == {device.prover.credential.id} != {old.id}, seconds=20)
        await until(lambda: core.connected)
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
        await enrolment_.close()
    assert read_credential(device.path) == device.prover.credential


async def test_a_new_key_needs_its_owner(database: Database, agent: FakeAgent, device: Device) -> None:
    await agent.hello()
    public, signature = possession(new_private_key(), "another credential")
    assert await agent.exchange(NewKey(public_key=public, signature=signature)) == []
    assert len(valid(database)) == 2


async def test_an_expired_credential_is_refused(database: Database, client: httpx.AsyncClient) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    agent = FakeAgent(client, "factory", database.credential("factory", expires_at=past))
    assert (await agent.post(b'{"frames": []}')).status_code == 401


async def test_a_young_credential_is_left_alone(database: Database, client: httpx.AsyncClient) -> None:
    soon = datetime.now(UTC) + timedelta(days=1)
    agent = FakeAgent(client, "factory", database.credential("factory", expires_at=soon))
    await agent.hello()
    assert await agent.poll(wait=0.5) == []


# --- Copies and revocation --------------------------------------------------------------------------------------------


async def test_a_copy_beside_the_original_is_refused_and_told_to_the_audit_log(
    database: Database, agent: FakeAgent, client: httpx.AsyncClient
) -> None:
    await agent.hello()
    thief = FakeAgent(client, "factory", agent.credential, hostname="thief-host", boot_id="thief-boot")
    for _ in range(3):
        (close,) = await thief.hello()
        assert isinstance(close, Close)
        assert close.code == "name_in_use"
    (entry,) = audit(database, "copy_refused")
    for told in ("host-1", "thief-host", agent.agent_id, thief.agent_id):
        assert told in entry["message"]


async def test_a_copy_is_told_even_if_the_transaction_had_to_be_run_again(database: Database) -> None:
    failed: list[OperationalError] = []

    @contextmanager
    def sessions() -> Iterator[Session]:
        with database.sessions() as session:
            yield session
            if not failed and any(isinstance(row, AuditLog) for row in (*session.new, *session.identity_map.values())):
                failed.append(OperationalError("", {}, sqlite3.OperationalError("database is locked")))
                raise failed[0]

    async with running(build_app(database, sessions=sessions)) as client:
        agent = FakeAgent(client, "factory", database.credential("factory"))
        await agent.hello()
        thief = FakeAgent(client, "factory", agent.credential, hostname="thief-host", boot_id="thief-boot")
        for _ in range(2):
            await thief.hello()
    assert failed
    assert len(audit(database, "copy_refused")) == 1


async def test_a_copy_that_comes_while_the_original_is_away_is_told_with_both(
    database: Database, agent: FakeAgent, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    await agent.hello()
    database.set_agent("factory", state="unknown", last_contact_at=datetime.now(UTC) - timedelta(minutes=5))
    thief = FakeAgent(client, "factory", agent.credential, hostname="thief-host", boot_id="thief-boot")
    assert isinstance((await thief.hello())[0], Welcome)
    (entry,) = audit(database, "credential_elsewhere")
    assert "host-1" in entry["before"]
    assert "thief-host" in entry["now"]
    assert "is used on another machine than before" in caplog.text


def end(database: Database, credential_id: str, seconds_ago: float) -> None:
    """Let a credential have been revoked so long ago."""
    with database.sessions() as session:
        row = session.get_one(EdgeAgentCredential, credential_id)
        row.revoked_at = datetime.now(UTC) - timedelta(seconds=seconds_ago)


async def test_a_key_that_was_replaced_is_refused_and_told_to_the_audit_log(
    database: Database, device: Device, client: httpx.AsyncClient
) -> None:
    """Somebody has copied it, and comes when the agent has long had another."""
    copied = device.prover.credential
    agent = await device.connect()
    await ask(agent)
    (stored,) = only(await agent.exchange(device.prover.new_key()), KeyStored)
    assert device.prover.adopt(stored)
    await device.connect()
    thief = FakeAgent(client, "factory", copied.text(), hostname="thief-host", boot_id="thief-boot")
    # A request that was under way is soon refused like any other, but is nothing to be told.
    deadline = time.monotonic() + 2
    while (await thief.post(b'{"frames": []}')).status_code != 401:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    assert audit(database, "old_credential_refused") == []
    end(database, copied.id, seconds_ago=40)
    for _ in range(3):
        assert (await thief.post(b'{"frames": []}')).status_code == 401
    (entry,) = audit(database, "old_credential_refused")
    assert (entry["agent"], entry["credential"], entry["present"]) == ("factory", copied.id, stored.credential_id)
    assert entry["from"] == "127.0.0.1"
    assert "replaced at" in entry["why"]
    assert "host-1" in entry["present_used_by"]
    assert device.agent_id in entry["last_used_by"]
    # The agent itself is not disturbed.
    await device.connect()


async def test_who_only_knows_an_id_tells_the_audit_log_nothing(
    database: Database, agent: FakeAgent, client: httpx.AsyncClient
) -> None:
    end(database, agent.credential_id, seconds_ago=3_600)
    guess = FakeAgent(client, "factory", Credential(agent.credential_id, new_private_key()).text())
    assert (await guess.post(b'{"frames": []}')).status_code == 401
    assert audit(database, "old_credential_refused") == []
    assert (await agent.post(b'{"frames": []}')).status_code == 401
    (entry,) = audit(database, "old_credential_refused")
    assert "present" not in entry


@pytest.mark.parametrize("jobs", ["cancel", "finish"])
@pytest.mark.parametrize("dropped", ["before", "by it"])
async def test_jobs_of_a_revoked_agent_that_is_not_there_end_or_go_on(
    database: Database, site: Served, client: httpx.AsyncClient, jobs: Literal["finish", "cancel"], dropped: str
) -> None:
    """Its line drops before the revocation, or is dropped by it: nobody is there who could obey."""
    agent = ChannelAgent(client, "factory", database.credential("factory"), url=site.url)
    await agent.open()
    job_id = database.add_job()
    await agent.ready()
    await agent.take_one(start=True)
    await until(lambda: database.job(job_id).state == "running")
    if dropped == "before":
        await agent.hang_up()
    with database.sessions() as session:
        enrolment.revoke_agent(session, "factory", jobs=jobs, by="me")
    if dropped == "by it" and jobs == "cancel":
        assert await agent.closed() == 1008
    with database.sessions() as session:
        # It has had no time to obey yet.
        assert queue.end_revoked(session, after_seconds=60) == []
    with database.sessions() as session:
        ended = queue.end_revoked(session, after_seconds=0)
    job = database.job(job_id)
    if jobs == "finish":
        assert ended == []
        assert (job.state, job.agent_name) == ("running", "factory")
        return
    assert [(lost.id, lost.agent_name, lost.requeued) for lost in ended] == [(job_id, "factory", False)]
    assert (job.state, job.outcome, job.detail) == ("finished", "lost", "the agent was revoked by me")
    with database.sessions() as session:
        assert queue.end_revoked(session, after_seconds=0) == []


async def test_a_revoked_agent_hears_which_jobs_to_end_and_is_dropped(
    database: Database, site: Served, client: httpx.AsyncClient
) -> None:
    agent = ChannelAgent(client, "factory", database.credential("factory"), url=site.url)
    await agent.open()
    job_id = database.add_job()
    await agent.ready()
    await agent.take_one(start=True)
    started = time.monotonic()
    with database.sessions() as session:
        enrolment.revoke_agent(session, "factory", jobs="cancel", by="me")
    assert await agent.closed() == 1008
    assert time.monotonic() - started < 2
    (cancel,) = [frame for frame in agent.heard if isinstance(frame, Cancel)]
    assert (cancel.job_id, cancel.reason) == (job_id, "the agent was revoked by me")


# --- Other agents' jobs -----------------------------------------------------------------------------------------------


async def test_no_frame_of_another_agent_touches_a_job(database: Database, make_agent: MakeAgent) -> None:
    """Every frame about a job, from an agent with a valid credential of its own that does not hold it."""
    owner, other = make_agent("owner"), make_agent("other", queues=["nothing"])
    job_id = database.add_job()
    await owner.hello()
    await other.hello()
    offer: Offer = await owner.take(start=True)
    before = _state(database, job_id)
    for frame in every_frame_about(job_id, offer.fence):
        answers = await other.exchange(frame)
        assert _state(database, job_id) == before, frame
        assert all(getattr(answer, "job_id", job_id) == job_id for answer in answers)
        assert not any(isinstance(answer, Offer) for answer in answers), frame
    # Nor in another agent's session.
    response = await other.exchange(other.status(3), session_id=owner.session_id)
    assert [frame.type for frame in response] == ["close"]
    assert database.agent("owner").slots_used != 3
    # Nor by claiming it in a hello.
    held = HeldJob(job_id=job_id, fence=offer.fence, phase="running")
    frames = await other.hello(held)
    assert [frame.job_id for frame in frames if isinstance(frame, Cancel)] == [job_id]
    assert _state(database, job_id) == before


def every_frame_about(job_id: str, fence: int) -> list[AgentFrame]:
    """Return a frame of every type that is about a job; a new type that is missing here fails the test."""
    frames: list[AgentFrame] = [
        Accept(job_id=job_id, fence=fence),
        Refuse(job_id=job_id, fence=fence, reason="no"),
        Started(job_id=job_id, fence=fence, pid=7),
        Result(job_id=job_id, fence=fence, outcome=Outcome.FINISHED, exit_code=0),
        Log(job_id=job_id, offset=0, data=pack_log(b"forged\n")),
    ]
    assert {type(frame) for frame in frames} == {kind for kind in get_args(AgentFrame) if "job_id" in kind.model_fields}
    return frames


async def test_every_endpoint_knows_whose_session_it_is(
    database: Database, site: Served, client: httpx.AsyncClient
) -> None:
    """The endpoints that take a proof, each with another agent's valid one."""
    paths = site.agent_paths
    assert paths == {"/v1/exchange", "/v1/channel", "/v1/enroll", "/v1/jobs"}, "a new endpoint needs its line here"
    owner = FakeAgent(client, "owner", database.credential("owner"))
    await owner.hello()
    # The exchange and the channel: another agent's name is refused, and so is its session.
    thief = ChannelAgent(client, "owner", database.credential("thief"), url=site.url)
    (close,) = await thief.hello()
    assert isinstance(close, Close)
    assert close.code == "name_mismatch"
    (close,) = await thief.open()
    assert isinstance(close, Close)
    assert close.code == "name_mismatch"
    (close,) = await thief.exchange(thief.status(), session_id=owner.session_id)
    assert isinstance(close, Close)
    assert close.code == "session_unknown"
    # Calls of jobs: another agent's job is not to be found (and more in the tests of the relay).
    job_id = database.add_job()
    offer = await owner.take(start=True)
    assert offer.job_id == job_id
    call = {**thief.headers, "Edge-Agent-Fence": str(offer.fence)}
    assert (await client.get(f"/v1/jobs/{job_id}/execution/variables/x", headers=call)).status_code == 404
    # The enrolment: no proof opens it.
    assert (await client.post("/v1/enroll", json=request()[0], headers=thief.headers)).status_code == 401
    assert owner.session_id == database.agent("owner").session_id


async def test_a_job_that_waited_for_long_gets_a_token_of_now(database: Database) -> None:
    minted: list[str] = []

    def mint(ti_id: str) -> str:
        minted.append(ti_id)
        return f"minted at the offer of {ti_id}"

    settings = replace(SETTINGS, execution_api="direct")
    async with running(build_app(database, settings=settings, mint=mint)) as client:
        agent = FakeAgent(client, "factory", database.credential("factory"))
        # Longer than any token of the scheduler's lives.
        job_id = database.add_job(queued_at=datetime.now(UTC) - timedelta(days=2))
        await agent.hello()
        assert minted == []
        offer = await agent.take(start=True)
        ti_id = database.job(job_id).ti_id
        assert minted == [ti_id]
        assert offer.token == f"minted at the offer of {ti_id}"
    with database.engine.connect() as connection:
        rows = [str(row) for row in connection.exec_driver_sql("SELECT * FROM edge_agent_job")]
    assert rows
    assert not any("minted at the offer" in row for row in rows), "it is not stored"


async def test_offsets_go_only_forward(database: Database, agent: FakeAgent) -> None:
    job_id = database.add_job()
    await agent.hello()
    await agent.take(start=True)
    for offset, text, end in ((0, b"one\n", 4), (4, b"two\n", 8), (0, b"FORGED!!", 8), (6, b"XX", 8), (9, b"gap", 8)):
        (ack,) = only(await agent.exchange(Log(job_id=job_id, offset=offset, data=pack_log(text))), LogAck)
        assert ack.next_offset == end
    assert database.log(job_id) == b"one\ntwo\n"


def _state(database: Database, job_id: str) -> tuple[Any, ...]:
    job = database.job(job_id)
    return (job.state, job.agent_name, job.fence, job.outcome, job.log_next_offset, job.cancel_reason)
