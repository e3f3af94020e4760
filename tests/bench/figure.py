"""One measured number, and what it takes to get to one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

RUN_SECONDS = 180.0
MEBIBYTE = 1024 * 1024


class BenchError(Exception):
    """A measurement is not possible. The message says why."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number."""

    key: str
    """Name with its unit, for programs."""
    label: str
    value: float
    target: float | None = None
    """What it should be at most."""
    digits: int = 2

    @property
    def met(self) -> bool | None:
        """Whether the target is met; ``None`` without one."""
        return None if self.target is None else self.value <= self.target


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the smallest sample that at least ``percent`` of them do not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
