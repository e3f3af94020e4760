"""Puts the daemon together: settings, adapters, loops, signals, and the order in which all of it stops."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import platform
import signal
import socket
import uuid
from dataclasses import dataclass

import structlog

from airflow_edge_agent import __version__
from airflow_edge_agent.adapters.carriers import CarrierTransport
from airflow_edge_agent.adapters.files import (
    DirectoryLock,
    TokenError,
    agent_identity,
    boot_identity,
    check_socket_path,
    make_private_dir,
    read_token,
)
from airflow_edge_agent.adapters.jobstore import RUNNER_JOBS, DirectoryJobStore
from airflow_edge_agent.adapters.memory import give_back_memory
from airflow_edge_agent.adapters.metrics import PsutilProbe
from airflow_edge_agent.adapters.network import Network
from airflow_edge_agent.adapters.notify import SystemdNotifier
from airflow_edge_agent.adapters.runner import RunnerOptions, SubprocessRunner
from airflow_edge_agent.adapters.runtime_env import check_runtime, task_environment
from airflow_edge_agent.core.agent import AgentCore, Limits
from airflow_edge_agent.core.backoff import Backoff
from airflow_edge_agent.core.events import StopAsked
from airflow_edge_agent.ports import StoreError, TransportError
from airflow_edge_agent.protocol import PROTOCOL_OLDEST, PROTOCOL_VERSION
from airflow_edge_agent.protocol.frames import Hello, Versions
from airflow_edge_agent.runtime.guard import LoopEnded, run_guarded
from airflow_edge_agent.runtime.jobs import recover, runner_loop, runtime_loop, thrift_loop, time_loop
from airflow_edge_agent.runtime.link import LinkLoop
from airflow_edge_agent.runtime.pump import Pump
from airflow_edge_agent.settings import Settings

log = structlog.get_logger()

EXIT_INTERNAL = 70
EXIT_DIRECTORY = 73
EXIT_TOKEN = 77
EXIT_CONFIG = 78

_GOODBYE_SECONDS = 3.0


@dataclass
class Identity:
    """Who this daemon is."""

    agent_id: str
    boot_id: str
    instance_id: str


def run(settings: Settings) -> int:
    """Run the daemon until it is told to stop.

    :return: the exit code; what went wrong has been logged in one line.
    """
    try:
        for directory in (settings.state_dir, settings.run_dir, settings.jobs_dir):
            make_private_dir(directory)
        if settings.runner.socket is None:
            make_private_dir(settings.runner_dir)
            make_private_dir(settings.runner_dir / RUNNER_JOBS)
        check_socket_path(settings.runner_socket)
        lock = DirectoryLock(settings.state_dir)
        identity = Identity(agent_identity(settings.state_dir), boot_identity(), str(uuid.uuid4()))
    except StoreError as error:
        log.error(str(error))
        return EXIT_DIRECTORY
    try:
        token = read_token(settings.token_file)
        network = Network(settings.ca_file, settings.client_cert, settings.client_key, settings.tls_server_name)
        transport = CarrierTransport(settings.server_url, token, network, settings.carrier)
    except TokenError as error:
        log.error(str(error))
        return EXIT_TOKEN
    except TransportError as error:
        log.error(str(error))
        return EXIT_CONFIG
    try:
        return asyncio.run(_run(settings, identity, transport))
    finally:
        del lock


async def _run(settings: Settings, identity: Identity, transport: CarrierTransport) -> int:
    store = DirectoryJobStore(settings.jobs_dir, settings.runner_dir)
    runner = SubprocessRunner(
        python=settings.runner.python,
        socket_path=settings.runner_socket,
        runner_dir=settings.runner_dir,
        foreign=settings.runner.socket is not None,
        options=RunnerOptions(
            idle_seconds=settings.runner.idle_seconds,
            stop_without_agent_seconds=settings.runner.stop_without_agent_seconds,
        ),
        environment=task_environment(settings),
    )
    core = AgentCore(
        Limits(
            concurrency=settings.concurrency,
            kill_grace_seconds=settings.drain.kill_grace_seconds,
            drain_deadline_seconds=settings.drain.deadline_seconds,
            spool_bytes=settings.spool_max_mb * 1024 * 1024,
        )
    )
    pump = Pump(
        core,
        store=store,
        runner=runner,
        boot_id=identity.boot_id,
        default_execution_url=settings.execution_api_url or f"{settings.server_url}/execution/",
    )
    versions = Versions(
        agent=__version__, python=platform.python_version(), runtime_python=str(settings.runner.python)[:200]
    )

    attempts = itertools.count(1)

    def hello() -> Hello:
        return Hello(
            protocol_min=PROTOCOL_OLDEST,
            protocol_max=PROTOCOL_VERSION,
            name=settings.name,
            agent_id=identity.agent_id,
            boot_id=identity.boot_id,
            instance_id=identity.instance_id,
            attempt=next(attempts),
            hostname=socket.gethostname()[:200],
            versions=link.versions or versions,
            queues=settings.queues,
            concurrency=settings.concurrency,
            state=core.state,
            jobs=core.held_jobs(),
        )

    link = LinkLoop(
        pump, transport, PsutilProbe(settings.state_dir), hello=hello, backoff=Backoff(), climb=transport.climb
    )
    link.versions = versions

    def on_versions(found: dict[str, str]) -> None:
        known = {key: found[key] for key in ("task_sdk", "airflow") if found.get(key)}
        link.runtime_known(versions.model_copy(update=known))

    def check() -> str | None:
        sdk, problem = check_runtime(settings.runner.python)
        if problem is None:
            on_versions({"task_sdk": sdk or ""})
        return problem or store.check()

    notifier = SystemdNotifier()
    loop = asyncio.get_running_loop()

    def stop(name: str) -> None:
        pump.feed(StopAsked(name))
        notifier.stopping(f"stopping, {core.slots_used} slots in use")

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number.name)
    log.info(
        "edge agent starts", version=__version__, name=settings.name, server=settings.server_url, queues=settings.queues
    )
    try:
        await recover(pump, runner, store, identity.boot_id)
        notifier.ready("running")
        await run_guarded(
            {
                "link": link.run(),
                "runner": runner_loop(pump, runner, store, on_versions),
                "signals": pump.signal_loop(),
                "time": time_loop(pump, store),
                "thrift": thrift_loop(pump, give_back_memory),
                "runtime": runtime_loop(pump, check),
                "flush": _flush(pump),
            },
            until=pump.left,
        )
    except LoopEnded as error:
        log.error(str(error), cause=repr(error.__cause__))
        return EXIT_INTERNAL
    finally:
        await pump.settle()
        await runner.close()
        await transport.close()
    log.info("edge agent ends")
    return pump.exit_code or 0


async def _flush(pump: Pump) -> None:
    """When the core wants to leave, let the last frames go out first."""
    await pump.exiting.wait()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(pump.outbox.drained(), _GOODBYE_SECONDS)
    pump.left.set()
    await asyncio.Event().wait()
