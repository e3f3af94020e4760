"""A host that does not change, and a service manager that only listens."""

from __future__ import annotations

from airflow_edge_agent.protocol.frames import Metrics


class FixedProbe:
    """Measures always the same."""

    def __init__(self, metrics: Metrics | None = None) -> None:
        self._metrics = metrics or Metrics(
            cpu_percent=12.5, cpu_count=4, memory_total_bytes=8 << 30, memory_used_bytes=3 << 30, uptime_seconds=3600
        )

    def measure(self) -> Metrics:
        return self._metrics


class MemoryNotifier:
    """Remembers the messages as systemd would get them."""

    watchdog_seconds: float | None = None

    def __init__(self) -> None:
        self.messages: list[str] = []
        self._last = ""

    def ready(self, status: str) -> None:
        self.messages.append(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        if status != self._last:
            self._last = status
            self.messages.append(f"STATUS={status}")

    def stopping(self, status: str) -> None:
        self.messages.append(f"STOPPING=1\nSTATUS={status}")

    def reloading(self) -> None:
        self.messages.append("RELOADING=1")

    def extend(self, seconds: float) -> None:
        self.messages.append(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def alive(self) -> None:
        self.messages.append("WATCHDOG=1")
