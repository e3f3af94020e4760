"""System metrics through psutil."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from airflow_edge_agent.protocol.frames import Metrics


class PsutilProbe:
    """Measures this host. Figures that cannot be had, e.g. in a locked-down container, are left out."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._process = psutil.Process()
        self._cpu_times: tuple[float, float] | None = None
        # The first look has no interval to speak of: begin it now.
        self._cpu_percent()

    def measure(self) -> Metrics:
        """Measure now. Takes about a millisecond and never waits."""
        memory = _try(psutil.virtual_memory)
        swap = _try(psutil.swap_memory)
        network = _try(psutil.net_io_counters)
        state_disk = _try(lambda: psutil.disk_usage(str(self._state_dir)))
        temp_disk = _try(lambda: psutil.disk_usage(tempfile.gettempdir()))
        cores = os.cpu_count() or 1
        load = _try(os.getloadavg) or (None, None, None)
        per_core = [None if value is None else round(value / cores, 3) for value in load]
        boot = _try(psutil.boot_time)
        own = _try(self._process.memory_info)
        return Metrics(
            cpu_percent=self._cpu_percent(),
            cpu_count=cores,
            load_1_per_core=per_core[0],
            load_5_per_core=per_core[1],
            load_15_per_core=per_core[2],
            memory_total_bytes=memory and memory.total,
            # In some containers the two figures come from different places.
            memory_used_bytes=memory and max(0, memory.total - memory.available),
            swap_total_bytes=swap and swap.total,
            swap_used_bytes=swap and swap.used,
            state_disk_total_bytes=state_disk and state_disk.total,
            state_disk_used_bytes=state_disk and state_disk.used,
            state_disk_free_bytes=state_disk and state_disk.free,
            temp_disk_total_bytes=temp_disk and temp_disk.total,
            temp_disk_used_bytes=temp_disk and temp_disk.used,
            temp_disk_free_bytes=temp_disk and temp_disk.free,
            network_sent_bytes=network and network.bytes_sent,
            network_received_bytes=network and network.bytes_recv,
            uptime_seconds=None if boot is None else max(0.0, time.time() - boot),
            agent_memory_bytes=own and own.rss,
        )

    def _cpu_percent(self) -> float | None:
        """Return the share of CPU time since the last look of this probe; psutil knows only one look for all."""
        times = _try(psutil.cpu_times)
        if times is None:
            return None
        # Time of guests is in that of users already.
        total: float = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        busy: float = total - times.idle - getattr(times, "iowait", 0.0)
        before, self._cpu_times = self._cpu_times, (busy, total)
        if before is None or total <= before[1]:
            return 0.0
        return round(min(max(100 * (busy - before[0]) / (total - before[1]), 0.0), 100.0), 1)

    def figures(self) -> dict[str, float]:
        """Measure what automatic maintenance goes by."""
        measured = self.measure()
        found: dict[str, float | None] = {"load_per_core": measured.load_5_per_core}
        free, used = measured.state_disk_free_bytes, measured.state_disk_used_bytes
        # Without what only root may use, as df counts.
        if free is not None and used is not None and free + used:
            found["disk_percent"] = 100 * used / (free + used)
        if measured.memory_total_bytes and measured.memory_used_bytes is not None:
            found["memory_percent"] = 100 * measured.memory_used_bytes / measured.memory_total_bytes
        sensors: dict[str, list[Any]] = _try(psutil.sensors_temperatures) or {}
        heat = [entry.current for entries in sensors.values() for entry in entries if entry.current]
        found["temperature_celsius"] = max(heat, default=None)
        return {name: value for name, value in found.items() if value is not None}


def _try(measure: Callable[[], Any]) -> Any:
    try:
        return measure()
    except (OSError, psutil.Error, RuntimeError, NotImplementedError, AttributeError):
        return None
