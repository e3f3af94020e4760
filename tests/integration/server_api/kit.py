"""A database, the real app and agents of few words, for the tests of the agent API."""

from __future__ import annotations

import asyncio
import base64
import secrets
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import pytest
from airflow.models.log import Log
from airflow.utils.orm_event_handlers import setup_event_handlers
from fastapi import FastAPI, HTTPException, Request
from sqlalchemy import Engine, Integer, String, Uuid, column, create_engine, delete, insert, table, text, update
from sqlalchemy.orm import Session, sessionmaker

from airflow_edge_agent.adapters.credential import Credential, Prover
from airflow_edge_agent.adapters.keys import new_private_key, public_key
from airflow_edge_agent.protocol import PROTOCOL_VERSION
from airflow_edge_agent.protocol.codec import decode_server_frame, encode_batch
from airflow_edge_agent.protocol.frames import (
    Accept,
    AnyFrame,
    Heartbeat,
    HeldJob,
    Hello,
    Metrics,
    Offer,
    ServerFrame,
    Started,
    Status,
    Versions,
    Welcome,
)
from airflow_edge_agent.protocol.jobs import JobState
from airflow_edge_agent.protocol.states import AgentState
from airflow_edge_server.api.app import create_app
from airflow_edge_server.api.hub import Pace
from airflow_edge_server.compat import AdminUser
from airflow_edge_server.config import Settings
from airflow_edge_server.store.agents import ensure_agent
from airflow_edge_server.store.db import EdgeAgentDBManager
from airflow_edge_server.store.models import EdgeAgent, EdgeAgentCredential, EdgeAgentJob, EdgeAgentLog, metadata

if TYPE_CHECKING:
    from harness.mysql import Mysql
    from harness.postgres import Postgres

SETTINGS = Settings(
    api_enabled=True,
    heartbeat_seconds=5,
    lease_seconds=30,
    agent_timeout_seconds=75,
    disconnect_grace_seconds=300,
    job_retention_days=7,
    log_retention_days=30,
    execution_api_url=None,
    log_hand_over=False,
)
# Tests change the tables without an announcement, which nothing but a look can find.
PACE = Pace(busy_seconds=0.05, notices_seconds=0.1, listening_notices_seconds=0.1, shortest_seconds=0.01)

TASKS = table(
    "task_instance",
    column("id", Uuid),
    *[column(name, String) for name in ("dag_id", "task_id", "run_id", "state")],
    *[column(name, Integer) for name in ("map_index", "try_number")],
)

F = TypeVar("F")


class Database:
    """A metadata database with our tables in it, and of Airflow's only what is read of task instances."""

    def __init__(self, url: str, *, migrated: bool = True, fresh: bool = True) -> None:
        arguments: dict[str, Any] = {"check_same_thread": False} if url.startswith("sqlite") else {}
        self.engine: Engine = create_engine(url, connect_args=arguments, pool_size=10)
        setup_event_handlers(self.engine)
        self._maker = sessionmaker(self.engine, autoflush=False, expire_on_commit=False)
        if not fresh:
            return
        metadata.drop_all(self.engine)
        with self.engine.begin() as connection:
            connection.execute(text("DROP TABLE IF EXISTS alembic_version_edge_agent"))
            connection.execute(text("DROP TABLE IF EXISTS task_instance"))
            Log.__table__.drop(connection, checkfirst=True)
            Log.__table__.create(connection)
            key = Uuid().compile(dialect=connection.dialect)
            connection.execute(
                text(
                    f"CREATE TABLE task_instance (id {key} PRIMARY KEY, dag_id VARCHAR(250), task_id VARCHAR(250),"
                    " run_id VARCHAR(250), map_index INTEGER, try_number INTEGER, state VARCHAR(20))"
                )
            )
        if migrated:
            self.migrate()

    def migrate(self) -> None:
        metadata.create_all(self.engine)
        (head,) = EdgeAgentDBManager.revision_heads_map.values()
        with self.engine.begin() as connection:
            connection.execute(text("CREATE TABLE alembic_version_edge_agent (version_num VARCHAR(32) NOT NULL)"))
            connection.execute(text("INSERT INTO alembic_version_edge_agent VALUES (:head)"), {"head": head})

    @contextmanager
    def sessions(self) -> Iterator[Session]:
        with self._maker() as session:
            try:
                yield session
                session.commit()
            except BaseException:
                session.rollback()
                raise

    def open(self) -> AbstractContextManager[Session]:
        return self.sessions()

    def credential(self, name: str, *, queues: list[str] | None = None, **values: Any) -> str:
        """Enroll an agent without ceremony; return what its credential file would hold.

        :param queues: what it may serve; every one, unless given.
        """
        credential = Credential(secrets.token_hex(8), new_private_key())
        given = {
            "id": credential.id,
            "agent_name": name,
            "public_key": public_key(credential.private_key).hex(),
            "created_at": datetime.now(UTC),
            **values,
        }
        with self.sessions() as session:
            ensure_agent(session, name).granted_queues = ["*"] if queues is None else queues
            session.add(EdgeAgentCredential(**given))
        return credential.text()

    def revoke(self, agent: FakeAgent) -> None:
        """Revoke an agent's credential, without telling anybody."""
        with self.sessions() as session:
            session.get_one(EdgeAgentCredential, agent.credential_id).revoked_at = datetime.now(UTC)

    def add_job(self, **values: Any) -> str:
        job_id = str(uuid.uuid4())
        given: dict[str, Any] = {
            "id": job_id,
            "kind": "task",
            "state": JobState.QUEUED.value,
            "owner": "scheduler-1",
            "queue": "default",
            "ti_id": str(uuid.uuid4()),
            "dag_id": "dag",
            "task_id": "task",
            "run_id": "run",
            "workload": {"type": "ExecuteTask", "ti": {"id": "x"}},
            "queued_at": datetime.now(UTC),
            **values,
        }
        with self.sessions() as session:
            session.add(EdgeAgentJob(**given))
            if given["kind"] == "task":
                place = {key: given.get(key) for key in ("dag_id", "task_id", "run_id")}
                session.execute(
                    insert(TASKS).values(
                        id=uuid.UUID(given["ti_id"]),
                        map_index=given.get("map_index", -1),
                        try_number=given.get("try_number", 1),
                        state="queued",
                        **place,
                    )
                )
        return str(given["id"])

    def set_task(self, job_id: str, **values: Any) -> None:
        """Change the task instance of a job."""
        ti_id = uuid.UUID(self.job(job_id).ti_id)
        with self.sessions() as session:
            session.execute(update(TASKS).where(TASKS.c.id == ti_id).values(**values))

    def delete_task(self, job_id: str) -> None:
        ti_id = uuid.UUID(self.job(job_id).ti_id)
        with self.sessions() as session:
            session.execute(delete(TASKS).where(TASKS.c.id == ti_id))

    def job(self, job_id: str) -> EdgeAgentJob:
        with self.sessions() as session:
            job = session.get(EdgeAgentJob, job_id)
            assert job is not None
            session.expunge(job)
            return job

    def set_job(self, job_id: str, **values: Any) -> None:
        with self.sessions() as session:
            job = session.get(EdgeAgentJob, job_id)
            for key, value in values.items():
                setattr(job, key, value)

    def agent(self, name: str) -> EdgeAgent:
        with self.sessions() as session:
            agent = session.get(EdgeAgent, name)
            assert agent is not None
            session.expunge(agent)
            return agent

    def set_agent(self, name: str, **values: Any) -> None:
        with self.sessions() as session:
            agent = session.get(EdgeAgent, name)
            for key, value in values.items():
                setattr(agent, key, value)

    def log(self, job_id: str) -> bytes:
        with self.sessions() as session:
            rows = session.query(EdgeAgentLog).filter_by(job_id=job_id).order_by(EdgeAgentLog.offset).all()
            position = 0
            for row in rows:
                assert row.offset == position, "pieces must follow each other without gap"
                position += len(row.data)
            return b"".join(row.data for row in rows)

    def dispose(self) -> None:
        self.engine.dispose()


def make_database(request: pytest.FixtureRequest, folder: Path) -> str:
    """Return the URL of an empty database of the fixture's kind; ``psycopg`` is PostgreSQL by psycopg 3."""
    if request.param == "sqlite":
        return f"sqlite:///{folder}/metadata.db"
    fixture = "mysql_server" if request.param == "mysql" else "postgres_server"
    server: Postgres | Mysql = request.getfixturevalue(fixture)
    url = server.create_database()
    return url.replace("+psycopg2:", "+psycopg:") if request.param == "psycopg" else url


PEOPLE = {
    "nobody": AdminUser("nora", can_view=False, can_change=False),
    "viewer": AdminUser("vera", can_view=True, can_change=False),
    "op": AdminUser("otto", can_view=True, can_change=True),
    "red": AdminUser("rita", can_view=True, can_change=True, teams=frozenset({"red"})),
}


async def by_role(request: Request) -> AdminUser:
    """Stand in for Airflow's auth manager: the header X-Role says who it is."""
    user = PEOPLE.get(request.headers.get("x-role", ""))
    if user is None:
        raise HTTPException(401, "Not authenticated")
    return user


def add_audit_log(database: Database) -> None:
    """Make Airflow's table of who did what."""
    with database.engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS log"))
        key = {"sqlite": "INTEGER PRIMARY KEY", "postgresql": "SERIAL PRIMARY KEY"}.get(
            connection.dialect.name, "INTEGER PRIMARY KEY AUTO_INCREMENT"
        )
        connection.execute(
            text(
                f"CREATE TABLE log (id {key}, dttm TIMESTAMP NULL, dag_id VARCHAR(250), task_id VARCHAR(250),"
                " map_index INTEGER, event VARCHAR(60), logical_date TIMESTAMP NULL, run_id VARCHAR(250),"
                " owner VARCHAR(500), owner_display_name VARCHAR(500), extra TEXT, try_number INTEGER)"
            )
        )


def build_app(database: Database, **given: Any) -> FastAPI:
    options: dict[str, Any] = {
        "settings": SETTINGS,
        "sessions": database.open,
        "mint": lambda ti_id: f"token of {ti_id}",
        "on_start": lambda: None,
        "authenticate": by_role,
        "pace": PACE,
        **given,
    }
    return create_app(**options)


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Run the app's lifespan and yield a client without credentials."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=30) as client:
            yield client


@dataclass
class FakeAgent:
    """Says what the tests want said."""

    client: httpx.AsyncClient
    name: str
    credential: str
    """What its credential file holds."""
    queues: list[str] = field(default_factory=lambda: ["default"])
    slots: int = 4
    agent_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    boot_id: str = "boot-1"
    instance_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    hostname: str = "host-1"
    session_id: str | None = None
    token: str | None = None
    """Sent in place of a proof."""

    @property
    def credential_id(self) -> str:
        return self.credential.split("_")[1]

    @property
    def headers(self) -> dict[str, str]:
        """What shows who it is."""
        if self.token is not None:
            return {"Authorization": f"Bearer {self.token}"}
        return {"Authorization": self.prover.header()}

    @property
    def prover(self) -> Prover:
        _, credential_id, key = self.credential.strip().split("_", 2)
        return Prover(Credential(credential_id, base64.urlsafe_b64decode(key + "=")), Path("/nonexistent"))

    async def post(self, content: bytes) -> httpx.Response:
        return await self.client.post("/v1/exchange", content=content, headers=self.headers)

    async def exchange(self, *frames: AnyFrame, wait: float = 0, session_id: str | None = None) -> list[ServerFrame]:
        content = encode_batch(list(frames), session_id=session_id or self.session_id, wait_seconds=wait)
        response = await self.post(content)
        assert response.status_code == 200, (response.status_code, response.text)
        return [decode_server_frame(frame) for frame in response.json()["frames"]]

    def hello_frame(self, *jobs: HeldJob, **given: Any) -> Hello:
        values: dict[str, Any] = {
            "protocol_min": 1,
            "protocol_max": PROTOCOL_VERSION,
            "name": self.name,
            "agent_id": self.agent_id,
            "boot_id": self.boot_id,
            "instance_id": self.instance_id,
            "hostname": self.hostname,
            "versions": Versions(agent="1", python="3.11"),
            "queues": self.queues,
            "concurrency": self.slots,
            "state": AgentState.STARTING,
            "jobs": list(jobs),
            **given,
        }
        return Hello(**values)

    async def hello(self, *jobs: HeldJob, **given: Any) -> list[ServerFrame]:
        content = encode_batch([self.hello_frame(*jobs, **given)])
        response = await self.post(content)
        assert response.status_code == 200, response.text
        frames = [decode_server_frame(frame) for frame in response.json()["frames"]]
        if frames and isinstance(frames[0], Welcome):
            self.session_id = frames[0].session_id
        return frames

    def status(self, used: int = 0, state: AgentState = AgentState.IDLE, **given: Any) -> Status:
        return Status(state=state, slots_total=self.slots, slots_used=used, **given)

    async def poll(self, used: int = 0, *, wait: float = 5, **given: Any) -> list[ServerFrame]:
        heartbeat = Heartbeat(metrics=Metrics(cpu_percent=1), sent_at=datetime.now(UTC))
        return await self.exchange(self.status(used, **given), heartbeat, wait=wait)

    async def offers(self, used: int = 0, **given: Any) -> list[Offer]:
        return only(await self.poll(used, **given), Offer)

    async def take(self, *, start: bool = False) -> Offer:
        """Wait for one offer and accept it."""
        (offer,) = await self.offers()
        await self.exchange(Accept(job_id=offer.job_id, fence=offer.fence))
        if start:
            await self.exchange(Started(job_id=offer.job_id, fence=offer.fence, pid=1))
        return offer


async def until(condition: Callable[[], bool], *, seconds: float = 5) -> None:
    """Wait for a condition that only looking can tell."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  the database and other processes set no event
            await asyncio.sleep(0.01)


def only(frames: list[ServerFrame], kind: type[F]) -> list[F]:
    """Return the frames; all of them must be of that kind."""
    wrong = [frame for frame in frames if not isinstance(frame, kind)]
    assert not wrong, wrong
    return [frame for frame in frames if isinstance(frame, kind)]


MakeAgent = Callable[..., FakeAgent]
