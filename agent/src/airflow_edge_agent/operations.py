"""What operators can make the running daemon do: read its configuration again, enroll, stop in one way or another."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from airflow_edge_agent.adapters.carriers import CarrierTransport
from airflow_edge_agent.adapters.credential import CredentialError, Prover, read_credential
from airflow_edge_agent.adapters.enrolment import Enrolment
from airflow_edge_agent.adapters.environment_file import configure_foreign_runner
from airflow_edge_agent.adapters.journal import SOCKET, Journal, connected_to_journal
from airflow_edge_agent.adapters.keys import KeyFault
from airflow_edge_agent.adapters.network import Network
from airflow_edge_agent.adapters.runtime_env import PROXIES
from airflow_edge_agent.configuration import ConfigError, Loaded
from airflow_edge_agent.core.events import LimitsChanged, StopAsked, StopKind, StopPolicy
from airflow_edge_agent.core.health import Range
from airflow_edge_agent.core.policy import Limits
from airflow_edge_agent.ports import Notifier, Runner, TransportError
from airflow_edge_agent.runtime.health import CustomLoop, CustomPlan, HealthLoop, HealthPlan
from airflow_edge_agent.runtime.jobs import renew_if_changed
from airflow_edge_agent.runtime.link import LinkLoop
from airflow_edge_agent.runtime.logging import SendEntry, configure_logging, redact
from airflow_edge_agent.runtime.pump import Pump
from airflow_edge_agent.runtime.reports import Person, Reporter
from airflow_edge_agent.runtime.watchdog import Shout
from airflow_edge_agent.settings import LogSettings, Settings

log = structlog.get_logger()

APPLIED = frozenset({"concurrency", "queues", "spool_max_mb", "drain", "log", "health", "custom_metrics", "limits"})
"""Settings that take effect without a restart."""

ANNOUNCEMENT_SECONDS = 60.0
"""How long what a stop is for is remembered, until SIGTERM comes."""

_ENROLMENT = (
    "server_url", "name", "allow_plain_http", "execution_api_url", "ca_file", "client_cert", "client_key",
    "tls_server_name", "tls_pins", "carrier",
)  # fmt: skip
"""Settings that are read when a server is taken up for the first time."""

_POLICIES: dict[StopKind, StopPolicy] = {"restart": "leave", "shutdown": "end"}


def limits_of(settings: Settings) -> Limits:
    """Return what the core is configured with."""
    return Limits(
        concurrency=settings.concurrency,
        kill_grace_seconds=settings.drain.kill_grace_seconds,
        drain_deadline_seconds=settings.drain.deadline_seconds,
        spool_bytes=settings.spool_max_mb * 1024 * 1024,
        queues=tuple(settings.queues),
        jobs=settings.limits.rules(),
    )


def health_plan(settings: Settings) -> HealthPlan:
    """Return what automatic maintenance goes by."""
    health = settings.health
    thresholds = {
        "disk_percent": health.disk_percent,
        "memory_percent": health.memory_percent,
        "load_per_core": health.load_per_core,
        "temperature_celsius": health.temperature_celsius,
    }
    ranges = {name: Range(found.enter, found.leave) for name, found in thresholds.items() if found is not None}
    return HealthPlan(ranges, health.interval_seconds, health.samples)


def custom_plans(settings: Settings) -> dict[str, CustomPlan]:
    """Return the commands to run for custom metrics."""
    return {
        name: CustomPlan(metric.command, metric.interval_seconds, metric.timeout_seconds)
        for name, metric in settings.custom_metrics.items()
    }


def make_transport(settings: Settings) -> CarrierTransport:
    """Make the way to the server.

    :raises CredentialError: there is no credential that could be used.
    :raises TransportError: a file or variable for the connection cannot be used.
    """
    prover = Prover(read_credential(settings.credential_file), settings.credential_file)
    try:
        prover.header()
    except KeyFault as error:
        raise CredentialError(str(error)) from None
    return CarrierTransport(settings.server_url, prover, network_of(settings), settings.carrier)


def network_of(settings: Settings) -> Network:
    """Return how the server is reached."""
    return Network(
        settings.ca_file,
        settings.client_cert,
        settings.client_key,
        settings.tls_server_name,
        frozenset(settings.tls_pins),
    )


def default_execution_url(settings: Settings) -> str:
    """Return where tasks find the Execution API if the server does not say."""
    return settings.execution_api_url or f"{settings.server_url}/execution/"


def journal_for(settings: LogSettings) -> SendEntry | None:
    """Return the way to the journal, if the log is to go there."""
    if settings.format == "journal" or (settings.format == "auto" and connected_to_journal(sys.stderr.fileno())):
        return Journal().send if Path(SOCKET).exists() else None
    return None


def set_up_logging(settings: LogSettings) -> SendEntry | None:
    """Begin to log as configured; return the way to the journal, if that is where the log goes."""
    journal = journal_for(settings)
    configure_logging(settings.level, settings.format, sys.stderr, journal)
    return journal


def shouting(journal: SendEntry | None) -> Shout:
    """Return a way to say something that works even if the rest of the process does not."""

    def shout(text: str) -> None:
        text = redact(text)
        fields = {"MESSAGE": text, "PRIORITY": "2", "SYSLOG_IDENTIFIER": "edge-agent", "EDGE_EVENT": "stuck"}
        if journal is None or not journal(fields):
            os.write(2, text.encode() + b"\n")

    return shout


def changed_settings(old: Settings, new: Settings) -> tuple[list[str], list[str]]:
    """Return the names of what differs: what can be applied, and what needs a restart."""
    names = [name for name in Settings.model_fields if getattr(old, name) != getattr(new, name)]
    return [n for n in names if n in APPLIED], [n for n in names if n not in APPLIED]


def _kept(fault: str) -> dict[str, Any]:
    log.error("keeps the old configuration: the new one is not usable", fault=fault, edge_event="reload_failed")
    return {"reloaded": False, "fault": fault}


class Operations:
    """Holds the configuration that is in effect, and changes it."""

    def __init__(
        self,
        loaded: Loaded,
        read_again: Callable[[], Loaded],
        *,
        pump: Pump,
        link: LinkLoop,
        enrolment: Enrolment,
        notifier: Notifier,
        person: Person,
        reporter: Reporter,
        health: HealthLoop,
        custom: CustomLoop,
        runner: Runner,
    ) -> None:
        self.loaded = loaded
        self._read_again = read_again
        self._pump = pump
        self._link = link
        self._enrolment = enrolment
        self._notifier = notifier
        self._person = person
        self._reporter = reporter
        self._health = health
        self._custom = custom
        self._runner = runner
        self._announced: tuple[StopKind, float] | None = None
        self._busy = asyncio.Lock()

    @property
    def settings(self) -> Settings:
        """What is in effect."""
        return self.loaded.settings

    # --- Enrolment ----------------------------------------------------------------------------------------------------

    async def enroll(self) -> str | None:
        """Take up server and credential if they are there and new; return why not, if that is a fault."""
        if not self.loaded.enrolled:
            return "the configuration names no server (server_url)"
        try:
            if read_credential(self.settings.credential_file) == self._enrolment.credential:
                return None
            transport = make_transport(self.settings)
        except (CredentialError, TransportError) as error:
            return str(error)
        again = self._enrolment.enrolled
        self._person.server_url = self.settings.server_url
        self._person.name = self.settings.name
        self._pump.default_execution_url = default_execution_url(self.settings)
        await self._enrolment.use(transport)
        if again:
            log.info("takes up another credential")
        return None

    # --- Reload -------------------------------------------------------------------------------------------------------

    async def reload(self) -> dict[str, Any]:
        """Read configuration and credential again, apply what can be applied, say what has come of it."""
        async with self._busy:
            self._notifier.reloading()
            try:
                return await self._reload()
            finally:
                self._notifier.ready(self._reporter.line())

    async def _reload(self) -> dict[str, Any]:
        try:
            new = self._read_again()
        except ConfigError as error:
            return _kept(str(error))
        if (fault := configure_foreign_runner(new.settings)) is not None:
            return _kept(fault)
        old = self.loaded
        applied, waiting = changed_settings(old.settings, new.settings)
        changes = {name: getattr(new.settings, name) for name in applied}
        enrolled = True
        if not self._enrolment.enrolled:
            # Nothing was done with these yet.
            enrolled = new.enrolled
            waiting = [name for name in waiting if name not in _ENROLMENT]
            changes |= {name: getattr(new.settings, name) for name in _ENROLMENT}
        self.loaded = replace(new, enrolled=enrolled, settings=old.settings.model_copy(update=changes))
        self._apply(old.settings, applied)
        fault = await self.enroll()
        renewed = await renew_if_changed(self._runner)
        log.info(
            "has read its configuration again",
            applied=", ".join(applied) or "nothing new",
            **({"need_a_restart": ", ".join(waiting)} if waiting else {}),
            **({"enrolment": fault} if fault else {}),
            edge_event="reloaded",
        )
        return {
            "reloaded": True,
            "applied": applied,
            "need_a_restart": waiting,
            "enrolment_fault": fault,
            "runner_renewed": renewed,
        }

    def _apply(self, old: Settings, applied: list[str]) -> None:
        settings = self.settings
        if "log" in applied:
            set_up_logging(settings.log)
        # What was changed at run time stays, unless the file says something new about it.
        limits, before, core = limits_of(settings), limits_of(old), self._pump.core
        names = ("concurrency", "queues", "kill_grace_seconds", "drain_deadline_seconds", "spool_bytes", "jobs")
        changes = {n: getattr(limits, n) for n in names if getattr(limits, n) != getattr(before, n)}
        if changes:
            self._pump.feed(LimitsChanged(replace(core.limits, **changes)))
        self._health.change(health_plan(settings))
        self._custom.change(custom_plans(settings))

    # --- Stop ---------------------------------------------------------------------------------------------------------

    def announce_stop(self, kind: StopKind) -> None:
        """Take note of what the next SIGTERM means."""
        self._announced = (kind, time.monotonic())

    def stop(self, signal_name: str) -> None:
        """Stop by the policy for the kind of stop."""
        policy: StopPolicy = self.settings.drain.on_stop
        reason = signal_name
        if self._announced is not None and time.monotonic() - self._announced[1] < ANNOUNCEMENT_SECONDS:
            kind = self._announced[0]
            policy = _POLICIES.get(kind, policy)
            reason = {"restart": "restart", "shutdown": "the host is shutting down", "stop": "stop"}[kind]
        self._pump.feed(StopAsked(reason, policy))
        self._notifier.stopping(self._reporter.line())

    # --- Facts --------------------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """Return what only this process knows, for ``edgectl doctor``."""
        intervals = self._pump.core.intervals
        return {
            "proxies": {name: redact(os.environ[name]) for name in (*PROXIES, "ALL_PROXY") if os.environ.get(name)},
            "skew_seconds": self._link.skew_seconds,
            "heartbeat_seconds": intervals.heartbeat_seconds,
            "watchdog_seconds": self._notifier.watchdog_seconds,
            "settings_origins": {".".join(path): origin for path, origin in self.loaded.origins.items()},
            "pid": os.getpid(),
        }
