"""What every metrics probe and every notifier does."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from airflow_edge_agent.adapters.metrics import PsutilProbe
from airflow_edge_agent.adapters.notify import SystemdNotifier
from airflow_edge_agent.ports import MetricsProbe, Notifier
from airflow_edge_agent.protocol.codec import decode_agent_frame
from airflow_edge_agent.protocol.frames import Heartbeat, Metrics
from fakes import FixedProbe, MemoryNotifier
from fakes.frames import make_presence


@pytest.fixture(params=["psutil", "fixed"])
def probe(request: pytest.FixtureRequest, tmp_path: Path) -> MetricsProbe:
    return PsutilProbe(tmp_path) if request.param == "psutil" else FixedProbe()


def test_a_measurement_fits_into_a_heartbeat(probe: MetricsProbe) -> None:
    for _ in range(3):
        metrics = probe.measure()
        heartbeat = make_presence()[1].model_copy(update={"metrics": metrics})
        decoded = decode_agent_frame(heartbeat.model_dump(mode="json"))
        assert isinstance(decoded, Heartbeat)
        assert decoded.metrics == metrics


def test_figures_fit_together(probe: MetricsProbe) -> None:
    metrics = probe.measure()
    assert metrics.cpu_count is not None
    assert metrics.memory_total_bytes is not None
    assert metrics.memory_used_bytes is not None
    assert 0 <= metrics.memory_used_bytes <= metrics.memory_total_bytes
    assert metrics.cpu_percent is None or 0 <= metrics.cpu_percent <= 100
    assert metrics.uptime_seconds is not None


def test_the_real_probe_measures_everything_here(tmp_path: Path) -> None:
    metrics = PsutilProbe(tmp_path).measure()
    missing = {name for name in Metrics.model_fields if getattr(metrics, name) is None}
    assert missing == set()
    assert metrics.agent_memory_bytes is not None
    assert 1 << 20 < metrics.agent_memory_bytes < 1 << 33


def test_a_directory_that_is_gone_is_left_out(tmp_path: Path) -> None:
    metrics = PsutilProbe(tmp_path / "gone").measure()
    assert metrics.state_disk_total_bytes is None
    assert metrics.temp_disk_total_bytes is not None


def hang_up(notifier: SystemdNotifier) -> None:
    notifier.close()


Messages = Callable[[], list[str]]


@pytest.fixture(params=["systemd", "memory"])
def notifier(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Notifier, Messages]]:
    if request.param == "memory":
        memory = MemoryNotifier()
        yield memory, lambda: memory.messages
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(0)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        def messages() -> list[str]:
            got = []
            while True:
                try:
                    got.append(manager.recv(4096).decode())
                except BlockingIOError:
                    return got

        real = SystemdNotifier()
        yield real, messages
        hang_up(real)


def test_what_the_service_manager_is_told(notifier: tuple[Notifier, Messages]) -> None:
    speaker, messages = notifier
    speaker.ready("connected")
    speaker.status("2 jobs")
    speaker.status("2 jobs")
    speaker.status("1 job")
    speaker.extend(30)
    speaker.alive()
    speaker.stopping("waits for 1 job")
    assert messages() == [
        "READY=1\nSTATUS=connected",
        "STATUS=2 jobs",
        "STATUS=1 job",
        "EXTEND_TIMEOUT_USEC=30000000",
        "WATCHDOG=1",
        "STOPPING=1\nSTATUS=waits for 1 job",
    ]


def test_a_reload_is_told_with_its_moment(notifier: tuple[Notifier, Messages]) -> None:
    speaker, messages = notifier
    speaker.reloading()
    speaker.ready("connected")
    first, second = messages()
    assert first.startswith("RELOADING=1")
    assert second == "READY=1\nSTATUS=connected"
    if "MONOTONIC_USEC=" in first:
        told = int(first.rpartition("=")[2])
        assert abs(told - time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000) < 60_000_000


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [("30000000", None, 30.0), ("30000000", "1", None), ("0", None, None), ("soon", None, None), (None, None, None)],
)
def test_the_watchdog_that_is_meant_for_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usec: str | None, pid: str | None, seconds: float | None
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        speaker = SystemdNotifier()
        assert speaker.watchdog_seconds == seconds
        assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & os.environ.keys()
        speaker.close()


def test_the_status_is_one_line_of_text(notifier: tuple[Notifier, Messages]) -> None:
    speaker, messages = notifier
    if isinstance(speaker, SystemdNotifier):
        speaker.status("running 1/2 \N{MIDDLE DOT} fault:\nREADY=1")
        assert messages() == ["STATUS=running 1/2 \N{MIDDLE DOT} fault: READY=1"]


def test_no_child_can_speak_in_our_name(notifier: tuple[Notifier, Messages]) -> None:
    speaker, messages = notifier
    assert "NOTIFY_SOCKET" not in os.environ
    speaker.ready("still heard")
    assert len(messages()) == 1


def test_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"airflow-edge-agent-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        speaker = SystemdNotifier()
        speaker.ready("up")
        assert manager.recv(4096) == b"READY=1\nSTATUS=up"
        hang_up(speaker)


def test_without_a_service_manager_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    speaker = SystemdNotifier()
    speaker.ready("x")
    speaker.status("y")
    speaker.stopping("z")


def test_a_service_manager_that_went_away_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        speaker = SystemdNotifier()
    speaker.status("into the void")
    hang_up(speaker)
