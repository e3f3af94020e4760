"""Puts the daemon together: settings, adapters, loops, signals, and the order in which all of it stops."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import platform
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from airflow_edge_agent import __version__
from airflow_edge_agent.adapters.commands import run_json
from airflow_edge_agent.adapters.control_socket import ControlListener, Handler
from airflow_edge_agent.adapters.credential import CredentialError
from airflow_edge_agent.adapters.enrolment import Enrolment
from airflow_edge_agent.adapters.environment_file import configure_foreign_runner
from airflow_edge_agent.adapters.files import (
    DirectoryLock,
    agent_identity,
    boot_identity,
    check_socket_path,
    make_private_dir,
    relay_key,
)
from airflow_edge_agent.adapters.jobstore import RUNNER_JOBS, DirectoryJobStore
from airflow_edge_agent.adapters.maintenance_file import MaintenanceFile
from airflow_edge_agent.adapters.memory import give_back_memory
from airflow_edge_agent.adapters.metrics import PsutilProbe
from airflow_edge_agent.adapters.notify import SystemdNotifier
from airflow_edge_agent.adapters.relay_socket import RelayListener
from airflow_edge_agent.adapters.runner import RunnerOptions, SubprocessRunner
from airflow_edge_agent.adapters.runtime_env import task_environment
from airflow_edge_agent.adapters.runtime_watch import RuntimeWatch
from airflow_edge_agent.configuration import DEBUG_VARIABLE, Loaded, reported
from airflow_edge_agent.core.agent import AgentCore
from airflow_edge_agent.core.backoff import Backoff
from airflow_edge_agent.core.events import MaintenanceRemembered
from airflow_edge_agent.operations import (
    Operations,
    custom_plans,
    default_execution_url,
    health_plan,
    limits_of,
    make_transport,
    shouting,
)
from airflow_edge_agent.ports import Caller, StoreError, TransportError
from airflow_edge_agent.protocol import PROTOCOL_OLDEST, PROTOCOL_VERSION
from airflow_edge_agent.protocol.frames import Hello, Versions
from airflow_edge_agent.runtime.finals import FinalStates
from airflow_edge_agent.runtime.guard import Expectation, LoopEnded, Progress, run_guarded
from airflow_edge_agent.runtime.health import CustomLoop, HealthLoop, deadline_loop
from airflow_edge_agent.runtime.jobs import recover, runner_loop, runtime_loop, thrift_loop, time_loop
from airflow_edge_agent.runtime.link import LinkLoop
from airflow_edge_agent.runtime.logging import SendEntry
from airflow_edge_agent.runtime.pump import Pump
from airflow_edge_agent.runtime.relay import Relay
from airflow_edge_agent.runtime.rendered import RenderedFields
from airflow_edge_agent.runtime.reports import NOT_ENROLLED, Person, Reporter
from airflow_edge_agent.runtime.service import status_loop
from airflow_edge_agent.runtime.tasklog import TaskLogs
from airflow_edge_agent.runtime.watchdog import Watchdog
from airflow_edge_agent.settings import Settings
from airflow_edge_agent.taskmetrics import TaskMetricsPart
from airflow_edge_agent.taskruntime import TaskRuntime

if TYPE_CHECKING:
    from airflow_edge_agent.adapters.metrics_socket import MetricsListener

log = structlog.get_logger()

EXIT_INTERNAL = 70
EXIT_DIRECTORY = 73
EXIT_CREDENTIAL = 77
EXIT_CONFIG = 78

_GOODBYE_SECONDS = 3.0

_LONGEST_STEP_SECONDS = 30.0
_LONGEST_CONNECT_SECONDS = 300.0


@dataclass
class Identity:
    """Who this daemon is."""

    agent_id: str
    boot_id: str
    instance_id: str


def run(loaded: Loaded, read_again: Callable[[], Loaded], journal: SendEntry | None = None) -> int:
    """Run the daemon until it is told to stop.

    :param read_again: reads the configuration again, for a reload.
    :param journal: gives an entry to the journal, if the log goes there.
    :return: the exit code; what went wrong has been logged in one line.
    """
    settings = loaded.settings
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
    if (fault := configure_foreign_runner(settings)) is not None:
        log.error(fault)
        return EXIT_DIRECTORY
    notifier = SystemdNotifier()
    try:
        if loaded.enrolled:
            make_transport(settings)
    except CredentialError as error:
        if not notifier.present:
            log.error(str(error), edge_event="not_enrolled")
            return EXIT_CREDENTIAL
    except TransportError as error:
        log.error(str(error))
        return EXIT_CONFIG
    try:
        return asyncio.run(_run(loaded, read_again, identity, notifier, journal))
    except StoreError as error:
        log.error(str(error))
        return EXIT_DIRECTORY
    finally:
        del lock


async def _run(  # noqa: PLR0915 -- one long list of parts, in the order in which they depend on each other
    loaded: Loaded,
    read_again: Callable[[], Loaded],
    identity: Identity,
    notifier: SystemdNotifier,
    journal: SendEntry | None,
) -> int:
    settings = loaded.settings
    store = DirectoryJobStore(settings.jobs_dir, settings.runner_dir)
    maintenance = MaintenanceFile(settings.state_dir)
    environment = task_environment(settings)
    runner = SubprocessRunner(
        python=settings.runner.python,
        socket_path=settings.runner_socket,
        runner_dir=settings.runner_dir,
        foreign=settings.runner.socket is not None,
        options=RunnerOptions(
            idle_seconds=settings.runner.idle_seconds,
            stop_without_agent_seconds=settings.runner.stop_without_agent_seconds,
        ),
        environment=environment,
    )
    core = AgentCore(limits_of(settings))
    pump = Pump(
        core,
        store=store,
        runner=runner,
        boot_id=identity.boot_id,
        default_execution_url=default_execution_url(settings),
        maintenance=maintenance,
    )
    versions = Versions(
        agent=__version__, python=platform.python_version(), runtime_python=str(settings.runner.python)[:200]
    )

    attempts = itertools.count(1)

    def hello() -> Hello:
        return Hello(
            protocol_min=PROTOCOL_OLDEST,
            protocol_max=PROTOCOL_VERSION,
            name=person.name,
            agent_id=identity.agent_id,
            boot_id=identity.boot_id,
            instance_id=identity.instance_id,
            attempt=next(attempts),
            hostname=socket.gethostname()[:200],
            versions=link.versions or versions,
            queues=list(core.limits.queues),
            concurrency=core.limits.concurrency,
            state=core.state,
            execution_api=settings.execution_api,
            jobs=core.held_jobs(),
            configuration=reported(operations.loaded.settings),
        )

    enrolment = Enrolment()
    probe = PsutilProbe(settings.state_dir)
    link = LinkLoop(
        pump,
        enrolment,
        probe,
        hello=hello,
        backoff=Backoff(),
        climb=enrolment.climb,
        enrolled=enrolment.wait,
        renew=enrolment.renew,
    )
    link.versions = versions

    runtime = TaskRuntime(RuntimeWatch(settings.runner.python, environment), store, link, versions)
    pump.on_runner_problem = runtime.failed
    loop = asyncio.get_running_loop()
    progress = Progress()
    person = Person(settings.name, __version__, os.getpid(), identity.agent_id, identity.instance_id, loop.time())
    reporter = Reporter(core, link, person)
    health = HealthLoop(pump, probe, health_plan(settings))
    custom = CustomLoop(run_json, link.custom, custom_plans(settings))
    operations = Operations(
        loaded,
        read_again,
        pump=pump,
        link=link,
        enrolment=enrolment,
        notifier=notifier,
        person=person,
        reporter=reporter,
        health=health,
        custom=custom,
        runner=runner,
    )

    @functools.cache
    def control() -> Handler:
        # Only now: most of the time nobody asks, and the models of the requests take memory.
        from airflow_edge_agent.runtime.control import Control, Powers  # noqa: PLC0415

        debug = os.environ.get(DEBUG_VARIABLE) == "1"
        return Control(
            pump,
            store,
            reporter,
            progress,
            Powers(operations.reload, operations.announce_stop, operations.facts, debug),
            operator_group=settings.control.operator_group,
            read_group=settings.control.read_group,
        )

    def answer(request: dict[str, Any], caller: Caller) -> AsyncIterator[dict[str, Any]]:
        pump.stirred.set()
        return control()(request, caller)

    listener = ControlListener(
        settings.control_socket,
        read_group=settings.control.read_group,
        operator_group=settings.control.operator_group,
        handler=answer,
    )
    rendered = RenderedFields(pump, enrolment, store)
    finals = FinalStates(pump, enrolment, store, rendered)
    relay = Relay(
        pump,
        enrolment,
        settings.relay_socket,
        relay_key(settings.state_dir),
        finals=finals,
        rendered=rendered,
        fail_at_once=settings.calls_while_away == "fail",
    )
    pump.access = relay.access
    pump.wants_relay = settings.execution_api == "relay"
    # Also where new jobs are not relayed: those of an earlier run of the daemon may be.
    relay_listener = RelayListener(settings.relay_socket, users=runner.users, handler=relay.handle)
    exposed = _exposed(settings, core, link, person, reporter)
    task_metrics = TaskMetricsPart(settings, pump, link, runner, reporter)
    reloads: set[asyncio.Task[object]] = set()

    def reload() -> None:
        task: asyncio.Task[object] = asyncio.create_task(operations.reload(), name="reload")
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, operations.stop, number.name)
    loop.add_signal_handler(signal.SIGHUP, reload)
    log.info(
        "edge agent starts",
        version=__version__,
        name=settings.name,
        server=settings.server_url if loaded.enrolled else "none yet",
        queues=settings.queues,
        edge_event="agent_started",
    )
    loops = {
        "link": link.run(),
        "runner": runner_loop(pump, runner, store, runtime.ready, lambda found: setattr(reporter, "isolation", found)),
        "signals": pump.signal_loop(),
        "time": time_loop(pump, store),
        "final states": finals.run(),
        "rendered fields": rendered.run(),
        "thrift": thrift_loop(pump, give_back_memory),
        "runtime": runtime_loop(pump, runtime.check, runtime.has_failed),
        "flush": _flush(pump),
        "maintenance": deadline_loop(pump),
        "health": health.run(),
        "custom metrics": custom.run(),
        "status": status_loop(pump, notifier, reporter),
    } | task_metrics.loops
    if settings.log.tasks_to_journal and journal is not None:
        loops["task logs"] = TaskLogs(pump, store, journal).run()
    if notifier.watchdog_seconds is not None:
        loops["watchdog"] = Watchdog(progress, notifier, notifier.watchdog_seconds, shouting(journal)).run()
    try:
        await listener.open()
        await task_metrics.open()
        _remember(pump, maintenance)
        await recover(pump, runner, store, identity.boot_id)
        rendered.recall()
        # Not before the jobs of the daemon before are known: they would be turned away.
        await relay_listener.open()
        if exposed is not None:
            await _expose(exposed, reporter)
        fault = await operations.enroll()
        if fault is not None:
            log.warning(NOT_ENROLLED, reason=fault, edge_event="not_enrolled")
        notifier.ready(reporter.line())
        await run_guarded(loops, until=pump.left, progress=progress, expected=_expectations(pump, link, enrolment))
    except LoopEnded as error:
        log.error(str(error), cause=repr(error.__cause__))
        return EXIT_INTERNAL
    finally:
        for unused in loops.values():
            unused.close()
        await listener.close()
        task_metrics.close()
        if exposed is not None:
            await exposed.close()
        await pump.settle()
        await relay_listener.close()
        await runner.close()
        await enrolment.close()
    log.info("edge agent ends", edge_event="agent_ended")
    return pump.exit_code or 0


def _exposed(
    settings: Settings, core: AgentCore, link: LinkLoop, person: Person, reporter: Reporter
) -> MetricsListener | None:
    """Make what serves the metrics; ``None``: nobody is to have them."""
    address = settings.metrics.address
    if address is None:
        return None
    # Only now: by default there is nothing to be served, and it takes memory.
    from airflow_edge_agent.adapters.metrics_socket import MetricsListener  # noqa: PLC0415
    from airflow_edge_agent.runtime.exposition import Exposition  # noqa: PLC0415

    probe = PsutilProbe(settings.state_dir)
    return MetricsListener(address, Exposition(core, link, person, reporter, probe).text)


async def _expose(listener: MetricsListener, reporter: Reporter) -> None:
    """Serve the metrics, if that is possible. An agent without them still does its work."""
    try:
        await listener.open()
    except StoreError as error:
        reporter.unserved_metrics = f"the metrics are not served: {error}"
        log.error(reporter.unserved_metrics)


def _remember(pump: Pump, maintenance: MaintenanceFile) -> None:
    try:
        memory = maintenance.load()
    except StoreError as error:
        log.error(str(error))
        return
    pump.feed(MaintenanceRemembered(memory))


def _expectations(pump: Pump, link: LinkLoop, enrolment: Enrolment) -> dict[str, Expectation]:
    """Say of each loop how long it may go without a step. What is left out waits for others, as long as it takes."""
    loop = asyncio.get_running_loop()

    def of_link() -> float | None:
        if not pump.core.connected:
            return _LONGEST_CONNECT_SECONDS if enrolment.enrolled and not pump.exiting.is_set() else None
        beat, interval = link.last_heartbeat_at, pump.core.intervals.heartbeat_seconds
        late = beat is not None and loop.time() - beat > max(60.0, 4 * interval)
        return 0.0 if late else None

    def of_time() -> float | None:
        return _LONGEST_STEP_SECONDS + pump.core.intervals.log_seconds if pump.busy.is_set() else None

    return {
        "link": of_link,
        "time": of_time,
        "status": lambda: 2 * _LONGEST_STEP_SECONDS,
        "runtime": lambda: 4 * _LONGEST_STEP_SECONDS,
    }


async def _flush(pump: Pump) -> None:
    """When the core wants to leave, let the last frames go out first."""
    await pump.exiting.wait()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(pump.outbox.drained(), _GOODBYE_SECONDS)
    pump.left.set()
    await asyncio.Event().wait()
