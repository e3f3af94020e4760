"""The environment of a runner that systemd starts: a file that its unit reads (``EnvironmentFile=``).

The runner loads Airflow's configuration before anybody can speak to it, so what configures it has to be there when it
starts. systemd reads the file as root, and the runner's user cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from airflow_edge_agent.adapters.files import write_atomically
from airflow_edge_agent.adapters.runtime_env import task_environment
from airflow_edge_agent.settings import Settings

RUNNER_ENVIRONMENT = "runner.env"

_OF_THE_USER = frozenset({"HOME", "USER", "LOGNAME", "SHELL"})
"""The runner has another user than the daemon, and systemd knows that one's."""

_SPECIAL = str.maketrans({character: f"\\{character}" for character in '"\\`$'})


def environment_file(environment: Mapping[str, str]) -> str:
    """Return the text of the file, see systemd.exec(5).

    :raises ValueError: a value holds a control character that the file cannot carry.
    """
    lines = ["# Written by edge-agent; it is read when the runner starts."]
    for name, value in sorted(environment.items()):
        if name in _OF_THE_USER:
            continue
        if any(character < " " and character not in "\t\n" for character in value):
            raise ValueError(f"the variable {name} for tasks holds a control character")
        lines.append(f'{name}="{value.translate(_SPECIAL)}"')
    return "\n".join(lines) + "\n"


def write_environment_file(run_dir: Path, environment: Mapping[str, str]) -> None:
    """Write the file, for us and root alone.

    :raises OSError: it cannot be written.
    :raises ValueError: see :func:`environment_file`.
    """
    write_atomically(run_dir / RUNNER_ENVIRONMENT, environment_file(environment))


def configure_foreign_runner(settings: Settings) -> str | None:
    """Write the file from the settings, if it is systemd that starts the runner; return why it cannot be done.

    It is read at the next start of the runner. One that runs goes on with what it has.
    """
    if settings.runner.socket is None:
        return None
    path = settings.run_dir / RUNNER_ENVIRONMENT
    own = {
        "EDGE_RUNNER_PYTHON": str(settings.runner.python),
        "EDGE_RUNNER_IDLE_SECONDS": f"{settings.runner.idle_seconds:g}",
        "EDGE_RUNNER_STOP_WITHOUT_AGENT_SECONDS": f"{settings.runner.stop_without_agent_seconds:g}",
    }
    try:
        write_environment_file(settings.run_dir, task_environment(settings) | own)
    except ValueError as error:
        return f"{path}: cannot be written: {error}; mend runner.env or what runner.pass_env names"
    except OSError as error:
        return f"{path}: cannot be written ({error.strerror}); the runner would not know its configuration"
    return None
