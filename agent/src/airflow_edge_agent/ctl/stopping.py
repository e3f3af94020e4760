"""What a stop is for: the service manager knows, SIGTERM does not tell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from airflow_edge_agent.ctl.client import Client, DaemonDown, Refused, find_socket

SECONDS = 10


def announce(unit: str, socket: Path | None) -> int:
    """Tell the running agent what its stop is for. Always succeeds: the stop takes place anyway."""
    kind = stop_kind(unit)
    if kind is None:
        return 0
    try:
        Client(find_socket(socket)).ask("stopping", kind=kind)
    except (DaemonDown, Refused) as error:
        print(f"edge-agent: {error}", file=sys.stderr)  # noqa: T201 -- goes to the journal
    return 0


def stop_kind(unit: str) -> str | None:
    """Return ``stop``, ``restart`` or ``shutdown``; ``None``: systemd does not say."""
    if _systemctl("is-system-running").strip() == "stopping":
        return "shutdown"
    for line in _systemctl("list-jobs", "--no-legend", "--plain").splitlines():
        words = line.split()
        if len(words) >= 3 and words[1] == unit:  # noqa: PLR2004 -- id, unit, type
            # While a unit is stopped for a restart, its job is still the restart.
            return "stop" if words[2] == "stop" else "restart"
    return None


def _systemctl(*arguments: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 -- systemd's own program
            ["systemctl", *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
