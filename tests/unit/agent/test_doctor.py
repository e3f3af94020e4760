"""What each check of ``edgectl doctor`` says when something is wrong, and that it has a remedy.

TLS and what keeps jobs apart have files of their own.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_edge_agent.configuration import Loaded
from airflow_edge_agent.ctl.checks import host, network
from airflow_edge_agent.ctl.doctor import Check, Checker, Scene
from airflow_edge_agent.settings import Settings
from fakes.credentials import SECRET, write_credential_file


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def scene(tmp_path: Path, facts: dict[str, Any] | None = None, **settings: Any) -> Scene:
    values = {"server_url": "https://airflow.example.com", "name": "press-07", "state_dir": str(tmp_path)} | settings
    return Scene(Loaded(Settings.model_validate(values), {}, [], enrolled=True), facts)


def facts(**status: Any) -> dict[str, Any]:
    """Make what a daemon in good health says."""
    good = {"name": "press-07", "queues": ["default"], "connected": True, "carrier": "websocket"}
    return {
        "proxies": {},
        "skew_seconds": 0.1,
        "heartbeat_seconds": 20,
        "watchdog_seconds": 60,
        "status": good | status,
    }


def look(checker: Checker, looked_at: Scene) -> dict[str, Check]:
    found = {check.name: check for check in checker(looked_at)}
    assert all(check.remedy for check in found.values() if check.verdict in ("warn", "fail"))
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# Name, connection, proxy


def test_a_name_that_nobody_knows(tmp_path: Path) -> None:
    (check,) = look(network.dns, scene(tmp_path, server_url="https://no-such-host.invalid")).values()
    assert (check.name, check.verdict) == ("DNS", "fail")
    assert "no-such-host.invalid" in check.found


def test_nobody_listens(tmp_path: Path) -> None:
    checks = look(network.dns, scene(tmp_path, server_url=f"http://127.0.0.1:{free_port()}"))
    assert (checks["DNS"].verdict, checks["TCP"].verdict) == ("ok", "fail")
    assert "refused" in checks["TCP"].found


def test_a_proxy_that_cannot_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy:1080")
    (check,) = look(network.dns, scene(tmp_path)).values()
    assert (check.name, check.verdict) == ("proxy", "fail")
    assert "HTTPS_PROXY" in check.found.upper()


def test_a_proxy_of_the_shell_that_the_unit_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy:3128")
    (check,) = look(network.proxies, scene(tmp_path, facts())).values()
    assert check.verdict == "warn"
    assert "HTTPS_PROXY" in check.found
    assert "secret" not in check.found
    known = facts() | {"proxies": {"HTTPS_PROXY": "http://user:********@proxy:3128"}}
    assert look(network.proxies, scene(tmp_path, known))["proxy"].verdict == "ok"
    assert "cannot be asked" in look(network.proxies, scene(tmp_path))["proxy"].found


# Token, clock, queues, carrier


@contextlib.contextmanager
def answering(status: int, *, ahead: timedelta = timedelta()) -> Iterator[str]:
    """Answer every request with this status, by a clock of its own, and return the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response_only(status)
            self.send_header("date", format_datetime(datetime.now(UTC) + ahead, usegmt=True))
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def ask(tmp_path: Path, url: str) -> dict[str, Check]:
    write_credential_file(tmp_path / "credential")
    looked_at = scene(tmp_path, server_url=url)
    looked_at.shared["reachable"] = True
    return look(network.api, looked_at)


def test_a_credential_that_is_taken_and_a_clock_that_agrees(tmp_path: Path) -> None:
    with answering(200) as url:
        checks = ask(tmp_path, url)
    assert {name: check.verdict for name, check in checks.items()} == {"credential": "ok", "clock": "ok"}


@pytest.mark.parametrize(
    ("status", "name", "words"),
    [(401, "credential", "refuses"), (404, "agent API", "not there"), (503, "agent API", "HTTP 503")],
)
def test_a_server_that_does_not_take_it(tmp_path: Path, status: int, name: str, words: str) -> None:
    with answering(status) as url:
        check = ask(tmp_path, url)[name]
    assert check.verdict == "fail"
    assert words in check.found
    assert SECRET not in check.found


def test_no_credential(tmp_path: Path) -> None:
    looked_at = scene(tmp_path)
    looked_at.shared["reachable"] = True
    (check,) = look(network.api, looked_at).values()
    assert (check.name, check.verdict) == ("credential", "fail")


@pytest.mark.parametrize(("minutes", "verdict"), [(-10, "fail"), (-0.5, "warn"), (10, "fail")])
def test_a_clock_that_differs(tmp_path: Path, minutes: float, verdict: str) -> None:
    with answering(200, ahead=timedelta(minutes=minutes)) as url:
        check = ask(tmp_path, url)["clock"]
    assert check.verdict == verdict
    assert ("ahead of" if minutes < 0 else "behind") in check.found


def test_queues_as_the_server_grants_them(tmp_path: Path) -> None:
    check = look(network.queues, scene(tmp_path, facts(queues=["plant-3", "gpu"])))["queues"]
    assert (check.verdict, check.found) == ("ok", "the credential is press-07's; it serves plant-3, gpu")
    check = look(network.queues, scene(tmp_path, facts(queues=["plant-3", "gpu"], refused_queues=["gpu"])))["queues"]
    assert (check.verdict, check.found) == ("warn", "the server does not let press-07 serve gpu")
    assert look(network.queues, scene(tmp_path, facts(connected=False)))["queues"].verdict == "skip"
    assert look(network.queues, scene(tmp_path)) == {}


def test_a_carrier_that_is_only_the_second_choice(tmp_path: Path) -> None:
    check = look(network.carrier, scene(tmp_path, facts(carrier="http")))["carrier"]
    assert check.verdict == "warn"
    assert "WebSocket" in check.found
    assert look(network.carrier, scene(tmp_path, facts(carrier="http"), carrier="http"))["carrier"].verdict == "ok"
    assert look(network.carrier, scene(tmp_path, facts()))["carrier"].verdict == "ok"


@pytest.mark.parametrize(
    ("told", "settings", "words"),
    [
        ({"watchdog_seconds": 5}, {}, "WatchdogSec is 5 s"),
        ({"heartbeat_seconds": 90}, {}, "every 90 s"),
        ({}, {"drain": {"deadline_seconds": 5, "kill_grace_seconds": 10}}, "shorter than"),
    ],
)
def test_times_that_do_not_fit(tmp_path: Path, told: dict[str, Any], settings: dict[str, Any], words: str) -> None:
    check = look(network.timeouts, scene(tmp_path, facts() | told, **settings))["time-outs"]
    assert check.verdict == "warn"
    assert words in check.found
    assert look(network.timeouts, scene(tmp_path, facts()))["time-outs"].verdict == "ok"


# This machine


def runtime(tmp_path: Path, python: str, told: dict[str, Any] | None = None, **runner: Any) -> dict[str, Check]:
    return look(host.runtime, scene(tmp_path, told, runner={"python": python, **runner}))


def test_a_runtime_that_loads_and_one_of_another_version(tmp_path: Path) -> None:
    checks = runtime(tmp_path, sys.executable, facts(airflow_version="3.2.0"))
    assert checks["task runtime"].verdict == "ok"
    assert checks["task runtime"].found.startswith("loads, Task SDK 1.3")
    assert checks["versions"].verdict == "warn"
    assert "another minor version" in checks["versions"].found


def test_a_runtime_that_is_there_but_cannot_be_imported(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "tenacity.py").write_text("raise ModuleNotFoundError(\"No module named 'tenacity'\")\n")
    check = runtime(tmp_path, sys.executable, env={"PYTHONPATH": str(broken)})["task runtime"]
    assert check.verdict == "fail"
    assert "No module named 'tenacity'" in check.found


@pytest.mark.parametrize(("package", "verdict"), [("statsd", "ok"), (None, "warn")])
def test_a_runtime_without_statsd_cannot_tell_metrics(tmp_path: Path, package: str | None, verdict: str) -> None:
    python = tmp_path / "python"
    there = "0" if package else "1"
    python.write_text(f"#!/bin/sh\nexit {there}\n")
    python.chmod(0o755)
    given = {"python": str(python)}
    assert look(host.task_metrics, scene(tmp_path, None, runner=given)) == {}
    found = look(host.task_metrics, scene(tmp_path, None, runner=given, metrics={"relay_statsd": True}))
    assert found["metrics of tasks"].verdict == verdict


def test_no_runtime(tmp_path: Path) -> None:
    assert runtime(tmp_path, str(tmp_path / "none"))["task runtime"].verdict == "fail"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_runtime_is_never_loaded_as_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "TASK_USER", "nobody")
    seen = tmp_path / "seen"
    seen.mkdir()
    seen.chmod(0o777)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nid -un >> {seen}/users\nexec /usr/bin/env false\n")
    python.chmod(0o755)
    assert runtime(tmp_path, str(python))["task runtime"].verdict == "fail"
    assert set((seen / "users").read_text().split()) == {"nobody"}


def test_bundles_that_tasks_cannot_read(tmp_path: Path) -> None:
    for name, mode in (("open", 0o755), ("closed", 0o700)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    stranger, nobody = 12345, {12345}
    below = [part for part in (tmp_path, *tmp_path.parents) if part.stat().st_mode & 0o005 != 0o005]
    assert host.unreadable(tmp_path / "closed", stranger, nobody) == (below[-1] if below else tmp_path / "closed")
    assert host.unreadable(tmp_path / "closed", os.geteuid(), set()) is None
    assert host.unreadable(tmp_path / "none", os.geteuid(), set()) == tmp_path / "none"
    missing = look(host.bundles, scene(tmp_path, bundles={"plant": {"path": str(tmp_path / "none")}}))["bundles"]
    assert missing.verdict == "fail"
    assert str(tmp_path / "none") in missing.found
    assert look(host.bundles, scene(tmp_path))["bundles"].verdict == "warn"


@pytest.mark.parametrize(
    ("free_mib", "inodes", "verdicts"),
    [
        (10_000, 100_000, {"disk": "ok"}),
        (600, 100_000, {"disk": "warn"}),
        (20, 100_000, {"disk": "fail"}),
        (10_000, 10, {"disk": "ok", "inodes": "fail"}),
    ],
)
def test_disk_and_inodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_mib: int, inodes: int, verdicts: dict[str, str]
) -> None:
    found = SimpleNamespace(f_bavail=free_mib, f_frsize=2**20, f_files=1_000_000, f_favail=inodes)
    monkeypatch.setattr(os, "statvfs", lambda _: found)
    checks = look(host.disk, scene(tmp_path, spool_max_mb=1_000))
    assert {name: check.verdict for name, check in checks.items()} == verdicts


def test_what_the_journal_has_suppressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "journalctl"
    program.write_text(
        "#!/bin/sh\necho 'Suppressed 812 messages from edge-agent.service'\necho 'Suppressed 3 from x'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    check = look(host.journal, scene(tmp_path))["journal"]
    assert (check.verdict, check.found) == ("warn", "Suppressed 812 messages from edge-agent.service")
    program.write_text("#!/bin/sh\necho 'Suppressed 3 messages from other.service'\n")
    assert look(host.journal, scene(tmp_path))["journal"].verdict == "ok"
