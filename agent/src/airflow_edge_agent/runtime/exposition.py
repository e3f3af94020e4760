"""The agent's metrics as OpenMetrics text.

:data:`METRICS` is all that is ever told: ``docs/metrics.md`` is written from it, and nothing else can be told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from airflow_edge_agent.core.agent import AgentCore
from airflow_edge_agent.core.jobs import Phase
from airflow_edge_agent.ports import MetricsProbe
from airflow_edge_agent.protocol import PROTOCOL_VERSION
from airflow_edge_agent.protocol.frames import Metrics
from airflow_edge_agent.protocol.states import AgentState
from airflow_edge_agent.protocol.text import visible
from airflow_edge_agent.runtime.link import LinkLoop
from airflow_edge_agent.runtime.reports import Person, Reporter

PREFIX = "edge_agent_local_"
"""Other names than those of the server's metrics, which may meet them in one Prometheus."""

MEASURE_SECONDS = 1.0
"""How old figures of the host may be, so that several readers see the same."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, without the prefix."""

    name: str
    kind: Literal["gauge", "counter", "info", "stateset"]
    labels: tuple[str, ...]
    meaning: str

    @property
    def sample(self) -> str:
        """What its samples are called."""
        return f"{PREFIX}{self.name}{_SUFFIXES.get(self.kind, '')}"


_SUFFIXES = {"counter": "_total", "info": "_info"}

METRICS = {
    metric.name: metric
    for metric in (
        Metric("build", "info", ("name", "version", "python", "protocol", "airflow"), "What this agent is; always 1."),
        Metric("uptime_seconds", "gauge", (), "How long the daemon has run."),
        Metric("state", "stateset", (f"{PREFIX}state",), "1 for the state that the agent is in, 0 for the others."),
        Metric("healthy", "gauge", (), "1: nothing keeps it from working; 0: `edgectl status` says what does."),
        Metric("enrolled", "gauge", (), "1: it has a server to connect to."),
        Metric("connected", "gauge", (), "1: the link to the server is open; 0: it is not."),
        Metric("heartbeat_age_seconds", "gauge", (), "Since the last heartbeat was made; left out before the first."),
        Metric("contact_age_seconds", "gauge", (), "Since the server said something; left out before it did."),
        Metric("slots", "gauge", (), "Slots."),
        Metric("slots_used", "gauge", (), "Slots in use."),
        Metric("jobs", "gauge", ("phase",), "Jobs held here; `finished`: the server does not have all of them yet."),
        Metric("jobs_started", "counter", (), "Jobs that have begun since the daemon's start."),
        Metric("jobs_ended", "counter", ("outcome",), "Jobs that have ended since the daemon's start."),
        Metric("spool_bytes", "gauge", (), "Log that the server has not acknowledged."),
        Metric("spool_limit_bytes", "gauge", (), "Most of it that is kept."),
        Metric("host_cpu_percent", "gauge", (), "CPU since the last look, all cores together, 0 to 100."),
        Metric("host_load_per_core", "gauge", ("minutes",), "Load average, per core."),
        Metric("host_memory_size_bytes", "gauge", (), "Memory of the host."),
        Metric("host_memory_used_bytes", "gauge", (), "Memory in use."),
        Metric("host_swap_used_bytes", "gauge", (), "Swap space in use."),
        Metric("host_disk_size_bytes", "gauge", ("disk",), "The disk of the state directory, and that of /tmp."),
        Metric("host_disk_used_bytes", "gauge", ("disk",), "Bytes in use there."),
        Metric("host_disk_free_bytes", "gauge", ("disk",), "Bytes free there, for who is not root."),
        Metric("host_network_sent_bytes", "counter", (), "Bytes sent since the host's start."),
        Metric("host_network_received_bytes", "counter", (), "Bytes received since the host's start."),
        Metric("host_uptime_seconds", "gauge", (), "How long the host has run."),
        Metric("resident_memory_bytes", "gauge", (), "Memory of the daemon itself."),
    )
}

Sample = tuple[str, Mapping[str, str], float]
"""Name of the metric, its labels, and the value."""


class Exposition:
    """Writes the metrics of one agent.

    :param probe: one of its own, as what it says of the CPU is since its last look.
    """

    def __init__(
        self, core: AgentCore, link: LinkLoop, person: Person, reporter: Reporter, probe: MetricsProbe
    ) -> None:
        self._core = core
        self._link = link
        self._person = person
        self._reporter = reporter
        self._probe = probe
        self._measured: Metrics | None = None
        self._measured_at = 0.0

    def text(self) -> str:
        """Write them as they are now."""
        now = asyncio.get_running_loop().time()
        by_name: dict[str, list[str]] = {}
        for name, labels, value in (*self._own(now), *self._jobs(), *self._host(now)):
            metric = METRICS[name]
            assert set(labels) == set(metric.labels)
            written = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
            line = f"{metric.sample}{{{written}}} {value}\n" if written else f"{metric.sample} {value}\n"
            by_name.setdefault(name, []).append(line)
        lines = []
        for name, metric in METRICS.items():
            if name in by_name:
                lines += [*_head(metric), *by_name[name]]
        return "".join((*lines, "# EOF\n"))

    def _own(self, now: float) -> Iterator[Sample]:
        core, link, person = self._core, self._link, self._person
        versions = link.versions
        build = {
            "name": person.name,
            "version": person.version,
            "python": versions.python if versions is not None else "",
            "protocol": str(PROTOCOL_VERSION),
            "airflow": (versions.airflow if versions is not None else None) or "",
        }
        yield "build", build, 1
        yield "uptime_seconds", {}, round(now - person.started_at, 3)
        for state in AgentState:
            yield "state", {f"{PREFIX}state": str(state)}, int(state is core.state)
        yield "healthy", {}, int(not self._reporter.faults())
        yield "enrolled", {}, int(person.server_url is not None)
        yield "connected", {}, int(core.connected)
        for name, at in (
            ("heartbeat_age_seconds", link.last_heartbeat_at),
            ("contact_age_seconds", link.last_contact_at),
        ):
            if at is not None:
                yield name, {}, round(max(now - at, 0.0), 3)

    def _jobs(self) -> Iterator[Sample]:
        core = self._core
        yield "slots", {}, core.concurrency
        yield "slots_used", {}, core.slots_used
        phases = [job.phase for job in core.jobs.values()]
        for phase in Phase:
            yield "jobs", {"phase": str(phase)}, phases.count(phase)
        yield "jobs_started", {}, core.jobs_started
        for outcome, count in core.jobs_ended.items():
            yield "jobs_ended", {"outcome": str(outcome)}, count
        yield "spool_bytes", {}, core.spooled_bytes
        yield "spool_limit_bytes", {}, core.limits.spool_bytes

    def _host(self, now: float) -> Iterator[Sample]:
        measured = self._measured
        if measured is None or now - self._measured_at >= MEASURE_SECONDS:
            measured = self._measured = self._probe.measure()
            self._measured_at = now
        figures: list[tuple[str, Mapping[str, str], float | None]] = [
            ("host_cpu_percent", {}, measured.cpu_percent),
            ("host_load_per_core", {"minutes": "1"}, measured.load_1_per_core),
            ("host_load_per_core", {"minutes": "5"}, measured.load_5_per_core),
            ("host_load_per_core", {"minutes": "15"}, measured.load_15_per_core),
            ("host_memory_size_bytes", {}, measured.memory_total_bytes),
            ("host_memory_used_bytes", {}, measured.memory_used_bytes),
            ("host_swap_used_bytes", {}, measured.swap_used_bytes),
            ("host_disk_size_bytes", {"disk": "state"}, measured.state_disk_total_bytes),
            ("host_disk_used_bytes", {"disk": "state"}, measured.state_disk_used_bytes),
            ("host_disk_free_bytes", {"disk": "state"}, measured.state_disk_free_bytes),
            ("host_disk_size_bytes", {"disk": "temp"}, measured.temp_disk_total_bytes),
            ("host_disk_used_bytes", {"disk": "temp"}, measured.temp_disk_used_bytes),
            ("host_disk_free_bytes", {"disk": "temp"}, measured.temp_disk_free_bytes),
            ("host_network_sent_bytes", {}, measured.network_sent_bytes),
            ("host_network_received_bytes", {}, measured.network_received_bytes),
            ("host_uptime_seconds", {}, measured.uptime_seconds),
            ("resident_memory_bytes", {}, measured.agent_memory_bytes),
        ]
        for name, labels, value in figures:
            if value is not None:
                yield name, labels, value


def _head(metric: Metric) -> list[str]:
    family = f"{PREFIX}{metric.name}"
    lines = [f"# TYPE {family} {metric.kind}\n"]
    unit = metric.name.rsplit("_", 1)[-1]
    if unit in ("seconds", "bytes", "percent"):
        lines.append(f"# UNIT {family} {unit}\n")
    return [*lines, f"# HELP {family} {_escaped(metric.meaning)}\n"]


def _escaped(text: str) -> str:
    return visible(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
