"""What can be set. Where the values come from is :mod:`airflow_edge_agent.configuration`'s to know."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    field_validator,
    model_validator,
)

from airflow_edge_agent.core.carrier import CarrierPolicy
from airflow_edge_agent.core.limits import LimitRules
from airflow_edge_agent.protocol.frames import NAME_PATTERN, Queue
from airflow_edge_agent.protocol.limits import LimitSettings

ENV_PREFIX = "EDGE_AGENT_"

_LAST_PORT = 65_535


def _default_name() -> str:
    name = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).strip("-._")
    return name[:63] or "edge-agent"


def _default_dir(xdg_variable: str, xdg_default: str, system: str) -> Path:
    # systemd names the directories it has made; with several, the first is meant.
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.split(":", 1)[0])
    if os.geteuid() == 0:
        return Path(system)
    base = os.environ.get(xdg_variable) or str(Path.home() / xdg_default)
    return Path(base) / "airflow-edge-agent"


def _default_state_dir() -> Path:
    return _default_dir("XDG_STATE_HOME", ".local/state", "/var/lib/airflow-edge-agent")


def _default_runtime_dir() -> Path | None:
    given = os.environ.get("RUNTIME_DIRECTORY")
    return Path(given.split(":", 1)[0]) if given else None


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise ValueError("'~' stands for no home directory here") from None


def _fingerprint(text: str) -> str:
    found = re.sub(r"^.*=", "", text.strip()).replace(":", "").lower()
    if not re.fullmatch(r"[0-9a-f]{64}", found):
        raise ValueError("is no SHA-256 fingerprint: 64 hexadecimal digits, with or without colons")
    return found


# The runner works in another directory than the daemon: both must mean the same place.
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


class _Section(BaseModel):
    # They are built as parts of the whole, and need not be built by themselves.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class DrainSettings(_Section):
    """How the agent stops."""

    on_stop: Literal["wait", "leave", "end"] = "wait"
    """What SIGTERM and ``systemctl stop`` do about running jobs: wait for them, leave them to the runner and the next
    start of the agent, or end them. ``systemctl restart`` always leaves them, a shutdown of the host ends them."""
    deadline_seconds: float = Field(default=0, ge=0)
    """Longest wait for running jobs, then they are ended; 0: as long as they take."""
    kill_grace_seconds: float = Field(default=10, ge=0.1)
    """Time between asking a job to end (SIGTERM) and ending it (SIGKILL)."""


class RunnerSettings(_Section):
    """The program that runs tasks."""

    python: Path = Path("/opt/airflow-edge-runtime/bin/python")
    """Python of the task runtime: the environment that holds the Task SDK."""
    idle_seconds: float = Field(default=300, ge=0)
    """The runner leaves memory after this long without a job."""
    env: dict[str, str] = {}
    """Variables for tasks."""
    pass_env: list[str] = []
    """Names of the agent's own variables that tasks get, too."""
    dir: AbsolutePath | None = None
    """The runner's folder: logs and results of jobs; by default ``runner`` below the state directory."""
    socket: AbsolutePath | None = None
    """Where a runner listens that somebody else starts, e.g. systemd; by default the agent starts its own."""
    stop_without_agent_seconds: float = Field(default=0, ge=0)
    """Tell tasks to end when no agent has been there for so long; 0: never."""


class LimitsSettings(LimitSettings):
    """What one job may use; where a queue or a task says nothing else."""

    maximum: LimitSettings = LimitSettings()
    """Upper bounds, whatever a queue or a task asks for."""
    queues: dict[Queue, LimitSettings] = Field(default_factory=dict)
    """For the jobs of one queue, by its name."""

    def rules(self) -> LimitRules:
        """Return them as the core wants them."""
        return LimitRules(
            defaults=self.limits(),
            queues={name: limits.limits() for name, limits in self.queues.items()},
            maximum=self.maximum.limits(),
        )


class BundleSettings(_Section):
    """Where tasks find a Dag bundle on this machine."""

    path: AbsolutePath | None = None
    """Directory of a local bundle."""
    classpath: str | None = None
    """Bundle class, for anything that is not a local directory."""
    kwargs: dict[str, JsonValue] = {}
    """What the bundle class is given."""

    @model_validator(mode="after")
    def _one_of(self) -> BundleSettings:
        if (self.path is None) == (self.classpath is None):
            raise ValueError("give either 'path' (a directory) or 'classpath' (with 'kwargs')")
        return self


class LogSettings(_Section):
    """The agent's own log."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """How much is said."""
    format: Literal["auto", "console", "json", "journal"] = "auto"
    """``auto``: natively to the journal where systemd has connected us to it, coloured on a terminal, plain lines
    elsewhere."""
    tasks_to_journal: bool = False
    """Whether the lines of task logs go to the journal, too. Takes a restart."""


class ControlSettings(_Section):
    """The socket for ``edgectl``."""

    socket: AbsolutePath | None = None
    """Default: ``control.sock`` in the runtime directory."""
    read_group: str | None = None
    """Members of this group may look: state, jobs, logs. Root and the agent's own user always may."""
    operator_group: str = "edge-operator"
    """Members of this group may change things, too: maintenance, drain, queues, slots."""


class MetricsSettings(_Section):
    """The agent's own metrics as OpenMetrics text, off as long as ``listen`` is not given; and those of its tasks.

    See [metrics](metrics.md).
    """

    listen: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Path of a unix socket, e.g. ``"/run/airflow-edge-agent/metrics.sock"``, or a loopback address with its port, e.g.
    ``"127.0.0.1:9464"`` or ``"[::1]:9464"``."""
    allow_remote: bool = False
    """Allow an address that others than this machine can reach. There is no encryption and nobody is asked who they
    are."""
    relay_statsd: bool = False
    """Give tasks a StatsD of ours on a UDP port of the loopback address, and pass on to Airflow what they tell it. The
    server has to take it, too: ``[edge_agent] relay_task_metrics``. Tasks for which ``runner.env`` or an
    ``airflow.cfg`` decides about metrics are left alone. Takes a restart."""

    @model_validator(mode="after")
    def _known_place(self) -> MetricsSettings:
        if not isinstance(self.address, tuple):
            return self
        host, _ = self.address
        if not _is_loopback(host) and not self.allow_remote:
            raise ValueError(
                f"'listen' is {self.listen}, which other machines can reach, unencrypted and without a password: take "
                "a loopback address or the path of a unix socket, or set allow_remote = true if the network is trusted"
            )
        return self

    @property
    def address(self) -> Path | tuple[str, int] | None:
        """Where to listen: a unix socket, or address and port.

        :raises ValueError: it is neither.
        """
        if self.listen is None:
            return None
        if self.listen.startswith(("/", "~")):
            return _absolute(Path(self.listen))
        host, _, port = self.listen.rpartition(":")
        try:
            address = str(ipaddress.ip_address(host.removeprefix("[").removesuffix("]")))
        except ValueError:
            address = ""
        if not address or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) <= _LAST_PORT:
            raise ValueError(
                "'listen' must be the path of a unix socket, beginning with '/', or an IP address with a port, like "
                f"127.0.0.1:9464 or [::1]:9464; it is {self.listen!r}"
            )
        return address, int(port)


class Threshold(_Section):
    """A limit with hysteresis."""

    enter: float
    """Maintenance begins when the figure has reached this."""
    leave: float
    """It ends when the figure is below this again; must be lower than ``enter``."""

    @model_validator(mode="after")
    def _hysteresis(self) -> Threshold:
        if not 0 <= self.leave < self.enter:
            raise ValueError("'leave' must be lower than 'enter', and both positive")
        return self


class HealthSettings(_Section):
    """Automatic maintenance. Off as long as no threshold is given."""

    disk_percent: Threshold | None = None
    """Used part of the file system of ``state_dir``."""
    memory_percent: Threshold | None = None
    """Used part of memory."""
    load_per_core: Threshold | None = None
    """Load average of five minutes, divided by the cores."""
    temperature_celsius: Threshold | None = None
    """The hottest sensor, where the system shows any."""
    interval_seconds: float = Field(default=30, ge=1, le=3600)
    """How often they are looked at."""
    samples: int = Field(default=2, ge=1, le=100)
    """How many looks in a row must agree."""


class CustomMetric(_Section):
    """A command whose JSON output goes to the server with the heartbeats."""

    command: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=100)]
    """Program and arguments; no shell. It prints JSON, at most 8 KiB, and runs as the agent's user."""
    interval_seconds: float = Field(default=60, ge=5, le=86_400)
    """How often it is run."""
    timeout_seconds: float = Field(default=5, ge=0.1, le=60)
    """It is killed when it takes longer."""


CustomName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,60}$")]


class Settings(BaseModel):
    """All settings of the agent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    server_url: str
    """Airflow's base URL, e.g. ``https://airflow.example.com``."""
    name: Annotated[str, Field(pattern=NAME_PATTERN, default_factory=_default_name)]
    """Name of this agent; its credential is bound to it. Default: the host's name."""
    queues: Annotated[list[Queue], Field(min_length=1, max_length=100)] = ["default"]
    """Queues whose jobs are taken."""
    concurrency: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=1000)
    """Slots; a job takes as many as its `pool_slots`. Default: number of cores."""
    state_dir: AbsolutePath = Field(default_factory=_default_state_dir)
    """Credential, identity, jobs. Default: ``/var/lib/airflow-edge-agent``, or below ``~/.local/state`` for a user."""
    runtime_dir: AbsolutePath | None = Field(default_factory=_default_runtime_dir)
    """For sockets; a short path. Default: ``run`` below ``state_dir``; under systemd the unit's runtime directory."""
    execution_api: Literal["relay", "direct"] = "relay"
    """How tasks reach Airflow's Execution API: through this agent, if the server agrees, or by themselves."""
    calls_while_away: Literal["wait", "fail"] = "wait"
    """What becomes of other calls of relayed tasks than heartbeats and final states (reads, XComs) while the server is
    away: they wait until the disconnect lease ends, or fail at once."""
    execution_api_url: str | None = None
    """Airflow's Execution API for tasks that are not relayed; by default what the server says, else below
    ``server_url``."""
    ca_file: AbsolutePath | None = None
    """Certificates to trust instead of the system's."""
    client_cert: AbsolutePath | None = None
    """Certificate that shows the server, or a proxy before it, who we are; PEM."""
    client_key: AbsolutePath | None = None
    """Its key; PEM, without a password."""
    tls_server_name: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """Name to ask for in TLS and to find in the server's certificate, if it is not that of ``server_url``."""
    tls_pins: Annotated[list[Annotated[str, AfterValidator(_fingerprint)]], Field(max_length=10)] = []
    """SHA-256 fingerprints of certificates: beside being trusted, the server must show one of them. For an old and a
    new one, give both. `openssl x509 -noout -fingerprint -sha256 -in FILE` prints it."""
    carrier: CarrierPolicy = "auto"
    """How to talk to the server: over a WebSocket, over HTTP requests, or whichever works best."""
    allow_plain_http: bool = False
    """Allow ``http://`` to a server that is not this machine. Tasks and their tokens are then readable on the way."""
    allow_root: bool = False
    """Allow the agent, and without a runner of another user all tasks, to run as root."""
    spool_max_mb: int = Field(default=500, ge=1, le=10_000_000)
    """Most log, in MiB, that is kept while the server cannot take it. Results are always kept."""
    drain: DrainSettings = DrainSettings()
    runner: RunnerSettings = RunnerSettings()
    runtime_python: Path | None = None
    """Another name of ``runner.python``."""
    limits: LimitsSettings = LimitsSettings()
    bundles: dict[str, BundleSettings] = {}
    log: LogSettings = LogSettings()
    control: ControlSettings = ControlSettings()
    health: HealthSettings = HealthSettings()
    metrics: MetricsSettings = MetricsSettings()
    custom_metrics: Annotated[dict[CustomName, CustomMetric], Field(max_length=20)] = {}
    """Commands by name, e.g. ``[custom_metrics.ups]``."""

    @model_validator(mode="before")
    @classmethod
    def _one_runtime(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("runtime_python") is not None:
            runner = values.get("runner") or {}
            if isinstance(runner, dict):
                if runner.get("python") is not None:
                    raise ValueError("give either 'runtime_python' or 'python' in [runner]: they mean the same")
                return values | {"runner": runner | {"python": values["runtime_python"]}}
        return values

    @field_validator("server_url", "execution_api_url")
    @classmethod
    def _http_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        _ = parts.port  # raises ValueError when it is none
        if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"\s", value):
            raise ValueError("must look like https://host or https://host/path")
        if parts.username or parts.password:
            raise ValueError("must not hold a user name or password")
        if parts.query or parts.fragment:
            raise ValueError("must not hold a query or fragment")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _no_plain_http_by_accident(self) -> Settings:
        for url in filter(None, (self.server_url, self.execution_api_url)):
            parts = urlsplit(url)
            if parts.scheme == "http" and not _is_loopback(parts.hostname or "") and not self.allow_plain_http:
                raise ValueError(
                    f"{url} is not encrypted: use https, or set allow_plain_http = true if the network is trusted"
                )
        return self

    @model_validator(mode="after")
    def _certificate_with_its_key(self) -> Settings:
        if (self.client_cert is None) != (self.client_key is None):
            raise ValueError("give both 'client_cert' and 'client_key', or neither")
        return self

    @property
    def run_dir(self) -> Path:
        """Where sockets are."""
        return self.runtime_dir or self.state_dir / "run"

    @property
    def credential_file(self) -> Path:
        """What this agent proves itself with."""
        return self.state_dir / "credential"

    @property
    def jobs_dir(self) -> Path:
        """One directory for each job, the agent's own."""
        return self.state_dir / "jobs"

    @property
    def runner_dir(self) -> Path:
        """What the runner writes, and tasks can reach."""
        return self.runner.dir or self.state_dir / "runner"

    @property
    def runner_socket(self) -> Path:
        """Where the runner listens."""
        return self.runner.socket or self.run_dir / "runner.sock"

    @property
    def relay_socket(self) -> Path:
        """Where jobs find Airflow's Execution API, if they are relayed."""
        return self.run_dir / "execution.sock"

    @property
    def control_socket(self) -> Path:
        """Where ``edgectl`` finds the daemon."""
        return self.control.socket or self.run_dir / "control.sock"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
