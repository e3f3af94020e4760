"""``edgectl bugreport``: an allow-list decides what goes in; the rest stays here."""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import subprocess
import tarfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from airflow_edge_agent import __version__
from airflow_edge_agent.configuration import ConfigError, load, shown
from airflow_edge_agent.ctl.client import Client, DaemonDown, Refused, find_socket
from airflow_edge_agent.ctl.doctor import examine
from airflow_edge_agent.ctl.main import OK, REFUSED
from airflow_edge_agent.ctl.terminal import complain, out
from airflow_edge_agent.runtime.logging import redact

HARMLESS = (
    "concurrency", "spool_max_mb", "carrier", "allow_plain_http", "drain.", "log.", "health.", "runner.python",
    "runner.idle_seconds", "control.", "state_dir", "runtime_dir", "ca_file", "execution_api",
)  # fmt: skip
"""Settings that go in with their values; of others only where they are set."""

STATUS_KEYS = (
    "health", "state", "enrolled", "connected", "carrier", "last_heartbeat_seconds", "last_contact_seconds",
    "slots_used", "slots_total", "undelivered", "drained_by", "stopping", "version", "server_version",
    "airflow_version", "runtime", "uptime_seconds", "faults", "away",
)  # fmt: skip
JOB_KEYS = ("job_id", "phase", "slots", "running_seconds", "log_bytes", "log_delivered_bytes", "outcome")

JOURNAL_LINES = 2_000
JOURNAL_KEYS = ("__REALTIME_TIMESTAMP", "PRIORITY", "MESSAGE", "EDGE_EVENT", "EDGE_JOB_ID", "_PID")
SECONDS = 30


def bugreport(arguments: argparse.Namespace) -> int:
    """Write the report."""
    path = arguments.output or Path(f"edge-agent-report-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz")
    parts = collect(arguments)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        complain(f"{path}: {error.strerror}")
        return REFUSED
    with os.fdopen(fd, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in parts.items():
            data = redact(content).encode()
            info = tarfile.TarInfo(f"edge-agent-report/{name}")
            info.size, info.mode, info.mtime = len(data), 0o600, int(time.time())
            archive.addfile(info, io.BytesIO(data))
    out(f"{path}: written ({', '.join(parts)}). Have a look at it before you pass it on.")
    return OK


def collect(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the files of the report."""
    socket = find_socket(arguments.socket, arguments.config)
    parts = {
        "versions.json": {
            "edgectl": __version__,
            "python": platform.python_version(),
            "kernel": platform.release(),
            "system": _os_release(),
        },
        "checks.json": [asdict(check) for check in examine(arguments.config, socket)],
        "settings.json": _settings(arguments.config),
        "status.json": _status(Client(socket)),
        "log.jsonl": None,
    }
    texts = {name: json.dumps(part, indent=2) for name, part in parts.items() if part is not None}
    return texts | {"log.jsonl": _journal()}


def _os_release() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    except OSError:
        return "unknown"


def _settings(config: Path | None) -> list[dict[str, Any]]:
    try:
        loaded = load(config, {}, unenrolled=True)
    except ConfigError as error:
        return [{"fault": str(error)}]
    return [
        {"name": s.name, "origin": s.origin, **({"value": s.value} if s.name.startswith(HARMLESS) else {})}
        for s in shown(loaded)
        if not s.name.startswith(("runner.env", "bundles"))
    ]


def _status(client: Client) -> dict[str, Any]:
    try:
        status = client.ask("status")["status"]
        jobs = client.ask("jobs")["jobs"]
    except (DaemonDown, Refused) as error:
        return {"fault": str(error)}
    return {
        "status": {key: status.get(key) for key in STATUS_KEYS},
        "jobs": [{key: job.get(key) for key in JOB_KEYS} for job in jobs],
    }


def _journal() -> str:
    """Return what the agent has said since boot, as far as this user may read it."""
    command = ["journalctl", "-t", "edge-agent", "-b", "-n", str(JOURNAL_LINES), "-o", "json", "--no-pager"]
    try:
        done = subprocess.run(  # noqa: S603 -- fixed words
            command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return json.dumps({"fault": str(error)}) + "\n"
    lines = []
    for line in done.stdout.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        lines.append(json.dumps({key: entry[key] for key in JOURNAL_KEYS if key in entry}))
    return "\n".join(lines) + "\n"
