"""``edgectl enroll``: server and token, atomically and with the right modes."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import os
import pwd
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

from airflow_edge_agent.configuration import DEFAULT_CONFIG, ConfigError, load
from airflow_edge_agent.ctl.client import Client, DaemonDown, Refused, find_socket
from airflow_edge_agent.ctl.main import BAD_CONFIG, DOWN, OK, REFUSED, USAGE
from airflow_edge_agent.ctl.terminal import complain, out, plain

AGENT_USER = "edge-agent"
DROP_IN = "00-enrolment.toml"
"""Read first of all drop-ins: whoever writes others wins."""

TOKEN_MAX_BYTES = 4_096


class EnrolError(Exception):
    """It cannot be done. The message is one line for the operator."""


def enroll(arguments: argparse.Namespace) -> int:
    """Write server and token, and have the running agent take them up."""
    overrides: dict[str, Any] = {
        key: value for key in ("server_url", "name") if (value := getattr(arguments, key)) is not None
    }
    try:
        loaded = load(arguments.config, overrides, unenrolled=True)
    except ConfigError as error:
        for line in str(error).splitlines():
            complain(plain(line))
        return BAD_CONFIG
    if not loaded.enrolled:
        complain("which server? Give --server-url https://..., or set server_url in agent.toml")
        return USAGE
    try:
        token = _read_token(arguments.token_file)
        if overrides:
            path = (arguments.config or DEFAULT_CONFIG).parent / "conf.d" / DROP_IN
            lines = [f"{key} = {json.dumps(value)}\n" for key, value in overrides.items()]
            _write(path, "# Written by edgectl enroll.\n" + "".join(lines), secret=False)
            out(f"{path}: written")
            _check_effect(arguments, overrides)
        _write(loaded.settings.token_file, token + "\n", secret=True)
        out(f"{loaded.settings.token_file}: written")
    except EnrolError as error:
        complain(str(error))
        return REFUSED
    return _take_up(Client(find_socket(arguments.socket, arguments.config)))


def _check_effect(arguments: argparse.Namespace, overrides: dict[str, Any]) -> None:
    loaded = load(arguments.config, {}, unenrolled=True)
    for name, value in overrides.items():
        if getattr(loaded.settings, name) != (value.rstrip("/") if name == "server_url" else value):
            origin = loaded.origins.get((name,), "default")
            raise EnrolError(f"{name} is set otherwise in {origin}, which wins; change it there")


def _take_up(client: Client) -> int:
    try:
        answer = client.ask("enroll")
    except DaemonDown:
        out("The agent does not run; it takes up the token when it starts: systemctl enable --now edge-agent")
        return OK
    except Refused as refusal:
        complain(f"the running agent was not told: {refusal}; restart it")
        return REFUSED
    if not answer.get("reloaded"):
        complain(f"the agent keeps its old configuration: {answer.get('fault')}")
        return REFUSED
    if answer.get("enrolment_fault"):
        complain(f"the agent cannot take it up: {answer['enrolment_fault']}")
        return DOWN
    if answer.get("need_a_restart"):
        complain(f"in effect after a restart of the agent: {', '.join(answer['need_a_restart'])}")
    out("The agent has taken up the token: edgectl status --wait connected --timeout 30s")
    return OK


def _read_token(path: Path | None) -> str:
    if path is not None and str(path) != "-":
        try:
            with path.open("rb") as file:
                data = file.read(TOKEN_MAX_BYTES + 1)
        except OSError as error:
            raise EnrolError(f"{path}: {error.strerror}") from None
    elif sys.stdin.isatty() and path is None:
        data = getpass.getpass("Token (eat_...): ").encode()
    else:
        data = sys.stdin.buffer.read(TOKEN_MAX_BYTES + 1)
    token = data.decode("ascii", errors="replace").strip()
    if len(data) > TOKEN_MAX_BYTES or not token.startswith("eat_") or not token.isprintable() or " " in token:
        raise EnrolError("that is no token: it is one line that begins with 'eat_'")
    return token


def _write(path: Path, content: str, *, secret: bool) -> None:
    """Write a file that is either as before or complete. A secret is readable by the agent's user alone.

    :raises EnrolError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        hint = "; try with sudo" if isinstance(error, PermissionError) and os.geteuid() else ""
        raise EnrolError(f"{path}: {error.strerror}{hint}") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            if secret:
                _give_to_agent(file.fileno(), path)
            else:
                os.fchmod(file.fileno(), 0o644)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise EnrolError(f"{path}: {error.strerror}") from None


def _give_to_agent(fd: int, path: Path) -> None:
    """Let the agent read it, and nobody else: as the file before, else as the directory or the system's user says."""
    os.fchmod(fd, 0o600)
    if os.geteuid() != 0:
        return
    with contextlib.suppress(FileNotFoundError):
        before = path.lstat()
        if stat.S_ISREG(before.st_mode) and (before.st_uid, before.st_gid) != (0, 0):
            os.fchown(fd, before.st_uid, before.st_gid)
            os.fchmod(fd, 0o640 if before.st_uid == 0 and before.st_gid != 0 else 0o600)
            return
    try:
        group = pwd.getpwnam(AGENT_USER).pw_gid
    except KeyError:
        return
    os.fchown(fd, 0, group)
    os.fchmod(fd, 0o640)
