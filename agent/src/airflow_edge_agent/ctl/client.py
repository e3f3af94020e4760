"""The client's end of the control socket."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from airflow_edge_agent.protocol.text import visible_all

CONFIG = Path("/etc/airflow-edge-agent/agent.toml")
SYSTEM_SOCKET = Path("/run/airflow-edge-agent/control.sock")
ANSWER_SECONDS = 30.0
MAX_ANSWER_BYTES = 8 * 1024 * 1024


class DaemonDown(Exception):
    """Nobody answers on the control socket. The message is one line for the operator."""


class Refused(Exception):
    """The daemon does not grant the request. The message is one line for the operator."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def find_socket(given: Path | None, config: Path | None = None) -> Path:
    """Return where the daemon listens, as far as that can be found out without loading its configuration in full."""
    if given is not None:
        return given
    named = os.environ.get("EDGE_AGENT_CONTROL__SOCKET")
    if named:
        return Path(named)
    chosen = config or Path(os.environ.get("EDGE_AGENT_CONFIG") or CONFIG)
    values = _values(chosen)
    control = values.get("control")
    runtime_dir = os.environ.get("EDGE_AGENT_RUNTIME_DIR") or values.get("runtime_dir")
    state_dir = os.environ.get("EDGE_AGENT_STATE_DIR") or values.get("state_dir")
    if isinstance(control, dict) and isinstance(control.get("socket"), str):
        return Path(control["socket"]).expanduser().absolute()
    if isinstance(runtime_dir, str):
        return Path(runtime_dir).expanduser().absolute() / "control.sock"
    if isinstance(state_dir, str):
        return Path(state_dir).expanduser().absolute() / "run" / "control.sock"
    if os.geteuid() != 0 and not SYSTEM_SOCKET.exists():
        # Users without a home, or with one that is not theirs to enter, have no agent of their own there.
        with contextlib.suppress(OSError, RuntimeError):
            state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
            own = Path(state) / "airflow-edge-agent/run/control.sock"
            if own.exists():
                return own
    return SYSTEM_SOCKET


def _values(config: Path) -> dict[str, Any]:
    values: dict[str, Any] = {}
    try:
        files = [config, *sorted((config.parent / "conf.d").glob("*.toml"))]
    except OSError:
        files = [config]
    for file in files:
        # Who may use the socket need not be able to read the configuration, and its faults are told elsewhere.
        try:
            values |= tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    return values


class Client:
    """Asks the daemon."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send a request and return its one answer.

        :raises DaemonDown: nobody answers.
        :raises Refused: the daemon says no.
        """
        for answer in self.stream(do, **request):
            return answer
        raise DaemonDown(f"{self.path}: the daemon closed the connection without an answer")

    def stream(self, do: str, *, patient: bool = False, **request: Any) -> Iterator[dict[str, Any]]:
        """Send a request and iterate over its answers.

        :param patient: wait for each answer as long as it takes.
        :raises DaemonDown: nobody answers.
        :raises Refused: the daemon says no.
        """
        sudo_user = os.environ.get("SUDO_USER")
        if os.geteuid() == 0 and sudo_user:
            request["on_behalf_of"] = sudo_user
        message = json.dumps({"do": do, **{key: value for key, value in request.items() if value is not None}})
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(ANSWER_SECONDS)
            try:
                connection.connect(str(self.path))
                connection.sendall(message.encode() + b"\n")
                connection.settimeout(None if patient else ANSWER_SECONDS)
                with connection.makefile("rb") as lines:
                    while line := lines.readline(MAX_ANSWER_BYTES):
                        answer = _checked(json.loads(line))
                        yield answer
                        if answer.get("end"):
                            return  # the daemon would take another request
            except FileNotFoundError:
                raise DaemonDown(f"{self.path}: no such socket; the edge agent does not run") from None
            except ConnectionRefusedError:
                raise DaemonDown(f"{self.path}: nobody listens there; the edge agent does not run") from None
            except PermissionError:
                raise Refused("permission", f"{self.path}: this user may not connect there") from None
            except TimeoutError:
                raise DaemonDown(f"{self.path}: the edge agent does not answer within {ANSWER_SECONDS:.0f} s") from None
            except (OSError, ValueError) as error:
                raise DaemonDown(f"{self.path}: {error}") from None


def _checked(answer: Any) -> dict[str, Any]:
    if isinstance(answer, dict) and answer.get("ok") is True:
        # Names, comments and labels may be of anybody. A piece of log is what it is, and shown line by line.
        return {key: value if key == "data" else visible_all(value) for key, value in answer.items()}
    error = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(error, dict):
        raise ValueError("the answer is not in the form that this edgectl knows")  # noqa: TRY004 -- bad content
    raise Refused(str(error.get("code")), str(error.get("message")))
