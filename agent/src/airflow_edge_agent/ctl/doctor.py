"""``edgectl doctor``: each check says what it has found, and what to do about it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from airflow_edge_agent.configuration import ConfigError, Loaded, load
from airflow_edge_agent.ctl.client import Client, DaemonDown, Refused, find_socket
from airflow_edge_agent.ctl.main import DEGRADED, DOWN, OK
from airflow_edge_agent.ctl.terminal import coloured, out, plain

Verdict = Literal["ok", "warn", "fail", "skip"]
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red", "skip": "dim"}


@dataclass(frozen=True)
class Check:
    """What one check has found."""

    name: str
    verdict: Verdict
    found: str
    remedy: str | None = None


@dataclass
class Scene:
    """What the checks look at."""

    loaded: Loaded
    facts: dict[str, Any] | None = None
    """What the daemon says; ``None``: it does not answer."""
    shared: dict[str, Any] = field(default_factory=dict)
    """What one check has found out and a later one goes by."""

    @property
    def status(self) -> dict[str, Any]:
        """How the daemon says it is; empty if it does not answer."""
        return self.facts["status"] if self.facts is not None else {}


Checker = Callable[[Scene], Iterator[Check]]


def doctor(arguments: argparse.Namespace) -> int:
    """Run all checks and print them."""
    checks = examine(arguments.config, find_socket(arguments.socket, arguments.config))
    found = []
    for check in checks:
        found.append(check)
        if not arguments.json:
            _print(check)
    if arguments.json:
        out(json.dumps([asdict(check) for check in found]))
    verdicts = {check.verdict for check in found}
    return DOWN if "fail" in verdicts else DEGRADED if "warn" in verdicts else OK


def _print(check: Check) -> None:
    out(f"{coloured(check.verdict.ljust(4), _COLOURS[check.verdict])}  {check.name}: {plain(check.found)}")
    if check.remedy is not None:
        out(f"      {coloured('->', 'bold')} {plain(check.remedy)}")


def examine(config: Path | None, socket: Path) -> Iterator[Check]:
    """Run all checks, one after the other."""
    from airflow_edge_agent.ctl.checks import host, network  # noqa: PLC0415 -- they need what is above

    try:
        loaded = load(config, {}, unenrolled=True)
    except ConfigError as error:
        yield Check("configuration", "fail", str(error), "mend what is named there; edgectl config check")
        return
    files = ", ".join(str(file) for file in loaded.files) or "no files"
    yield Check("configuration", "ok", f"usable ({files})")
    scene = Scene(loaded)
    yield _daemon(scene, socket)
    for checker in (*network.CHECKS, *host.CHECKS):
        try:
            yield from checker(scene)
        except Exception as error:  # noqa: BLE001 -- one check that breaks must not hide the others
            name = checker.__name__.replace("_", " ").strip()
            yield Check(name, "warn", f"the check itself failed: {error!r}", "please report it: edgectl bugreport")


def _daemon(scene: Scene, socket: Path) -> Check:
    try:
        scene.facts = Client(socket).ask("facts")
    except DaemonDown as error:
        return Check(
            "daemon", "fail", str(error), "systemctl start edge-agent; journalctl -u edge-agent says why it ended"
        )
    except Refused as refusal:
        return Check("daemon", "warn", str(refusal), "run it as root, or as a member of the operators' group")
    if os.geteuid() != 0:
        scene.shared["limited"] = True
    faults = scene.status["faults"]
    if faults:
        return Check("daemon", "warn", f"runs, but: {'; '.join(faults)}", "the checks below say more")
    return Check("daemon", "ok", f"runs, version {scene.status['version']}, {scene.status['state']}")
