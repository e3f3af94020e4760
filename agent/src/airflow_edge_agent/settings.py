"""The agent's configuration: a TOML file, ``EDGE_AGENT_*`` variables and flags, in rising precedence."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import socket
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from airflow_edge_agent.core.carrier import CarrierPolicy
from airflow_edge_agent.protocol.frames import NAME_PATTERN, Queue

DEFAULT_CONFIG = Path("/etc/airflow-edge-agent/agent.toml")
ENV_PREFIX = "EDGE_AGENT_"
CONFIG_VARIABLE = "EDGE_AGENT_CONFIG"
"""Names the configuration file, where no flag does."""


class ConfigError(Exception):
    """The configuration cannot be used. The message says what, where and how to mend it."""


def _default_name() -> str:
    name = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).strip("-._")
    return name[:63] or "edge-agent"


def _default_dir(xdg_variable: str, xdg_default: str, system: str) -> Path:
    if os.geteuid() == 0:
        return Path(system)
    base = os.environ.get(xdg_variable) or str(Path.home() / xdg_default)
    return Path(base) / "airflow-edge-agent"


def _default_state_dir() -> Path:
    return _default_dir("XDG_STATE_HOME", ".local/state", "/var/lib/airflow-edge-agent")


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise ValueError("'~' stands for no home directory here") from None


# The runner works in another directory than the daemon: both must mean the same place.
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DrainSettings(_Section):
    """How the agent stops."""

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


class BundleSettings(_Section):
    """Where tasks find a Dag bundle on this machine."""

    path: AbsolutePath | None = None
    """Directory of a local bundle."""
    classpath: str | None = None
    """Bundle class, for anything that is not a local directory."""
    kwargs: dict[str, JsonValue] = {}

    @model_validator(mode="after")
    def _one_of(self) -> BundleSettings:
        if (self.path is None) == (self.classpath is None):
            raise ValueError("give either 'path' (a directory) or 'classpath' (with 'kwargs')")
        return self


class LogSettings(_Section):
    """The agent's own log."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"
    """``auto``: coloured on a terminal, plain lines elsewhere."""


class Settings(BaseSettings):
    """All settings of the agent."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    server_url: str
    """Airflow's base URL, e.g. ``https://airflow.example.com``."""
    name: Annotated[str, Field(pattern=NAME_PATTERN, default_factory=_default_name)]
    """Name of this agent; its token is bound to it."""
    queues: Annotated[list[Queue], Field(min_length=1, max_length=100)] = ["default"]
    concurrency: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=1000)
    """Slots: how many single-slot jobs may run at once."""
    token_file: AbsolutePath = Path("/etc/airflow-edge-agent/token")
    """File with the agent's token, readable by the agent alone."""
    state_dir: AbsolutePath = Field(default_factory=_default_state_dir)
    runtime_dir: AbsolutePath | None = None
    """For sockets; by default ``run`` below the state directory."""
    execution_api_url: str | None = None
    """Airflow's Execution API as tasks reach it; by default what the server says, else below ``server_url``."""
    ca_file: AbsolutePath | None = None
    """Certificates to trust instead of the system's."""
    client_cert: AbsolutePath | None = None
    """Certificate that shows the server, or a proxy before it, who we are; PEM."""
    client_key: AbsolutePath | None = None
    """Its key; PEM, without a password."""
    tls_server_name: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """Name to ask for in TLS and to find in the server's certificate, if it is not that of ``server_url``."""
    carrier: CarrierPolicy = "auto"
    """How to talk to the server: over a WebSocket, over HTTP requests, or whichever works best."""
    allow_plain_http: bool = False
    """Allow ``http://`` to a server that is not this machine. The token is then readable on the way."""
    spool_max_mb: int = Field(default=500, ge=1, le=10_000_000)
    """Most log, in MiB, that is kept while the server cannot take it. Results are always kept."""
    drain: DrainSettings = DrainSettings()
    runner: RunnerSettings = RunnerSettings()
    bundles: dict[str, BundleSettings] = {}
    log: LogSettings = LogSettings()

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
    def jobs_dir(self) -> Path:
        """One directory for each job."""
        return self.state_dir / "jobs"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_SECTIONS: dict[str, type[BaseModel]] = {
    "drain": DrainSettings,
    "runner": RunnerSettings,
    "bundles": BundleSettings,
    "log": LogSettings,
}


def load_settings(config: Path | None, overrides: dict[str, Any]) -> Settings:
    """Read the configuration.

    :param config: the file; ``None``: the default one, which may be missing.
    :param overrides: flags, by setting name; they win over everything.
    :raises ConfigError: with all faults, a line each.
    """
    path = config or DEFAULT_CONFIG
    values: dict[str, Any] = {}
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if config is not None:
            raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a directory, a TOML file is wanted") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise ConfigError(f"{path}: {reason}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: no valid TOML: {error}") from None

    _refuse_unknown_variables()

    class FromFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            del dotenv_settings, file_secret_settings
            return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=values)

    try:
        return FromFile(**overrides)
    except (ValidationError, SettingsError) as error:
        where = f"{path} and {ENV_PREFIX}* variables" if values else f"{ENV_PREFIX}* variables ({path} is missing)"
        if isinstance(error, SettingsError):
            raise ConfigError(f"{ENV_PREFIX}* variables: {error}; lists and tables are given as JSON") from None
        lines = [_explain(fault) for fault in error.errors(include_url=False)]
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines)) from None


def _refuse_unknown_variables() -> None:
    known = [f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields]
    for name in os.environ:
        setting = name.upper().split("__", 1)[0]
        if setting.startswith(ENV_PREFIX) and setting not in known and setting != CONFIG_VARIABLE:
            close = difflib.get_close_matches(setting, known, n=1)
            raise ConfigError(f"{name}: is no setting" + (f"; did you mean '{close[0]}'?" if close else ""))


def _explain(fault: Any) -> str:
    name = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "missing":
        return f"'{name}' is missing"
    if fault["type"] == "extra_forbidden":
        section = _SECTIONS.get(fault["loc"][0], Settings) if len(fault["loc"]) > 1 else Settings
        close = difflib.get_close_matches(str(fault["loc"][-1]), section.model_fields, n=1)
        return f"'{name}' is no setting" + (f"; did you mean '{close[0]}'?" if close else "")
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"'{name}': {message}" if name else message
