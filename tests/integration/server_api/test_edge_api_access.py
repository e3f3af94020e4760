"""Who may speak at all, and what becomes of what is no batch."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from pathlib import Path

import httpx
import pytest

from airflow_edge_agent.protocol.codec import encode_batch
from airflow_edge_agent.protocol.frames import MAX_BATCH_BYTES, Welcome
from fakes.credentials import CREDENTIAL, make_prover
from integration.server_api.kit import Database, FakeAgent, MakeAgent, build_app, running

PATHS = [
    "/",
    "/v1/exchange",
    "/v1/enroll",
    "/v1/exchange/",
    "/v1",
    "/docs",
    "/redoc",
    "/openapi.json",
    "/nothing/here",
    "/../x",
]
BAD_HEADERS = [
    None,
    "",
    "Bearer",
    "Bearer x",
    "Basic YTpi",
    f"Bearer eap_0123456789abcdef_{time.time():.0f}_" + "a" * 86,
    f"Bearer eap_0123456789abcdef_{time.time():.0f}_" + "a" * 85,
    f"Bearer eap_0123456789ABCDEF_{time.time():.0f}_" + "a" * 86,
    "Bearer eap_0123456789abcdef_0_" + "a" * 86,
    "Bearer eaj_0123456789abcdef_" + "a" * 43,
    f"Bearer {CREDENTIAL}",
]


@pytest.mark.parametrize("header", BAD_HEADERS)
async def test_every_path_and_method_needs_a_proof(client: httpx.AsyncClient, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    for path in PATHS:
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE"):
            response = await client.request(method, path, headers=headers, content=b"{}")
            assert (response.status_code, response.content) == (401, b""), (method, path)
            assert set(response.headers) <= {"content-length", "www-authenticate"}


async def test_the_secret_counts_not_only_the_id(client: httpx.AsyncClient, agent: FakeAgent) -> None:
    proof = agent.prover.header().removeprefix("Bearer ")
    agent.token = proof[:-4] + ("aaaa" if not proof.endswith("aaaa") else "bbbb")
    assert (await agent.post(b"{}")).status_code == 401


async def test_two_proofs_in_one_request_are_none(client: httpx.AsyncClient, agent: FakeAgent) -> None:
    headers = list(agent.headers.items()) * 2
    assert (await client.post("/v1/exchange", headers=headers)).status_code == 401


async def test_with_a_proof_only_the_exchange_exists(client: httpx.AsyncClient, agent: FakeAgent) -> None:
    headers = agent.headers
    for path in ("/docs", "/openapi.json", "/redoc", "/nothing"):
        assert (await client.get(path, headers=headers)).status_code == 404
    assert (await client.get("/v1/exchange", headers=headers)).status_code == 405


async def test_a_revoked_credential_is_refused_within_two_seconds(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    database.revoke(agent)
    deadline = time.monotonic() + 2
    content = encode_batch([], session_id=agent.session_id)
    while (await agent.post(content)).status_code != 401:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_a_waiting_poll_ends_when_its_credential_is_revoked(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    assert not await agent.poll(wait=0.1)
    content = encode_batch([agent.status()], session_id=agent.session_id, wait_seconds=5)
    started = time.monotonic()
    poll = asyncio.create_task(agent.post(content))
    database.revoke(agent)
    response = await poll
    assert (response.status_code, response.content) == (401, b"")
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"null", b'{"frames": 1}', b'{"frames": [1]}', b'{"wait_seconds": -1}', b"\xff\xfe"],
)
async def test_what_is_no_batch_is_answered_with_one_line(agent: FakeAgent, body: bytes) -> None:
    response = await agent.post(body)
    assert response.status_code == 400
    assert list(response.json()) == ["error"]
    assert "\n" not in response.json()["error"]


async def test_an_answer_never_echoes_what_was_sent(agent: FakeAgent) -> None:
    secret = "do-not-repeat-me"
    response = await agent.post(json.dumps({"session_id": secret, "frames": [{"type": "hello"}]}).encode())
    assert response.status_code == 400
    assert secret not in response.text


async def test_a_body_that_is_too_large_is_refused(agent: FakeAgent) -> None:
    response = await agent.post(b" " * (MAX_BATCH_BYTES + 1))
    assert response.status_code == 413
    assert "error" in response.json()


async def test_a_body_of_unknown_length_is_bounded_too(client: httpx.AsyncClient, agent: FakeAgent) -> None:
    sent = 0

    async def endless() -> object:
        nonlocal sent
        while True:
            sent += 65536
            yield b" " * 65536

    response = await client.post(
        "/v1/exchange",
        content=endless(),  # type: ignore[arg-type]  # an async generator is one of the things it takes
        headers=agent.headers,
    )
    assert response.status_code == 413
    assert sent <= MAX_BATCH_BYTES + 2 * 65536


async def test_a_body_that_does_not_come_times_out(database: Database) -> None:
    never = asyncio.Event()

    async def slow() -> object:
        yield b"{"
        await never.wait()

    async with running(build_app(database, body_seconds=0.2)) as client:
        response = await client.post(
            "/v1/exchange",
            content=slow(),  # type: ignore[arg-type]  # as above
            headers=FakeAgent(client, "factory", database.credential("factory")).headers,
        )
    assert response.status_code == 408


async def test_without_tables_it_says_what_to_do_and_heals(
    database_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_edge_server.api.app._LOOK_AGAIN_SECONDS", 0)
    database = Database(database_url, migrated=False)
    try:
        async with running(build_app(database)) as client:
            assert (await client.get("/")).status_code == 401
            headers = {"Authorization": make_prover().header()}
            response = await client.post("/v1/exchange", headers=headers)
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) > 0
            assert "airflow db migrate" in response.json()["error"]
            lines = [record for record in caplog.records if "airflow db migrate" in record.getMessage()]
            assert len(lines) == 1
            assert lines[0].levelno == logging.ERROR
            database.migrate()
            assert (await client.post("/v1/exchange", headers=headers)).status_code == 401
            agent = FakeAgent(client, "factory", database.credential("factory"))
            assert isinstance((await agent.hello())[0], Welcome)
    finally:
        database.dispose()


async def test_a_database_that_fails_is_no_reason_to_refuse_a_credential(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/metadata.db")
    try:
        async with running(build_app(database)) as client:
            agent = FakeAgent(client, "factory", database.credential("factory"))
            await agent.hello()
            await asyncio.sleep(0)
            database.dispose()
            with database.engine.begin() as connection:
                connection.exec_driver_sql("DROP TABLE edge_agent_credential")
            other = FakeAgent(client, "factory", CREDENTIAL)
            assert (await other.post(b"{}")).status_code == 503
    finally:
        database.dispose()


async def test_a_bad_frame_is_skipped_and_logged_without_its_content(
    database: Database, agent: FakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    await agent.hello()
    frames = [{"type": "status", "state": "SECRET"}, agent.status(1).model_dump(mode="json"), {"no": "type"}]
    content = json.dumps({"session_id": agent.session_id, "frames": frames}).encode()
    response = await agent.post(content)
    assert response.status_code == 200
    assert response.json()["frames"] == []
    assert database.agent("factory").slots_used == 1
    (record,) = [r for r in caplog.records if "skipped" in r.getMessage()]
    assert "factory" in record.getMessage()
    assert "SECRET" not in record.getMessage()


async def test_an_unknown_frame_is_answered(agent: FakeAgent, caplog: pytest.LogCaptureFixture) -> None:
    await agent.hello()
    frames = [{"type": "teleport", "to": "moon"}, {"type": "unknown", "frame_type": "offer2"}]
    content = json.dumps({"session_id": agent.session_id, "frames": frames}).encode()
    response = await agent.post(content)
    assert response.json()["frames"] == [{"type": "unknown", "frame_type": "teleport"}]
    assert "does not understand frames of type 'offer2'" in caplog.text


async def test_a_bad_hello_is_closed_with_the_reason(agent: FakeAgent) -> None:
    hello = agent.hello_frame().model_dump(mode="json") | {"queues": ["a,b"]}
    response = await agent.post(json.dumps({"frames": [hello]}).encode())
    (frame,) = response.json()["frames"]
    assert (frame["type"], frame["code"]) == ("close", "bad_frame")
    assert "queues" in frame["message"]
    assert "a,b" not in frame["message"]


async def test_an_unknown_frame_before_hello_is_closed(agent: FakeAgent) -> None:
    response = await agent.post(json.dumps({"frames": [{"type": "x"}]}).encode())
    assert [frame["type"] for frame in response.json()["frames"]] == ["close", "unknown"]


async def test_texts_with_nul_are_stored_without(database: Database, make_agent: MakeAgent) -> None:
    agent = make_agent(hostname="ho\x00st", boot_id="b\x00")
    assert isinstance((await agent.hello())[0], Welcome)
    await agent.exchange(agent.status(problem="broken\x00"))
    row = database.agent("factory")
    assert row.problem == "broken\N{REPLACEMENT CHARACTER}"
    assert "\x00" not in f"{row.hostname}{row.boot_id}"
