"""When the host is in no state to take work: thresholds with hysteresis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """Unhealthy from ``enter`` on, healthy again below ``leave``."""

    enter: float
    leave: float


UNITS = {"disk_percent": "% of the disk", "memory_percent": "% of memory", "load_per_core": "load per core",
         "temperature_celsius": "degrees Celsius"}  # fmt: skip


class HealthJudge:
    """Decides by what is measured.

    :param samples: how many looks in a row must agree before anything changes.
    """

    def __init__(self, ranges: Mapping[str, Range], samples: int) -> None:
        self._ranges = dict(ranges)
        self._samples = samples
        self._counts = dict.fromkeys(ranges, 0)
        self._bad: dict[str, str] = {}

    @property
    def verdict(self) -> str | None:
        """What is wrong, in one line; ``None``: nothing."""
        return "; ".join(self._bad.values()) or None

    def look(self, figures: Mapping[str, float]) -> str | None:
        """Take in a measurement and return the verdict. A figure that is missing changes nothing."""
        for name, limits in self._ranges.items():
            value = figures.get(name)
            if value is None:
                continue
            bad = name in self._bad
            turns = value < limits.leave if bad else value >= limits.enter
            self._counts[name] = self._counts[name] + 1 if turns else 0
            if self._counts[name] < self._samples:
                continue
            self._counts[name] = 0
            if bad:
                del self._bad[name]
            else:
                self._bad[name] = f"{value:.1f} {UNITS.get(name, name)} (limit {limits.enter:g})"
        return self.verdict
