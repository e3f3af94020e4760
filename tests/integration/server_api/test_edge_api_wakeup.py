"""How soon a dispatcher learns of work, and how seldom it asks the database when there is none."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from airflow_edge_agent.protocol.frames import Heartbeat, Metrics, Offer, Versions
from airflow_edge_agent.protocol.states import AgentState
from airflow_edge_server.api import listener
from airflow_edge_server.api.hub import Pace
from airflow_edge_server.store import purge
from airflow_edge_server.store.models import EdgeAgent
from airflow_edge_server.store.presence import Presence, Sign
from airflow_edge_server.store.wakeup import Topic, announce
from integration.server_api.channel_kit import ChannelAgent, Served, served
from integration.server_api.kit import Database, FakeAgent, MakeAgent, build_app, make_database, only, running, until

DEAF_PACE = Pace(busy_seconds=30, idle_seconds=30, listening_seconds=30, listening_after_seconds=0, flush_seconds=0.1)
"""Looks for jobs twice a minute: what comes sooner was announced."""


@pytest.fixture(params=["sqlite", "postgresql", "mysql", "psycopg"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return make_database(request, tmp_path)


@contextmanager
def counted(database: Database) -> Iterator[Counter[str]]:
    """Count statements by their first two words."""
    seen: Counter[str] = Counter()

    def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
        words = statement.split()
        seen[f"{words[0]} {words[1] if words[0] == 'UPDATE' else ''}".strip()] += 1

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(database.engine, "before_cursor_execute", note)


def queue_and_announce(database: Database, **values: Any) -> str:
    job_id = database.add_job(**values)
    with database.sessions() as session:
        announce(session, Topic.JOBS)
    return job_id


def channel_agent(site: Served, database: Database, name: str = "factory") -> ChannelAgent:
    client: Any = None
    return ChannelAgent(client, name, database.credential(name), url=site.url)


@pytest.fixture
def postgres(database: Database, database_url: str) -> Database:
    if not database_url.startswith("postgresql"):
        pytest.skip("only PostgreSQL notifies")
    return database


async def test_a_job_announced_is_offered_at_once(postgres: Database) -> None:
    async with (
        served(build_app(postgres, pace=DEAF_PACE)) as one,
        served(build_app(postgres, pace=DEAF_PACE)) as two,
    ):
        agents = [channel_agent(one, postgres, "a"), channel_agent(two, postgres, "b")]
        for site, agent in zip((one, two), agents, strict=True):
            await until(lambda site=site: site.hub._listening)  # type: ignore[misc]  # bound at once
            agent.queues = [agent.name]
            agent.agent_id = str(uuid.uuid4())
            await agent.open()
            await agent.ready()
            await until(lambda agent=agent: postgres.agent(agent.name).state == "idle")  # type: ignore[misc]  # as above
        delays = []
        for number in range(20):
            agent = agents[number % 2]
            started = time.monotonic()
            queue_and_announce(postgres, queue=agent.name, slots=1)
            offer = await agent.hear(Offer)
            delays.append(time.monotonic() - started)
            postgres.set_job(offer.job_id, state="finished", outcome="finished", agent_name=None, lease_until=None)
            await agent.ready()
        assert sorted(delays)[10] < 0.5
        assert max(delays) < 5


async def test_the_listener_comes_back_after_its_connection_was_cut(
    postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "FIRST_RETRY_SECONDS", 0.1)
    async with served(build_app(postgres, pace=DEAF_PACE)) as site:
        await until(lambda: site.hub._listening)
        with postgres.sessions() as session:
            session.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE query LIKE 'LISTEN%' AND datname = current_database()"
                )
            )
        await until(lambda: not site.hub._listening)
        await until(lambda: site.hub._listening, seconds=15)
        agent = channel_agent(site, postgres)
        await agent.open()
        await agent.ready()
        queue_and_announce(postgres)
        await agent.hear(Offer)


async def test_a_listener_that_hears_nothing_does_not_count(
    postgres: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener, "PROBE_PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(listener, "announce", lambda *_: None)
    async with served(build_app(postgres)) as site:
        await until(lambda: "notifications do not come through" in caplog.text)
        assert not site.hub._listening
        agent = channel_agent(site, postgres)
        await agent.open()
        await agent.ready()
        postgres.add_job()
        await agent.hear(Offer)


async def test_an_announcement_rolled_back_is_none(postgres: Database) -> None:
    async with served(build_app(postgres, pace=DEAF_PACE)) as site:
        await until(lambda: site.hub._listening)
        heard: list[str] = []

        def spy(topic: str) -> None:
            heard.append(topic)

        site.hub.heard = spy  # type: ignore[method-assign]  # looks inside
        with postgres.sessions() as session:
            announce(session, Topic.ORDERS)
            session.rollback()
            announce(session, Topic.JOBS)
        await until(lambda: heard == ["jobs"])


async def test_idle_agents_cost_one_statement_per_flush(database: Database) -> None:
    pace = replace(DEAF_PACE, notices_seconds=60, watch_seconds=60, flush_seconds=0.5)
    async with running(build_app(database, pace=pace)) as client:
        agents = []
        for number in range(30):
            agent = FakeAgent(
                client, f"agent-{number}", database.credential(f"agent-{number}"), agent_id=str(uuid.uuid4())
            )
            await agent.hello()
            await agent.poll(wait=0)
            agents.append(agent)
        old = datetime.now(UTC) - timedelta(seconds=40)
        for agent in agents:
            database.set_agent(agent.name, last_contact_at=old)
        with counted(database) as seen:
            for agent in agents:
                await agent.poll(wait=0)
            await until(lambda: all(database.agent(a.name).last_contact_at > old for a in agents))  # type: ignore[operator]  # was set
        assert seen["UPDATE edge_agent"] <= 10


async def test_a_change_is_stored_at_once(database: Database, agent: FakeAgent) -> None:
    await agent.hello()
    await agent.poll(wait=0)
    for given in ({"used": 2}, {"state": AgentState.RUNNING}, {"problem": "disk full"}, {"used": 0}):
        await agent.exchange(agent.status(**given))
        row = database.agent("factory")
        assert (row.slots_used, row.state, row.problem) == (
            given.get("used", 0),
            given.get("state", AgentState.IDLE),
            given.get("problem"),
        )


async def test_signs_of_life_are_written_at_the_stop(database: Database) -> None:
    async with running(build_app(database, pace=replace(DEAF_PACE, flush_seconds=60))) as client:
        agent = FakeAgent(client, "factory", database.credential("factory"))
        await agent.hello()
        await agent.exchange(agent.status())
        versions = Versions(agent="2", python="3.13")
        heartbeat = Heartbeat(metrics=Metrics(cpu_percent=77), sent_at=datetime.now(UTC), versions=versions)
        await agent.exchange(agent.status(), heartbeat)
    row = database.agent("factory")
    assert row.metrics == {"cpu_percent": 77}
    assert row.versions == {"agent": "2", "python": "3.13"}


def test_a_sign_of_life_brings_back_only_its_own_session(database: Database) -> None:
    database.credential("x")
    now = datetime.now(UTC)
    presence = Presence()
    for name, state in (("lost", "unknown"), ("busy", "running"), ("other", "unknown")):
        with database.sessions() as session:
            from airflow_edge_server.store.models import EdgeAgent  # noqa: PLC0415  near its use

            session.add(EdgeAgent(name=name, state=state, session_id="s", last_contact_at=now - timedelta(hours=1)))
        presence.note(name, Sign("s" if name != "other" else "older", now, {"cpu_percent": 1}, None, AgentState.IDLE))
    assert presence.flush(database.open) == 3
    assert not presence
    found = {name: database.agent(name) for name in ("lost", "busy", "other")}
    assert {name: row.state for name, row in found.items()} == {"lost": "idle", "busy": "running", "other": "unknown"}
    assert [found[name].last_contact_at == now for name in ("lost", "busy", "other")] == [True, True, False]
    assert found["busy"].metrics == {"cpu_percent": 1}
    assert found["other"].metrics == {}


@pytest.mark.parametrize(("ahead_seconds", "stays"), [(1, True), (3600, False)])
def test_a_sign_of_life_does_not_undo_a_later_one_of_another_process(
    database: Database, ahead_seconds: float, *, stays: bool
) -> None:
    database.credential("x")
    now = datetime.now(UTC)
    stored = now + timedelta(seconds=ahead_seconds)
    with database.sessions() as session:
        from airflow_edge_server.store.models import EdgeAgent  # noqa: PLC0415  near its use

        session.add(EdgeAgent(name="factory", state="running", session_id="s", last_contact_at=stored))
    presence = Presence()
    presence.note("factory", Sign("s", now))
    assert presence.flush(database.open) == 1
    assert database.agent("factory").last_contact_at == (stored if stays else now)
    assert presence.last_heard("factory", "s") == now
    assert presence.last_heard("factory", "another") is None


def test_signs_of_life_survive_a_fault(database: Database) -> None:
    presence = Presence()
    presence.note("factory", Sign("s", datetime.now(UTC), {"cpu_percent": 3}))

    def broken() -> Any:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        presence.flush(broken)
    presence.note("factory", Sign("s", datetime.now(UTC)))
    assert presence._signs["factory"].metrics == {"cpu_percent": 3}
    assert presence.flush(database.open) == 1


def test_signs_of_life_wait_for_no_row_that_is_locked(database: Database) -> None:
    if database.engine.dialect.name == "sqlite":
        pytest.skip("SQLite locks no rows")
    now = datetime.now(UTC)
    with database.sessions() as session:
        session.add_all(EdgeAgent(name=name, session_id="s", state="idle", metrics={}) for name in ("busy", "free"))
    presence = Presence()
    for name in ("busy", "free", "unknown"):
        presence.note(name, Sign("s", now, {"cpu_percent": 3}))
    with database.sessions() as session:
        session.get(EdgeAgent, "busy", with_for_update=True)
        assert presence.flush(database.open) == 2
        assert database.agent("free").metrics == {"cpu_percent": 3}
        assert presence
        presence.note("busy", Sign("s", now + timedelta(seconds=1)))
    assert presence.flush(database.open) == 1
    assert database.agent("busy").metrics == {"cpu_percent": 3}
    assert database.agent("busy").last_contact_at == now + timedelta(seconds=1)
    assert not presence


async def test_a_purge_under_way_does_not_stop_the_dispatcher(postgres: Database, make_agent: MakeAgent) -> None:
    old = datetime.now(UTC) - timedelta(days=60)
    for _ in range(20):
        postgres.add_job(state="finished", outcome="finished", finished_at=old)
    agent = make_agent()
    await agent.hello()
    with postgres.sessions() as session:
        assert purge.purge_batch(session, job_days=1, log_days=1).jobs == 20
        job_id = postgres.add_job()
        offers = only(await asyncio.wait_for(agent.poll(), 5), Offer)
        assert [offer.job_id for offer in offers] == [job_id]
        with postgres.sessions() as second:
            assert purge.purge_batch(second, job_days=1, log_days=1).jobs == 0
