"""The agent API as an app that Airflow's api-server mounts."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from airflow_edge_agent.protocol import ENROLL_PATH, EXCHANGE_PATH
from airflow_edge_agent.protocol.relay import JOBS_PATH
from airflow_edge_server import __version__, compat, config, plainly
from airflow_edge_server.api.admin import ADMIN_PREFIX, create_admin_app
from airflow_edge_server.api.admin_access import Authenticate
from airflow_edge_server.api.auth import Gate
from airflow_edge_server.api.bounds import BURST_SECONDS, AgentBounds, Allowances, Doorkeeper
from airflow_edge_server.api.channel import Channel
from airflow_edge_server.api.enroll import Enroll
from airflow_edge_server.api.exchange import BODY_SECONDS, Exchange
from airflow_edge_server.api.hub import Hub, Pace
from airflow_edge_server.api.listener import Listener
from airflow_edge_server.api.relay import TOKEN_SECONDS, Relay, Sign
from airflow_edge_server.api.service import Service
from airflow_edge_server.api.shortcut import Shortcut
from airflow_edge_server.api.stopping import StopNotice
from airflow_edge_server.api.task_metrics import TaskMetricsRelay
from airflow_edge_server.handover import LogHandOver
from airflow_edge_server.store.db import schema_problem
from airflow_edge_server.store.dispatch import Mint
from airflow_edge_server.store.presence import Presence
from airflow_edge_server.store.transaction import Sessions, airflow_sessions

log = plainly.logger(__name__)

THREADS = 4
"""Threads for the requests of agents; the dispatcher has one of its own."""

_LOOK_AGAIN_SECONDS = 5.0


class _Readiness:
    """Whether our tables are as this version needs them. Looked up until they are, then never again."""

    def __init__(self, sessions: Sessions, threads: ThreadPoolExecutor) -> None:
        self._sessions = sessions
        self._threads = threads
        self._problem = "the api-server is starting"
        self._usable = False
        self._looked_at = -_LOOK_AGAIN_SECONDS
        self._lock = asyncio.Lock()

    async def problem(self) -> str | None:
        """Return what is wrong, in one line; ``None``: nothing."""
        if self._usable:
            return None
        async with self._lock:
            if self._is_due():
                found = await asyncio.get_running_loop().run_in_executor(self._threads, self._look)
                if found is not None and found != self._problem:
                    log.error("The agent API cannot work: %s", found)
                self._problem = found or ""
                self._usable = found is None
                self._looked_at = time.monotonic()
        return self._problem or None

    def _is_due(self) -> bool:
        return not self._usable and time.monotonic() - self._looked_at >= _LOOK_AGAIN_SECONDS

    def _look(self) -> str | None:
        try:
            with self._sessions() as session:
                return schema_problem(session)
        except SQLAlchemyError as error:
            return f"the metadata database cannot be read ({type(error).__name__}): check [database] sql_alchemy_conn"


def _sign(subject: str, scope: str) -> str:
    return compat.sign_token(subject, scope, valid_for=TOKEN_SECONDS)


def spare_collector() -> None:
    """Keep what was loaded so far out of the rounds of the garbage collector.

    All of Airflow is, and nothing of it becomes free; a process that has many jobs to hand out looks through it often.
    """
    gc.collect()
    gc.freeze()


def begin_in_airflow() -> None:
    """Do what has to be done once in a process of Airflow's that serves agents."""
    compat.install_log_reader()
    spare_collector()


def create_app(
    settings: config.Settings | None = None,
    *,
    sessions: Sessions = airflow_sessions,
    mint: Mint = compat.mint_token,
    on_start: Callable[[], object] = begin_in_airflow,
    authenticate: Authenticate = compat.admin_user,
    admin: bool = True,
    pace: Pace | None = None,
    body_seconds: float = BODY_SECONDS,
    execution: ASGIApp | None = None,
    sign: Sign = _sign,
    stats: Callable[[], Any] = compat.stats,
    start_stats: Callable[[], object] = compat.start_stats,
) -> FastAPI:
    """Build the app.

    :param settings: as configured, unless given.
    :param sessions: opens sessions on the metadata database.
    :param mint: makes the token of a workload, given the id of its task instance or callback.
    :param on_start: called when the server starts.
    :param authenticate: tells who uses the admin API.
    :param admin: whether there is an admin API. It needs Airflow's auth manager.
    :param execution: the Execution API to which calls of jobs are relayed; Airflow's own, unless given.
    :param sign: makes its tokens.
    :param stats: returns Airflow's metrics, for those of tasks.
    :param start_stats: makes this process tell metrics, if those of tasks are relayed.
    :raises airflow.exceptions.AirflowConfigException: when the configuration is not valid.
    """
    settings = settings or config.load()
    threads = ThreadPoolExecutor(THREADS, thread_name_prefix="edge-agents")
    dispatcher = ThreadPoolExecutor(1, thread_name_prefix="edge-agents-dispatcher")
    readiness = _Readiness(sessions, threads)
    presence = Presence()
    hub = Hub(
        sessions,
        dispatcher,
        lease_seconds=settings.lease_seconds,
        mint=mint,
        disconnect_lease=settings.disconnect_lease,
        revoke_grace_seconds=settings.revoke_grace_seconds,
        presence=presence,
        pace=pace,
    )
    service = Service(
        settings,
        sessions,
        server_version=__version__,
        airflow_version=compat.airflow_version(),
        presence=presence,
        task_metrics=TaskMetricsRelay(stats) if settings.relay_task_metrics else None,
    )
    exchange = Exchange(
        service, hub, threads, longest_wait_seconds=settings.heartbeat_seconds, body_seconds=body_seconds
    )

    enroll = Enroll(
        sessions,
        threads,
        credential_days=settings.credential_days,
        body_seconds=body_seconds,
        server_version=__version__,
        airflow_version=compat.airflow_version(),
    )
    rate = settings.agent_requests_per_second
    allowances = Allowances(rate, rate * BURST_SECONDS)
    channel = Channel(service, hub, threads, heartbeat_seconds=settings.heartbeat_seconds, allowances=allowances)

    logs = LogHandOver(sessions) if settings.log_hand_over else None

    own_execution = compat.ExecutionApi()
    relay = Relay(sessions, threads, execution=own_execution if execution is None else execution, sign=sign)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        on_start()
        if settings.relay_task_metrics:
            start_stats()
        await readiness.problem()
        notice = StopNotice(hub.stop_lines)
        notice.install()
        hub.start()
        loop = asyncio.get_running_loop()
        listener = Listener(
            sessions,
            heard=lambda topic: _in_loop(loop, hub.heard, topic),
            turned=lambda live: _in_loop(loop, hub.listening, live),
        )
        listener.start()
        if logs is not None:
            # It loads the handler and what that needs, which may take a while.
            await loop.run_in_executor(threads, logs.start)
        try:
            yield
        finally:
            notice.remove()
            await hub.stop()
            await asyncio.to_thread(listener.stop)
            if logs is not None:
                await asyncio.to_thread(logs.stop)
            await own_execution.close()
            threads.shutdown(wait=False)
            dispatcher.shutdown(wait=False)

    routes = Starlette(
        routes=[
            Route(EXCHANGE_PATH, exchange.handle, methods=["POST"]),
            Route(ENROLL_PATH, enroll.handle, methods=["POST"]),
            Mount(JOBS_PATH, app=relay),
        ],
    )
    # What is for agents is behind the gate of their credentials, what is for people behind Airflow's auth manager.
    bounds = AgentBounds(
        Shortcut(routes, channel=channel), allowances=allowances, most_connections=settings.agent_connections
    )
    agents = Doorkeeper(
        Gate(
            bounds,
            sessions=sessions,
            threads=threads,
            problem=readiness.problem,
            revoke_grace_seconds=settings.revoke_grace_seconds,
        ),
        most_connections=settings.max_connections,
        wrong_per_minute=settings.wrong_credentials_per_minute,
    )
    app = FastAPI(title="Edge agents", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.problem = readiness.problem
    app.state.agents = agents
    if admin:
        app.mount(ADMIN_PREFIX, create_admin_app(sessions, authenticate=authenticate, problem=readiness.problem))
    app.mount("", agents)
    return app


def _in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[Any], None], value: object) -> None:
    """Call from another thread; nothing happens once the loop is closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call, value)
