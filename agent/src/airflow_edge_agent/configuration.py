"""Where settings come from: agent.toml, conf.d/*.toml, ``EDGE_AGENT_*`` and flags, in rising precedence.

The origin of each value is kept: an error names the place to mend, and ``edgectl config show --origin`` can tell.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from airflow_edge_agent.protocol.frames import (
    MAX_CONFIGURATION_BYTES,
    MAX_CONFIGURATION_NAME,
    MAX_CONFIGURATION_SETTINGS,
)
from airflow_edge_agent.settings import ENV_PREFIX, Settings

DEFAULT_CONFIG = Path("/etc/airflow-edge-agent/agent.toml")
CONFIG_VARIABLE = "EDGE_AGENT_CONFIG"
"""Names the configuration file, where no flag does."""

DEBUG_VARIABLE = "EDGE_AGENT_DEBUG"
"""Set to 1, it allows root to freeze loops through the control socket. For tests of the watchdog."""

UNENROLLED_URL = "https://not-enrolled.invalid"
"""Stands for the server's address while there is none."""

MASK = "********"

MAX_FILE_BYTES = 1024 * 1024
MAX_FILES = 100

_NO_SETTINGS = (CONFIG_VARIABLE, DEBUG_VARIABLE)
_SECRET_NAME = re.compile(r"pass|secret|token|credential|key", re.IGNORECASE)
_NOT_SECRET = {("client_key",), ("bundles",)}

Path_ = tuple[str, ...]
"""A setting: its sections and its name."""


class ConfigError(Exception):
    """The configuration cannot be used. The message says what, where and how to mend it, a line for each fault."""


@dataclass(frozen=True)
class Loaded:
    """The configuration with its origins."""

    settings: Settings
    origins: dict[Path_, str]
    """Where each value that is no default comes from: a file, a variable or a flag."""
    files: list[Path]
    """The files that were read, in order."""
    enrolled: bool = True
    """Whether a server is known."""


@dataclass
class _Merged:
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Path_, str] = field(default_factory=dict)

    def put(self, more: Mapping[str, Any], origin_of: Any) -> None:
        for path, value in leaves(more):
            self._set(path, value)
            # A value for a whole section replaces what was said about its parts.
            for old in [old for old in self.origins if old[: len(path)] == path or path[: len(old)] == old]:
                del self.origins[old]
            self.origins[path] = origin_of(path)

    def _set(self, path: Path_, value: Any) -> None:
        place = self.values
        for part in path[:-1]:
            below = place.get(part)
            if not isinstance(below, dict):
                below = place[part] = {}
            place = below
        place[path[-1]] = value

    def origin(self, path: Path_) -> str | None:
        """Return where the value, or else the nearest thing around or in it, comes from."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        below = sorted({origin for known, origin in self.origins.items() if known[: len(path)] == path})
        return ", ".join(below) or None


def leaves(values: Mapping[str, Any], path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Iterate over everything that is no table, and over empty tables."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*path, str(key)))
        else:
            yield (*path, str(key)), value


def load_settings(config: Path | None, overrides: dict[str, Any]) -> Settings:
    """Read the configuration; see :func:`load`."""
    return load(config, overrides).settings


def from_environment() -> dict[str, Any]:
    """Read the ``EDGE_AGENT_*`` variables.

    :raises ConfigError: one of them cannot be used.
    """
    # Here, because it takes 1.2 MB, and the daemon has this read in a process of its own.
    from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, SettingsError  # noqa: PLC0415

    class Variables(Settings, BaseSettings):
        model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    try:
        return EnvSettingsSource(Variables)()
    except SettingsError as error:
        raise ConfigError(f"{ENV_PREFIX}* variables: {error}; lists and tables are given as JSON") from None


def load(
    config: Path | None,
    overrides: dict[str, Any],
    *,
    unenrolled: bool = False,
    variables: Callable[[], dict[str, Any]] = from_environment,
) -> Loaded:
    """Read the configuration with the origins of its values.

    :param config: the file; ``None``: the default one, which may be missing. ``conf.d`` is looked for beside it.
    :param overrides: flags, by setting name; they win over everything.
    :param unenrolled: whether the address of the server may be missing.
    :param variables: reads what the environment says.
    :raises ConfigError: with all faults, a line each.
    """
    path = config or DEFAULT_CONFIG
    merged = _Merged()
    files = [path] if config is not None or path.exists() else []
    files += _drop_ins(path.parent / "conf.d")
    for file in files:
        merged.put(_read(file), lambda _, file=file: str(file))
    _refuse_unknown_variables()
    merged.put(variables(), _variable)
    merged.put(overrides, _flag)
    enrolled = "server_url" in merged.values
    values = merged.values if enrolled or not unenrolled else merged.values | {"server_url": UNENROLLED_URL}
    try:
        settings = Settings(**values)
    except ValidationError as error:
        anywhere = ", ".join(map(str, files)) if files else f"{path} (which is missing)"
        lines = [_explain(fault, merged, anywhere) for fault in error.errors(include_url=False, include_input=False)]
        raise ConfigError("\n".join(lines)) from None
    return Loaded(settings, merged.origins, files, enrolled)


def _drop_ins(directory: Path) -> list[Path]:
    try:
        found = sorted(entry for entry in directory.iterdir() if entry.suffix == ".toml" and entry.name[0] != ".")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ConfigError(f"{directory}: {error.strerror}") from None
    if len(found) > MAX_FILES:
        raise ConfigError(f"{directory}: {len(found)} files; at most {MAX_FILES} are read")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: is longer than {MAX_FILE_BYTES // 1024} KiB")
        return tomllib.loads(data.decode("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a directory, a TOML file is wanted") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: no valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: no valid TOML: nested too deeply") from None


def _variable(path: Path_) -> str:
    set_ = {name.upper(): name for name in os.environ}
    for length in range(len(path), 0, -1):
        name = ENV_PREFIX + "__".join(path[:length]).upper()
        if name in set_:
            return set_[name]
    return f"{ENV_PREFIX}* variables"


def _flag(path: Path_) -> str:
    return "--" + "-".join(path).replace("_", "-")


def _refuse_unknown_variables() -> None:
    known = [f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields]
    for name in os.environ:
        setting = name.upper().split("__", 1)[0]
        if setting.startswith(ENV_PREFIX) and setting not in known and setting not in _NO_SETTINGS:
            raise ConfigError(f"{name}: is no setting" + _did_you_mean(setting, known))


def _did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _explain(fault: Any, merged: _Merged, anywhere: str) -> str:
    path = tuple(str(part) for part in fault["loc"])
    name = ".".join(path)
    if fault["type"] == "missing":
        return f"{merged.origin(path[:-1]) or anywhere}: '{name}' is missing"
    where = merged.origin(path) or anywhere
    if fault["type"] == "extra_forbidden":
        return f"{where}: '{name}' is no setting" + _did_you_mean(path[-1], list(section_at(path[:-1]).model_fields))
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{where}: '{name}': {message}" if name else f"{where}: {message}"


def section_at(path: Path_) -> type[BaseModel]:
    """Return the model of a section, passing over the names that a table of sections gives freely."""
    model: type[BaseModel] = Settings
    for part in path:
        if part in model.model_fields:
            inner = [t for t in _types_in(model.model_fields[part].annotation) if _is_model(t)]
            model = inner[0] if inner else model
    return model


def _types_in(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in get_args(annotation):
        yield from _types_in(inner)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def is_secret(path: Path_) -> bool:
    """Tell whether the value must not be shown: variables for tasks, and what its name says is secret."""
    if path[:2] == ("runner", "env"):
        return True
    return path not in _NOT_SECRET and path[:1] != ("custom_metrics",) and bool(_SECRET_NAME.search(path[-1]))


@dataclass(frozen=True)
class Shown:
    """A setting as it may be shown."""

    name: str
    value: Any
    origin: str


def shown(loaded: Loaded) -> list[Shown]:
    """Describe all settings, secrets masked."""
    values = loaded.settings.model_dump(mode="json")
    if not loaded.enrolled:
        values["server_url"] = None
    merged = _Merged(origins=loaded.origins)
    return [
        Shown(".".join(path), MASK if is_secret(path) and value not in (None, {}, []) else value, _origin(merged, path))
        for path, value in leaves(values)
    ]


_REPORTED = frozenset(
    {"queues", "concurrency", "carrier", "spool_max_mb", "drain", "runner", "limits", "log", "health", "state_dir"}
)
"""Settings that the server may know: what says how much the agent does, and how."""


def reported(settings: Settings) -> dict[str, Any] | None:
    """Describe to the server how the agent is configured, by the names of the settings; ``None``: that is too much."""
    values = {
        ".".join(path): value
        for path, value in leaves(settings.model_dump(mode="json", include=set(_REPORTED)))
        if not is_secret(path) and path[:2] != ("runner", "pass_env")
    }
    values["bundles"] = sorted(settings.bundles)
    fits = len(values) <= MAX_CONFIGURATION_SETTINGS and len(json.dumps(values)) <= MAX_CONFIGURATION_BYTES
    return values if fits and all(len(name) <= MAX_CONFIGURATION_NAME for name in values) else None


def _origin(merged: _Merged, path: Path_) -> str:
    for length in range(len(path), 0, -1):
        if path[:length] in merged.origins:
            return merged.origins[path[:length]]
    return "default"


def as_toml_value(value: Any) -> str:
    """Write a value nearly as TOML has it."""
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
